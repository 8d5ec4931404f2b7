"""Active choice: the example whose answer is least sure is labelled next, once; and what that is compared with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import classification, engine, in_float64, regression
from PIL import Image

from metarun import inner
from metarun.adaptation import adapt
from metarun.algorithm import Algorithm
from metarun.errors import UserError
from metarun.experiment import evaluate, train
from metarun.problem import best_guess
from metarun.protocols.active import Active
from metarun.run import Run
from metarun.task import Batch, Context, select

WORDS = ["net.norm=instance", "shot=3", "query=2"]  # 3 classes: nine examples, three of them labelled at first
BEYOND = 6


def answers(algorithm: Algorithm, context: Context, labelled: list[int], x: torch.Tensor) -> torch.Tensor:
    """What the learner says of x after it adapted to these places, by class."""
    places = torch.tensor(sorted(labelled))  # places are grouped by class
    known = context._replace(support=Batch(context.support.x[places], context.support.y[places]))
    return best_guess(algorithm.predict([*adapt(algorithm, known, algorithm.test_steps)][-1], x))


@pytest.mark.parametrize("algo", ["protonet", "maml", "versa"])
@pytest.mark.parametrize("how", ["vmap", "loop"])
@torch.no_grad()
def test_the_choice_by_a_plain_program(algo: str, how: str) -> None:
    algorithm, tasks = in_float64(classification(algo, *WORDS), tasks=2)
    found = engine(how).evaluate(algorithm.eval(), tasks, Active(labels=4))
    for i in range(2):
        (context, query, *_), by_rule = select(tasks, i), {}
        random = inner.order(context.key, 9).tolist()
        for rule in ("active", "random"):
            labelled, scores = [0, 3, 6], []
            for _ in range(5):
                logits = answers(algorithm, context, labelled, query.x)
                scores.append(float((logits.argmax(-1) == query.y).double().mean()))
                p = answers(algorithm, context, labelled, context.support.x).softmax(-1)
                open_to = [place for place in range(9) if place not in labelled]
                entropy = -(p * p.log()).sum(-1)
                labelled.append(
                    max(open_to, key=lambda j: float(entropy[j])) if rule == "active" else next(j for j in random if j in open_to)
                )
            by_rule[rule] = scores
        for rule, scores in by_rule.items():
            np.testing.assert_allclose(found[rule][i], scores)
    assert (found["first"] == 3).all()


@torch.no_grad()
def test_with_every_label_the_order_of_asking_is_forgotten() -> None:
    algorithm, tasks = in_float64(classification("protonet", *WORDS), tasks=4)
    found = engine("vmap").evaluate(algorithm.eval(), tasks, Active(labels=BEYOND))
    for moment in (0, BEYOND):
        np.testing.assert_array_equal(found["active"][:, moment], found["random"][:, moment])


def test_a_line_is_learned_faster_where_it_is_least_known() -> None:
    """Bayesian regression is least sure far from what it has seen; random points may lie beside each other."""
    values = regression("alpaca", "shot=12", "query=30", "data.noise=0.1")
    run = Run(values)
    tasks = run.episodes("test", Active(labels=3)).batch(range(400))
    found = engine("vmap").evaluate(run.algorithm.eval(), tasks, Active(labels=3))
    scores, curve = Active(labels=3).summarise(run.problem, found)
    assert curve == []
    assert scores["active_gain"]["mean"] > scores["active_gain"]["ci95"]  # of squared errors: less is better, and gain is more
    assert scores["active_mse"]["mean"] < scores["random_mse"]["mean"]
    np.testing.assert_allclose(Active().per_episode(found), found["active"][:, -1])


def test_scores_and_picture() -> None:
    """Those of arrays as they are, worked out by hand."""
    arrays = {
        "active": np.array([[0.0, 0.5, 1.0], [0.5, 1.0, 1.0]]),
        "random": np.array([[0.0, 0.5, 0.5], [0.5, 0.5, 0.5]]),
        "first": np.array([3.0, 3.0]),
    }
    scores, _ = Active().summarise(Run(classification("protonet")).problem, arrays)
    assert {name: score["mean"] for name, score in scores.items()} == {"active_accuracy": 1.0, "random_accuracy": 0.5, "active_gain": 0.375}
    name, figure = Active().figure(arrays, "a title")
    chosen, random = figure.axes[0].lines
    assert name == "active.png"
    assert (list(chosen.get_xdata()), list(chosen.get_ydata())) == ([3, 4, 5], [0.25, 0.75, 1.0])
    assert list(random.get_ydata()) == [0.25, 0.5, 0.5]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["protonet", "shot=2"],
            r"protocol.active.labels=10 are more than a support of 6 examples has beyond the first of each class: choose shot=5",
        ),
        (["protonet", "shot=5", "episode.uneven=true"], r"protocol=active needs as many examples of every class"),
    ],
)
def test_a_support_that_is_too_small_or_uneven_is_refused(words: list[str], line: str) -> None:
    run = Run(classification(*words, "protocol=active", "net.norm=instance"))
    with pytest.raises(UserError, match=line):
        run.episodes("test", run.protocols[0])


def test_points_without_uncertainty_are_refused() -> None:
    run = Run(regression("maml", "shot=12", "protocol=active", "protocol.active.labels=2"))
    tasks = run.episodes("test", run.protocols[0]).batch(range(2))
    with pytest.raises(UserError, match=r"protocol=active needs numbers with their uncertainty, as of algo=alpaca"):
        engine("vmap").evaluate(run.algorithm.eval(), tasks, run.protocols[0])


def test_a_run_and_its_evaluation_tell_of_choices(tmp_path: Path) -> None:
    words = [*WORDS, "trainer.iterations=1", "trainer.val_every=1"]
    train(classification("protonet", *words), tmp_path / "run")
    folder = tmp_path / "eval"
    folder.mkdir()
    asked = [*words, "protocol=active", "protocol.active.labels=3", "logger.pictures=true"]
    summary = evaluate(classification("protonet", *asked), tmp_path / "run", "best", folder)
    assert (summary["protocol"], summary["metric"]) == (["active"], "active_accuracy")
    assert {"active_accuracy", "random_accuracy", "active_gain"} <= set(summary["test"])
    with Image.open(folder / "active.png") as picture:
        assert picture.width > 400
