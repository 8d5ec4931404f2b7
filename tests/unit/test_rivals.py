"""``protocol=rivals``: rivals are plain training, their rates are those that development tasks prefer, and all stand in one curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import engine, quadratics, small

from metarun.errors import UserError
from metarun.experiment import evaluate, train
from metarun.problem import Classification, Regression
from metarun.protocols.episodes import EVERY
from metarun.protocols.rivals import Grid, Rivals
from metarun.run import Run

RULES = ("sgd", "momentum", "nesterov", "rmsprop", "adam")


class Kept:
    """A problem, as far as a protocol asks."""

    def __init__(self, kind: Any) -> None:
        self.metric, self.higher_is_better = kind.metric, kind.higher_is_better


@pytest.mark.parametrize("words", [[], ["algo=symbolic_optimizer", "algo.test_steps=6"]])
@pytest.mark.parametrize("rule", RULES)
def test_a_rival_is_plain_training(rule: str, words: list[str]) -> None:
    run, plain = Run(quadratics(*words)), Run(quadratics("algo=supervised", f"algo.rule={rule}", "algo.rate=0.02", "algo.test_steps=6"))
    tasks = run.episodes("test").batch(range(3))
    assert set(run.algorithm.rivals) == set(RULES)
    rival, theirs = (engine().evaluate(algorithm, tasks, EVERY)["loss"] for algorithm in (run.algorithm.rival(rule, 0.02), plain.algorithm))
    torch.testing.assert_close(rival, theirs)
    assert not torch.allclose(rival, engine().evaluate(run.algorithm, tasks, EVERY)["loss"])


def test_the_rate_is_the_one_that_development_tasks_prefer() -> None:
    pairs = (("adam", 0.1), ("adam", 0.2), ("adam", 0.4), ("sgd", 1.0), ("sgd", 2.0), ("sgd", 3.0))
    scores = [3.0, 1.0, np.nan, 2.0, np.nan, 5.0]
    arrays = {f"{name} {rate}": np.array([score, score]) for (name, rate), score in zip(pairs, scores)}
    errors = Rivals("all").decided(Kept(Regression()), arrays)  # type: ignore[arg-type]
    assert errors.tuned == (("adam", 0.2), ("sgd", 1.0))  # type: ignore[attr-defined]
    hits = Rivals("all").decided(Kept(Classification()), arrays)  # type: ignore[arg-type]
    assert hits.tuned == (("adam", 0.1), ("sgd", 3.0))  # type: ignore[attr-defined]


def test_an_end_of_the_grid_is_told(caplog: pytest.LogCaptureFixture) -> None:
    arrays = {f"adam {rate}": np.array([rate]) for rate in (0.1, 0.2, 0.4)}
    Rivals("all").decided(Kept(Regression()), arrays)  # type: ignore[arg-type]
    assert "the best rate of adam, 0.1, is an end of those that were tried" in caplog.text


def test_a_grid_asks_for_the_last_score_of_every_pair() -> None:
    run = Run(quadratics())
    tasks = run.episodes("val").batch(range(3))
    found = engine().evaluate(run.algorithm, tasks, Grid(pairs=(("sgd", 0.01), ("adam", 0.1))))
    for name, rate in (("sgd", 0.01), ("adam", 0.1)):
        theirs = engine().evaluate(run.algorithm.rival(name, rate), tasks, EVERY)["score"][:, -1]
        torch.testing.assert_close(found[f"{name} {rate}"], theirs)


def test_all_stand_in_one_curve_and_a_trained_run_can_be_asked_later(tmp_path: Path) -> None:
    words = ["protocol=rivals", "protocol.rivals.only=[sgd,adam]", "protocol.rivals.sparse=3", "logger.pictures=true"]
    values = quadratics(*words)
    summary = train(values, tmp_path / "run")
    test = summary["test"]
    assert {name for name in test if name.startswith("rival_")} == {"rival_sgd", "rival_adam"}
    for name in ("sgd", "adam"):
        assert [point["rivals"][name]["mean"] for point in test["curve"]][-1] == test[f"rival_{name}"]["mean"]
        assert test[f"rival_{name}"]["rate"] in Run(values).algorithm.rivals[name]
        assert test[f"rival_{name}"]["difference"] == pytest.approx(test["sse"]["mean"] - test[f"rival_{name}"]["mean"], abs=1e-6)
        # Before the first step all of them are the same.
        assert test["curve"][0]["rivals"][name]["mean"] == pytest.approx(test["curve"][0]["mean"])
    assert (tmp_path / "run" / "rivals.png").stat().st_size > 10_000
    (tmp_path / "later").mkdir()
    later = evaluate(values | {"seed": 0}, tmp_path / "run", "best", tmp_path / "later")
    assert later["test"]["rival_adam"] == test["rival_adam"]


def test_methods_without_rivals_and_rivals_that_are_none_are_refused() -> None:
    with pytest.raises(UserError, match=r"protocol=rivals is not possible with algo=maml: it needs a learned optimizer"):
        Run(small("algo=maml", "protocol=rivals"))
    with pytest.raises(UserError, match=r"there is no rival 'adan'; did you mean 'adam'\? \(known: sgd, momentum"):
        Run(quadratics("protocol=rivals", "protocol.rivals.only=[adan]"))
