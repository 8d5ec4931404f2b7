"""Whole runs of every algorithm, through metarun.run.train: repeatable, resumable bit for bit, frugal, and able to learn."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import (
    LEARNERS,
    LEARNING_CLASSIFIERS,
    PROBLEMS,
    TIMING,
    Builder,
    bandits,
    by_family,
    classification,
    control,
    engine,
    interrupt_after,
    metrics_of,
    regression,
    same,
)
from torch import Tensor
from torch.utils._pytree import tree_leaves

from metarun.experiment import train
from metarun.protocols.episodes import EVERY, LAST
from metarun.run import Run
from metarun.storage import checkpoint
from metarun.trainer import Interrupted

# `make test` lets these learn, one or two of each family; `make test-all` all of them.
TRAINED = {"maml", "alpaca", "snail", "protonet", "relation", "r2d2", "versa", "imaginary", "protonet_zeroshot"}


def results(folder: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """All the numbers that a run leaves behind, without timings."""
    last, best = (checkpoint.load(folder / "checkpoints" / f"{name}.pt") for name in ("last", "best"))
    return {
        "summary": {key: value for key, value in summary.items() if key not in TIMING},
        "weights": [last["algorithm"], last["outer"], best["algorithm"]],
        "scores": np.load(folder / "test_scores.npy").tolist(),
        "metrics": metrics_of(folder),
    }


FEW = ("engine.record=false", "trainer.iterations=4", "trainer.val_episodes=2", "trainer.test_episodes=2")


# That a recording has the bits of what it records is asked in test_recording.
@pytest.mark.parametrize("words", [FEW, pytest.param((), marks=pytest.mark.slow)])
@pytest.mark.parametrize(("algo", "problem"), by_family(LEARNERS))
def test_a_seed_gives_the_same_numbers_straight_and_resumed_and_another_gives_others(
    algo: str, problem: Builder, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = results(tmp_path / "straight", train(problem(algo, *words), tmp_path / "straight"))
    with monkeypatch.context() as patch:
        interrupt_after(3, patch)
        with pytest.raises(Interrupted):
            train(problem(algo, *words), tmp_path / "cut")
    assert checkpoint.load(tmp_path / "cut" / "checkpoints" / "last.pt")["progress"]["iteration"] == 3
    assert not (tmp_path / "cut" / "summary.json").exists()
    assert same(results(tmp_path / "cut", train(problem(algo, *words), tmp_path / "cut", resume=True)), straight)
    other = results(tmp_path / "other", train(problem(algo, *words, "seed=1"), tmp_path / "other"))
    assert other["summary"]["episodes_sha256"] != straight["summary"]["episodes_sha256"]
    assert not same(other["weights"], straight["weights"])
    assert not same(other["metrics"], straight["metrics"])


@pytest.mark.parametrize("given", [("engine.record=false",), pytest.param((), marks=pytest.mark.slow)])
@pytest.mark.parametrize(("algo", "problem"), by_family([param for param in PROBLEMS if param not in LEARNERS]))
def test_what_has_nothing_to_learn_goes_straight_to_its_test(algo: str, problem: Builder, given: tuple[str, ...], tmp_path: Path) -> None:
    def done(name: str, *words: str) -> dict[str, Any]:
        return results(tmp_path / name, train(problem(algo, *given, *words), tmp_path / name))

    first, again = map(done, ("first", "again"))
    assert same(first, again)
    summary = first["summary"]
    assert not any(parameter.requires_grad for parameter in Run(problem(algo)).algorithm.parameters())
    assert (summary["iterations"], summary["best_step"]) == (0, 0)
    assert done("other", "seed=1")["summary"]["episodes_sha256"] != summary["episodes_sha256"]


@pytest.mark.parametrize(("algo", "problem"), PROBLEMS)
def test_evaluation_leaves_no_graph_and_lets_go_of_past_states(algo: str, problem: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(problem(algo))
    algorithm, tasks = run.algorithm, run.episodes("val").batch([0])
    monkeypatch.setattr(algorithm, "steps", lambda context, train: 5)
    begin, step = algorithm.begin, algorithm.step
    made: list[list[weakref.ref[Tensor]]] = []  # by inner step, what is new in its state
    sizes: list[int] = []  # by inner step, the numbers in its state

    def watched(result: Any, old: Any) -> Any:
        news = [leaf for leaf in tree_leaves(result) if not any(leaf is other for other in tree_leaves(old))]
        assert all(leaf.grad_fn is None for leaf in news)
        made.append([weakref.ref(leaf) for leaf in news])
        return result

    def watched_step(state: Any, context: Any, k: int) -> Any:
        if k >= 2:
            kept = tree_leaves(state)  # what was made once, such as prototypes, may be handed on
            alive = [ref() for ref in made[k - 2] if ref() is not None]
            assert all(any(leaf is other for other in kept) for leaf in alive), f"step {k} finds remains of step {k - 2}"
            sizes.append(sum(leaf.numel() for leaf in kept))
            assert sizes[-1] == sizes[0], f"the state grows: {sizes} numbers"
        return watched(step(state, context, k), (state, context))

    monkeypatch.setattr(algorithm, "begin", lambda context: watched(begin(context), (context, list(algorithm.parameters()))))
    monkeypatch.setattr(algorithm, "step", watched_step)
    scores = engine("loop").evaluate(algorithm, tasks, EVERY)
    assert len(made) == 6
    assert all(values.grad_fn is None for values in scores.values())
    assert scores["score"].shape == scores["loss"].shape == (1, 6)
    assert all(parameter.grad is None for parameter in algorithm.parameters())


def scores_before(values: dict[str, Any]) -> float:
    """Mean test score of the untrained learner, fully adapted."""
    run = Run(values)
    scores = run.engine.score(run.algorithm, run.episodes("test"), values["trainer"]["test_episodes"], LAST, lambda done: None)
    return float(scores["score"].mean())


# What a method needs to learn anything at all that a toy run takes away: training from random weights takes more than three steps.
SETTINGS = {
    "lstm_optimizer": {"inner_steps": 8, "horizon": 16, "test_steps": 16, "scale": 0.1},
    "hyperparameters": {"inner_steps": 8, "test_steps": 8},
    "mlp_optimizer": {"inner_steps": 8, "horizon": 16, "test_steps": 16, "nominal": False},
    "symbolic_optimizer": {"inner_steps": 16, "horizon": 16, "test_steps": 16, "rates": [0.001]},
    "lstm": {"hidden": 64},
    "mann": {"hidden": 64, "slots": 32, "width": 16},
    "snail": {"filters": 32, "keys": [32, 32, 32], "values": [32, 32, 32]},
    "incontext": {"width": 32, "layers": 2},
    "emaml": {"members": 2},
    "cnp": {"width": 64},
    "attentive_np": {"width": 64},
    "bmaml": {"particles": 2},  # more of them answer well untrained
    "dkt": {"length": 0.1},  # a process whose kernel suits these waves has little to learn
}
# Iterations: more, where what a task is has to be found out before anything can be learned of it; less, where a few numbers are learned.
LONGER = {"lstm": 800, "cnp": 400, "incontext": 400, "hyperparameters": 50, "symbolic_optimizer": 50}
SURER = {
    "cnp": 200,
    "attentive_np": 200,
    "mlp_optimizer": 300,
}  # iterations, where a deviation that is large at first makes errors of the mean cheap
# optim.lr, where the common one is too large to classify by, or where logarithms of rates are learned.
RATES = {"mann": 0.003, "snail": 0.003, "incontext": 0.003, "hyperparameters": 0.3, "symbolic_optimizer": 0.3}
# A lower bar than the others': SGD with momentum from random weights reaches 0.42 to 0.49 in this test, at rates of 0.03 to 1.
GAINS = {"hyperparameters": 0.1, "mlp_optimizer": 0.1, "symbolic_optimizer": 0.1}
# So few steps can fit a piece of the wave only.
WAVES = {algo: ["data.domain=[-2,2]"] for algo in ("lstm_optimizer", "mlp_optimizer", "symbolic_optimizer", "hyperparameters")}
PULLING = {"rl2"}  # what has a memory to learn is tried with arms, in place of goals
LEARNING = ["trainer.meta_batch=4", "trainer.val_every=200", "trainer.val_episodes=20", "trainer.test_episodes=40"]


def rate(algo: str) -> str:
    """The outer learning rate of a short training."""
    return f"optim.lr={RATES.get(algo, 0.01)}"


# Columns in any order tell no pattern, see test_tables; where nothing is corrupt there is nothing to rate, see test_weights.
ELSEWHERE = {"pfn", "datarater"}


def trained(algos: Iterable[str]) -> list[Any]:
    """Parameters, marked but for ``TRAINED``."""
    return [pytest.param(algo, marks=[] if algo in TRAINED else pytest.mark.slow) for algo in algos]


@pytest.mark.parametrize("algo", trained(algo for algo in LEARNING_CLASSIFIERS if algo not in ELSEWHERE))
def test_it_learns_to_classify(algo: str, tmp_path: Path) -> None:
    # Five images of a class in training: Reptile learns from what the minibatches of a task have in common.
    values = classification(
        algo, "query=3", "episode.train.shot=5", "net.down=stride", f"trainer.iterations={LONGER.get(algo, 200)}", *LEARNING, rate(algo)
    )
    values["algo"] |= SETTINGS.get(algo, {})
    chance = 1 / 3
    assert scores_before(values) < chance + 0.15
    assert train(values, tmp_path)["test"]["accuracy"]["mean"] > chance + GAINS.get(algo, 0.3)


@pytest.mark.parametrize("algo", trained(param.values[0] for param in LEARNERS if param.values[1] is regression))
def test_it_learns_to_regress(algo: str, tmp_path: Path) -> None:
    words = ["data.amplitude=[2,3]", "data.phase=[0,0.5]", "shot=10", "query=10", f"trainer.iterations={SURER.get(algo, 60)}"]
    values = regression(algo, *words, *LEARNING, rate(algo), *WAVES.get(algo, []))
    values["algo"] |= SETTINGS.get(algo, {})
    assert train(values, tmp_path)["test"]["mse"]["mean"] < scores_before(values) / 4


@pytest.mark.parametrize("algo", [param.values[0] for param in LEARNERS if param.values[1] is control and param.values[0] not in PULLING])
def test_it_learns_to_act(algo: str, tmp_path: Path) -> None:
    values = control(algo, "data.horizon=20", "shot=20", "query=10", "trainer.iterations=120", *LEARNING, rate(algo))
    summary = train(values, tmp_path)
    trivial, oracle = (summary["bounds"][name]["mean"] for name in ("trivial", "oracle"))
    # Goals lie all around: what does not adapt can do no better than to stay where it is.
    assert scores_before(values) < trivial < summary["test"]["return"]["mean"] - 0.25 * (oracle - trivial)


@pytest.mark.parametrize("algo", PULLING)
def test_it_learns_to_pull(algo: str, tmp_path: Path) -> None:
    values = bandits(algo, "data.horizon=10", "data.arms=2", "shot=0", "query=20", "trainer.iterations=150", *LEARNING, rate(algo))
    summary = train(values, tmp_path)
    random, oracle = (summary["bounds"][name]["mean"] for name in ("random", "oracle"))
    assert abs(scores_before(values) - random) < 0.2 * (oracle - random)
    assert summary["test"]["return"]["mean"] > random + 0.3 * (oracle - random)
