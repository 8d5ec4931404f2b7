"""protocol=continual: against a loop written out, who forgets and who cannot, measures by hand, who is asked, whole runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CLASSIFIERS, TRIED, classification, double, engine, small
from PIL import Image
from torch.func import functional_call

from metarun.abilities import Continues
from metarun.adaptation import adapt
from metarun.algorithm import Algorithm
from metarun.cli import summary_table
from metarun.errors import UserError
from metarun.experiment import evaluate, train
from metarun.protocols.continual import MEASURES, Continual, forgetting, prefixes, so_far
from metarun.run import Run
from metarun.task import Batch, Task, select

CONTINUES = [algo for algo in CLASSIFIERS if isinstance(TRIED[algo, classification], Continues)]


def made(algo: str, *words: str) -> tuple[Algorithm, Task]:
    """A learner and stacked streams of 4 classes, in float64."""
    run = Run(small(f"algo={algo}", "net=mlp", "net.norm=none", "way=4", *words))
    return run.algorithm.double().eval(), double(run.episodes("test").batch(range(2)))


def written_out(algorithm: Algorithm, task: Task, classes: int) -> tuple[np.ndarray, list[float]]:
    """The same measures, task after task, and of learners that begin anew."""
    (x, y), tasks, each = task.context.support, 4 // classes, 2 * classes

    def right(state, met):
        logits = algorithm.predict(state, task.query.x)[:, : met * classes]
        right = (logits.argmax(1) == task.query.y).float().reshape(tasks, -1).mean(1)
        return [float(value) if t < met else 0.0 for t, value in enumerate(right)]

    matrix, state = [], None
    for t in range(tasks):
        now = task.context._replace(support=Batch(x[t * each : (t + 1) * each], y[t * each : (t + 1) * each]))
        fresh = algorithm.begin(now)
        state = algorithm.carry_on(fresh if state is None else state, fresh, now)
        for k in range(algorithm.steps(now, False)):
            state = algorithm.step(state, now, k)
        matrix.append(right(state, t + 1))
    at_once = []
    for met in prefixes(tasks):
        now = task.context._replace(support=Batch(x[: met * each], y[: met * each]))
        *_, state = adapt(algorithm, now, algorithm.steps(now, False))
        at_once.append(float(np.mean(right(state, met)[:met])))
    return np.array(matrix), at_once


@pytest.mark.parametrize("classes", [1, 2])
@pytest.mark.parametrize("algo", ["protonet", "maml", "anil", "nil", "oml", "pretrain", "protomaml"])
def test_it_is_the_loop_written_out(algo: str, classes: int) -> None:
    algorithm, tasks = made(algo)
    for how in (engine(), engine("loop")):
        found = how.evaluate(algorithm, tasks, Continual("all", classes=classes))
        for i in range(2):
            matrix, at_once = written_out(algorithm, select(tasks, i), classes)
            np.testing.assert_allclose(found["matrix"][i], matrix, rtol=1e-6)
            np.testing.assert_allclose(found["at_once"][i], at_once, rtol=1e-6)


@pytest.mark.parametrize("algo", CONTINUES)
def test_whoever_says_so_goes_on(algo: str) -> None:
    """Its state keeps its form, what it has met is asked for, and what has not come is not known."""
    run = Run(classification(algo, "way=4", "protocol=continual"))
    found = engine().evaluate(run.algorithm.eval(), run.episodes("test", run.protocols[0]).batch(range(2)), Continual("all"))
    assert found["matrix"].shape == (2, 4, 4)
    assert (found["matrix"].triu(1) == 0).all()
    assert (found["matrix"][:, 0, 0] == 1).all()  # of one class there is only one answer
    assert found["at_once"].shape == (2, 3)


@pytest.mark.parametrize("algo", ["protonet", "nil"])
def test_prototypes_are_not_forgotten(algo: str) -> None:
    algorithm, tasks = made(algo)
    found = engine().evaluate(algorithm, tasks, Continual("all"))
    at_once = found["at_once"][:, -1]
    torch.testing.assert_close(found["matrix"][:, -1].mean(1), at_once)
    task = select(tasks, 0)
    (x, y), state = task.context.support, None
    for t in range(4):
        now = task.context._replace(support=Batch(x[2 * t : 2 * t + 2], y[2 * t : 2 * t + 2]))
        fresh = algorithm.begin(now)
        state = algorithm.carry_on(fresh if state is None else state, fresh, now)
    assert state is not None
    torch.testing.assert_close(state.means, algorithm.begin(task.context).means)


def test_proto_maml_without_steps_goes_on_as_protonet_does() -> None:
    (algorithm, tasks), (protonet, _) = made("protomaml"), made("protonet")
    algorithm.test_steps = 0
    protonet.net.load_state_dict(algorithm.net.state_dict())
    mine, theirs = (engine().evaluate(each, tasks, Continual("all")) for each in (algorithm, protonet))
    assert torch.equal(mine["matrix"], theirs["matrix"])
    assert torch.equal(mine["at_once"], theirs["at_once"])


def test_proto_maml_begins_a_class_in_the_net_that_it_has_become() -> None:
    algorithm, tasks = made("protomaml", "algo.inner_lr=0.5")
    context = select(tasks, 0).context
    (x, y), state = context.support, None
    for t in range(2):
        now = context._replace(support=Batch(x[2 * t : 2 * t + 2], y[2 * t : 2 * t + 2]))
        before, fresh = state, algorithm.begin(now)
        state = algorithm.carry_on(fresh if state is None else state, fresh, now)
        start = state
        state = algorithm.step(state, now, 0)
    assert before is not None
    net = {name.removeprefix("net."): weight for name, weight in before.fast.items() if name.startswith("net.")}
    prototype = functional_call(algorithm.net, net, (x[2:4], x[2:4])).mean(0)
    torch.testing.assert_close(start.fast["head.weight"][1], 2 * prototype)
    torch.testing.assert_close(start.fast["head.bias"][1], -prototype @ prototype)
    assert torch.equal(start.fast["head.weight"][0], before.fast["head.weight"][0])
    assert all(torch.equal(start.fast[f"net.{name}"], weight) for name, weight in net.items())
    assert not torch.allclose(prototype, algorithm.net(x[2:4], x[2:4]).mean(0))


def test_large_steps_forget() -> None:
    """A learner that gives itself up to the newest class takes everything for it."""
    algorithm, tasks = made("maml", "algo.inner_lr=20.0")
    matrix = engine().evaluate(algorithm, tasks, Continual("all"))["matrix"].double().numpy()
    assert so_far(matrix)[:, -1].mean() < 0.5
    assert forgetting(matrix).mean() > 0.5
    assert (np.diagonal(matrix, axis1=1, axis2=2) > 0.9).all()


def test_measures_by_hand() -> None:
    matrix = np.array([[[1.0, 0, 0], [0.5, 0.8, 0], [0.6, 0.2, 0.9]]])
    np.testing.assert_allclose(so_far(matrix), [[1.0, 0.65, 1.7 / 3]])
    np.testing.assert_allclose(forgetting(matrix), [((1 - 0.6) + (0.8 - 0.2)) / 2])
    assert [prefixes(n) for n in (2, 3, 4, 20)] == [[1, 2], [1, 2, 3], [1, 2, 4], [1, 2, 4, 8, 16, 20]]
    run = Run(small("algo=protonet", "net.hidden=8"))
    scores, curve = Continual(classes=5).summarise(run.problem, {"matrix": matrix, "at_once": np.array([[1.0, 0.9, 0.8]])})
    assert [point["step"] for point in curve] == [5, 10, 15]
    assert curve[1]["mean"] == pytest.approx(0.65)
    means = {name: scores[name]["mean"] for name in MEASURES}
    assert means == pytest.approx(
        {"stream_accuracy": 1.7 / 3, "stream_average": (1 + 0.65 + 1.7 / 3) / 3, "forgetting": 0.5, "stream_at_once": 0.8}
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["protocol.continual.classes=3"], r"protocol.continual.classes=3 does not divide way=4 into tasks; choose way=12"),
        (["protocol.continual.classes=4"], r"protocol.continual.classes=4 does not divide way=4 into tasks; choose way=16"),
        (["episode.uneven=true"], "needs as many examples of every class"),
    ],
)
def test_what_is_no_stream_is_refused(words: list[str], message: str) -> None:
    run = Run(small("algo=protonet", "net.hidden=8", "way=4", "protocol=continual", *words))
    with pytest.raises(UserError, match=message):
        run.episodes("test", run.protocols[0])


@pytest.mark.parametrize("algo", ["matching", "lstm", "mamlpp"])
def test_who_cannot_go_on_is_told(algo: str) -> None:
    with pytest.raises(UserError, match=f"protocol=continual is not possible with algo={algo}: it needs a classifier that goes on"):
        Run(classification(algo, "protocol=continual"))


def test_a_run_tells_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["way=4", "net.norm=running", "trainer.iterations=1", "trainer.val_every=1"]
    train(classification("anil", *words), tmp_path / "run")
    folder = tmp_path / "eval"
    folder.mkdir()
    summary = evaluate(classification("anil", *words, "protocol=continual", "logger.pictures=true"), tmp_path / "run", "best", folder)
    assert (summary["metric"], summary["higher_is_better"]) == ("stream_accuracy", True)
    assert json.loads((folder / "summary.json").read_text())["test"] == summary["test"]
    assert [point["step"] for point in summary["test"]["curve"]] == [1, 2, 3, 4]
    assert np.load(folder / "test_scores.npy").mean() == pytest.approx(summary["test"]["stream_accuracy"]["mean"])
    with Image.open(folder / "continual.png") as picture:
        assert picture.width > 600
    summary_table.show(summary, folder, ("test",))
    shown = capsys.readouterr().out
    assert "one task after the other" in shown
    assert "classes met" in shown
