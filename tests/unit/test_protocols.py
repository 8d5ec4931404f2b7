"""Protocols: which steps a curve shows, one adaptation for several, methods that cannot be asked, whole runs and evaluations of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import double, engine, small

from metarun.errors import UserError
from metarun.experiment import evaluate, train
from metarun.protocols.base import Together
from metarun.protocols.calibration import Calibration
from metarun.protocols.episodes import EVERY, LAST, OfEpisodes
from metarun.protocols.verification import MEASURES, Verification
from metarun.run import Run
from metarun.task import Task, select


@pytest.mark.parametrize(
    ("curve", "steps", "examples", "points"),
    [
        ("all", 3, 5, [0, 1, 2, 3]),
        ("last", 3, 5, [3]),
        ("log", 0, 5, [0]),
        ("log", 1, 5, [0, 1]),
        ("log", 8, 5, [0, 1, 2, 4, 8]),
        ("log", 9, 5, [0, 1, 2, 4, 8, 9]),
        ("auto", 20, 5, [*range(21)]),
        ("auto", 21, 5, [0, 1, 2, 4, 8, 16, 21]),
        ("auto", 25, 25, [*range(26)]),
    ],
)
def test_the_points_of_a_curve(curve, steps, examples, points) -> None:
    assert [*OfEpisodes(curve).points(steps, examples)] == points


@pytest.mark.parametrize("how", [engine(), engine("loop"), engine(record=False)])
def test_a_thin_curve_is_a_part_of_the_whole(how) -> None:
    values = small("algo=maml", "net.hidden=8")
    run = Run(values | {"algo": values["algo"] | {"test_steps": 11}})
    algorithm, tasks = run.algorithm.double().eval(), double(run.episodes("test").batch(range(3)))
    whole, thin, last = (how.evaluate(algorithm, tasks, asked) for asked in (EVERY, OfEpisodes("log"), LAST))
    assert thin["step"][0].tolist() == [0, 1, 2, 4, 8, 11]
    for name in ("score", "loss"):
        torch.testing.assert_close(thin[name], whole[name][:, thin["step"][0]], rtol=1e-9, atol=0)
        torch.testing.assert_close(last[name], whole[name][:, -1:], rtol=1e-9, atol=0)


def test_scores_without_a_loss_are_none() -> None:
    run = Run(small("algo=maml", "net.hidden=8", "algo.inner_lr=1e20", "algo.test_steps=3"))
    found = engine().evaluate(run.algorithm.eval(), run.episodes("test").batch(range(2)), EVERY)
    assert found["score"][:, -1].isnan().all()
    assert found["score"][:, 0].isfinite().all()


def test_several_share_one_adaptation() -> None:
    """The same numbers as each alone, from a third of the calls of ``begin`` and ``predict``."""
    run = Run(small("algo=protonet", "net.hidden=8"))
    tasks, calls = run.episodes("test").batch(range(3)), []
    begin, predict = run.algorithm.begin, run.algorithm.predict
    run.algorithm.begin = lambda context: calls.append("begin") or begin(context)  # type: ignore[method-assign]
    run.algorithm.predict = lambda state, x: calls.append("predict") or predict(state, x)  # type: ignore[method-assign]
    how, three = engine("loop"), (EVERY, Verification("all"), Calibration("all"))
    alone = {name: value for one in three for name, value in how.evaluate(run.algorithm, tasks, one).items()}
    assert calls == 9 * ["begin", "predict"]
    calls.clear()
    both = how.evaluate(run.algorithm, tasks, Together(these=three))
    assert calls == 3 * ["begin", "predict"]
    assert set(both) == set(alone)
    assert all(torch.equal(both[name], alone[name]) for name in both)


def test_a_method_that_cannot_verify_is_told() -> None:
    with pytest.raises(UserError, match=r"protocol=verification is not possible with algo=maml: it needs scores that mean the same"):
        Run(small("algo=maml", "net.hidden=8", "protocol=verification"))
    run = Run(small("algo=maml", "net.hidden=8"))
    assert [part.name for asked in run.protocols for part in asked.parts] == ["episodes", "calibration"]


def test_what_is_asked_is_in_the_summary(tmp_path: Path) -> None:
    values = small("algo=protonet", "net.hidden=8")
    both = train(values, tmp_path / "both")
    assert (both["protocol"], both["metric"]) == (["episodes", "verification", "calibration"], "accuracy")
    for words, names, metric, better in (
        (["protocol=episodes"], ["episodes"], "accuracy", True),
        (["protocol=verification"], ["verification"], "auc", True),
        (["protocol=[verification,episodes]"], ["verification", "episodes"], "auc", True),
        (["protocol=[calibration,episodes]"], ["calibration", "episodes"], "nll", False),
    ):
        folder = tmp_path / "-".join(names)
        folder.mkdir()
        again = evaluate(small("algo=protonet", "net.hidden=8", *words), tmp_path / "both", "best", folder)
        assert (again["protocol"], again["metric"], again["higher_is_better"]) == (names, metric, better)
        assert json.loads((folder / "summary.json").read_text())["test"] == again["test"]
        for name in {"accuracy", *MEASURES} & set(again["test"]):
            assert again["test"][name] == both["test"][name]
        assert ("auc" in again["test"]) == ("verification" in names)
        # Kept for comparisons pair by pair is what runs are compared by, or nothing.
        assert (folder / "test_scores.npy").exists() == (metric != "auc")
        if metric != "auc":
            assert np.load(folder / "test_scores.npy").mean() == pytest.approx(again["test"][metric]["mean"])


def test_validation_asks_once_an_episode_whatever_the_curve() -> None:
    values = small("algo=protonet", "net.hidden=8", "trainer.curve=all")
    run = Run(values | {"algo": small("algo=maml")["algo"]})
    assert [*run.protocols[0].points(3, 5)] == [0, 1, 2, 3]
    assert [*run.validation.points(3, 5)] == [3]
    assert set(Run(values).validation.measure(Run(values).algorithm.eval(), _task(values), scanned=False)) >= {"score", "same", "logits"}


def _task(values: dict[str, Any]) -> Task:
    return select(Run(values).episodes("val").batch([0]), 0)
