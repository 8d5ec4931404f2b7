"""Presentations: readers answer before the label is seen and never know what comes later; who can be asked, and what is shown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ALGORITHMS, TRIED, classification, engine, in_float64
from PIL import Image

from metarun import inner
from metarun.adaptation import adapt
from metarun.algorithm import Algorithm
from metarun.cli import summary_table
from metarun.errors import UserError
from metarun.experiment import evaluate, train
from metarun.problem import Regression
from metarun.protocols.presentations import Presentations
from metarun.run import Run
from metarun.task import Batch, Task, select

READERS = [algo for algo in ALGORITHMS if getattr(TRIED.get((algo, classification)), "reads", None) == "one_by_one"]
WORDS = ["net.norm=instance", "query=1", "protocol=presentations"]


def asked(algo: str) -> tuple[Algorithm, Task]:
    algorithm, tasks = in_float64(classification(algo, *WORDS), tasks=3)
    return algorithm.eval(), tasks


def test_all_readers_are_found() -> None:
    assert {"lstm", "mann", "snail"} <= set(READERS)


@pytest.mark.parametrize("algo", READERS)
@torch.no_grad()
def test_an_answer_knows_the_examples_read_and_no_more(algo: str) -> None:
    algorithm, tasks = asked(algo)
    context = select(tasks, 0).context
    (x, y), n = context.support, len(context.support.y)
    order = inner.order(context.key, n)
    before = [algorithm.predict(state, x) for state in adapt(algorithm, context, n)]
    for k in range(n):
        later = torch.isin(torch.arange(n), order[k:])
        changed = Batch(torch.where(later[:, None, None, None], 1 - x, x), torch.where(later, (y + 1) % 3, y))
        after = [algorithm.predict(state, x) for state in adapt(algorithm, context._replace(support=changed), n)]
        torch.testing.assert_close(after[k], before[k], rtol=1e-9, atol=1e-9)
        assert not torch.allclose(after[k + 1], before[k + 1], rtol=1e-3)


@pytest.mark.parametrize("algo", READERS)
@pytest.mark.parametrize("how", ["vmap", "loop"])
@torch.no_grad()
def test_right_is_counted_by_how_often_the_class_came_before(algo: str, how: str) -> None:
    algorithm, tasks = asked(algo)
    found = engine(how).evaluate(algorithm, tasks, Presentations())
    for i in range(3):
        context = select(tasks, i).context
        right, times = np.zeros(2), [0, 0, 0]
        for k, place in enumerate(inner.order(context.key, 6).tolist()):
            state = [*adapt(algorithm, context, k)][-1]
            y = int(context.support.y[place])
            right[times[y]] += int(algorithm.predict(state, context.support.x[place, None]).argmax()) == y
            times[y] += 1
        np.testing.assert_allclose(found["right"][i], right / 3)


def test_scores_and_picture() -> None:
    """Those of arrays as they are, worked out by hand."""
    arrays = {"right": np.array([[0.0, 0.5, 1.0], [0.5, 0.5, 1.0]]), "way": np.array([2.0, 2.0])}
    protocol = Presentations()
    scores, curve = protocol.summarise(Run(classification("lstm")).problem, arrays)
    assert curve == []
    assert [scores[f"presentation_{time}"]["mean"] for time in (1, 2, 3)] == [0.25, 0.5, 1.0]
    assert scores["presentation_2"]["ci95"] == 0.0
    np.testing.assert_allclose(scores["sequence_accuracy"]["mean"], 7 / 12)
    np.testing.assert_allclose(protocol.per_episode(arrays), [0.5, 2 / 3])
    name, figure = protocol.figure(arrays, "a title")
    line, chance = figure.axes[0].lines
    assert name == "presentations.png"
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 2, 3], [0.25, 0.5, 1.0])
    assert set(chance.get_ydata()) == {0.5}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["protonet", "net.norm=instance"], r"protocol=presentations is not possible with algo=protonet: it needs a classifier that reads"),
        (["lstm", "net.norm=batch"], r"not possible with algo=lstm: .* a net.norm other than batch"),
    ],
)
def test_who_cannot_be_asked_is_told(words: list[str], line: str) -> None:
    with pytest.raises(UserError, match=line):
        Run(classification(*words, "protocol=presentations"))


def test_uneven_sequences_are_refused() -> None:
    run = Run(classification("lstm", *WORDS, "episode.uneven=true"))
    with pytest.raises(UserError, match=r"as many examples of every class: leave episode.uneven at false"):
        run.episodes("test", run.protocols[0])


def test_numbers_are_no_classes() -> None:
    algorithm = Run(classification("lstm", "net.norm=instance")).algorithm
    assert Presentations().asks(algorithm)
    algorithm.problem = algorithm.problem.__class__(Regression(), (1,), 1, 0, algorithm.problem.train, algorithm.problem.eval)
    assert not Presentations().asks(algorithm)


def test_a_run_and_its_evaluation_tell_of_presentations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["net.norm=instance", "shot=3", "query=1", "trainer.iterations=1", "trainer.val_every=1"]
    train(classification("lstm", *words), tmp_path / "run")
    folder = tmp_path / "eval"
    folder.mkdir()
    summary = evaluate(
        classification("lstm", *words, "protocol=[episodes,presentations]", "logger.pictures=true"), tmp_path / "run", "best", folder
    )
    assert summary["protocol"] == ["episodes", "presentations"]
    assert {"accuracy", "sequence_accuracy", "presentation_1", "presentation_3"} <= set(summary["test"])
    assert json.loads((folder / "summary.json").read_text())["test"] == summary["test"]
    with Image.open(folder / "presentations.png") as picture:
        assert picture.width > 400
    summary_table.show(summary, folder, ("test",))
    shown = capsys.readouterr().out
    assert "sequence_accuracy" in shown
    for time in (1, 2, 3):
        found = summary["test"][f"presentation_{time}"]
        assert f"{time}   {found['mean']:.4f} ± {found['ci95']:.4f}" in shown
