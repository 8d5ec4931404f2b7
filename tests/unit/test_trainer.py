"""The trainer on a scripted engine: which checkpoint is best, when it stops, what it logs, how it survives a cut."""

from __future__ import annotations

import json
import logging
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import TIMING, metrics_of, regression, same, small

from metarun.algos.metric.protonet import ProtoNet
from metarun.data.episodes import ClassEpisodes
from metarun.engine import Engine
from metarun.errors import RunError
from metarun.experiment import train
from metarun.protocols.base import Protocol, statistics
from metarun.protocols.calibration import AFTER_SCALING, OF_POOL
from metarun.protocols.episodes import LAST
from metarun.run import Run
from metarun.storage import checkpoint
from metarun.tracking.tracker import Tracker
from metarun.trainer import Interrupted, Trainer

PROTONET = ["algo=protonet", "net.hidden=8", "net.down=stride"]


class Script(Engine):
    """An engine that computes nothing: losses and development scores come from lists, weights change by one a step."""

    def __init__(self, scores: Sequence[float], losses: Callable[[int], float] = lambda step: 1 / (step + 1)) -> None:
        super().__init__(torch.device("cpu"), "fp32", map="vmap", chunk=1)
        self.scores, self.losses, self.steps, self.validations = scores, losses, 0, 0

    def train_on(self, algorithm: Any, episodes: Any, slots: Any, carried: Any, progress: float) -> tuple[dict[str, float], Any]:
        with torch.no_grad():
            next(algorithm.parameters()).add_(1)
        self.steps += 1
        return {"loss": self.losses(self.steps), algorithm.problem.metric: 0.5}, carried

    def score(self, algorithm: Any, episodes: Any, n: int, asked: Protocol, after_block: Callable[[int], None]) -> dict[str, np.ndarray]:
        self.validations += 1
        after_block(n)
        return {"score": np.full((n, 1), self.scores[self.validations - 1]), "loss": np.full((n, 1), 0.7), "step": np.zeros((n, 1))}


Scripted = Callable[..., Trainer]


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Scripted]:
    """Makes trainers on scripted engines; 6 iterations, a validation after every second one."""
    trackers = []

    def make(script: Script, values: dict[str, Any] | None = None, **settings: Any) -> Trainer:
        run = Run(values or small(*PROTONET))
        outer = run.valid.optim.build(run.algorithm.parameters())
        trackers.append(Tracker(tmp_path, every=2, tensorboard=False, progress=False))
        settings = {**run.valid.trainer.values, "iterations": 6, "val_every": 2, "val_episodes": 4, **settings}
        return Trainer(run.algorithm, outer, script, trackers[-1], tmp_path, run.episodes("train"), run.episodes("val"), LAST, **settings)

    yield make
    for tracker in trackers:
        tracker.close()


@pytest.mark.parametrize(
    ("problem", "scores", "best"),
    [
        (lambda: small(*PROTONET), [0.2, 0.9, 0.5], 4),
        (lambda: regression("maml"), [3.0, 4.0, 0.5], 6),
        (lambda: regression("maml"), [1.0, 4.0, 1.0], 2),
        (lambda: small(*PROTONET), [math.nan, math.nan, 0.1], 6),
        (lambda: regression("maml"), [2.0, math.nan, 3.0], 2),
    ],
)
def test_the_best_checkpoint_is_the_one_that_validation_prefers(
    scripted: Scripted, tmp_path: Path, problem: Callable[[], dict[str, Any]], scores: list[float], best: int
) -> None:
    trainer = scripted(Script(scores), problem())
    start = next(trainer.algorithm.parameters()).detach().clone()
    trainer.fit()
    metric = trainer.algorithm.problem.metric
    assert trainer.progress.best_step == best
    assert trainer.progress.best[metric] == {"mean": scores[best // 2 - 1], "ci95": 0, "n": 4}
    name = next(iter(trainer.algorithm.state_dict()))
    for file, steps in (("best", best), ("last", 6)):
        stored = checkpoint.load(tmp_path / "checkpoints" / f"{file}.pt")
        assert stored["progress"]["iteration"] == steps
        torch.testing.assert_close(stored["algorithm"][name], start + steps)


def test_patience_counts_validations_without_improvement(scripted: Scripted, tmp_path: Path) -> None:
    trainer = scripted(Script([0.5, 0.6, 0.6, 0.1, 0.9]), iterations=100, patience=2)
    trainer.fit()
    assert (trainer.progress.iteration, trainer.progress.best_step) == (8, 4)


def test_scores_that_are_no_numbers_are_no_improvement(scripted: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    trainer = scripted(Script([math.nan] * 9), iterations=100, patience=2)
    trainer.fit()
    assert (trainer.progress.iteration, trainer.progress.best_step) == (6, 2)
    assert caplog.messages[1] == (
        "iteration 4: development accuracy nan ± nan: adaptation diverges in 4 of 4 episodes; "
        "try a smaller algo.inner_lr or fewer algo.test_steps"
    )


def test_the_last_iteration_is_validated_even_off_beat(scripted: Scripted, tmp_path: Path) -> None:
    script = Script([0.1, 0.2, 0.3])
    scripted(script, iterations=5, val_every=2).fit()
    assert (script.steps, script.validations) == (5, 3)


def test_nothing_to_train_is_validated_once(scripted: Scripted, tmp_path: Path) -> None:
    script = Script([0.4])
    trainer = scripted(script, iterations=0)
    trainer.fit()
    assert (script.steps, script.validations, trainer.progress.best_step) == (0, 1, 0)
    assert (tmp_path / "checkpoints" / "best.pt").is_file()


def test_time_runs_out_after_max_minutes_and_the_rest_is_validated(
    scripted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    def tick(step: int) -> float:
        clock[0] += 20.0  # seconds a step
        return 1.0

    script = Script([0.1, 0.2], tick)
    trainer = scripted(script, iterations=1000, val_every=500, max_minutes=1.0)
    trainer.fit()
    assert (trainer.progress.iteration, script.validations) == (3, 1)
    assert trainer.finish().wall_s == 60


def test_a_loss_that_is_no_number_fails_in_one_line_and_keeps_the_last_good_checkpoint(scripted: Scripted, tmp_path: Path) -> None:
    trainer = scripted(Script([0.1] * 9, lambda step: math.nan if step == 4 else 1.0))
    with pytest.raises(RunError, match=r"not a number any more at iteration 4; try a smaller optim\.lr") as caught:
        trainer.fit()
    assert "\n" not in str(caught.value)
    assert checkpoint.load(tmp_path / "checkpoints" / "last.pt")["progress"]["iteration"] == 2


def test_metrics_are_means_since_the_last_logged_point(scripted: Scripted, tmp_path: Path) -> None:
    trainer = scripted(Script([0.2, 0.3, 0.4], lambda step: float(step)))
    trainer.fit()
    trainer.tracker.close()
    lines = metrics_of(tmp_path)
    assert [(line["step"], line["split"]) for line in lines] == [(s, split) for s in (2, 4, 6) for split in ("train", "val")]
    assert [line["loss"] for line in lines if line["split"] == "train"] == [1.5, 3.5, 5.5]
    assert [line["accuracy"] for line in lines if line["split"] == "val"] == [0.2, 0.3, 0.4]
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert set(first) == {"step", "split", "loss", "accuracy", "lr", "grad_norm", "tasks_per_s"}


def test_statistics_are_the_contracts() -> None:
    values = np.array([0.2, 0.4, 0.9, 0.1])
    deviation = math.sqrt(((values - 0.4) ** 2).mean())  # population, ddof 0
    assert statistics(values) == {"mean": pytest.approx(0.4), "ci95": pytest.approx(1.96 * deviation / 2), "n": 4}


def interrupt_when(condition: Callable[[int, Any], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Send Ctrl-C when an engine call (counted from 1, with its name) meets the condition."""
    calls = []
    for name in ("train_on", "evaluate"):

        def counted(self: Engine, *arguments: Any, _name: str = name, _original: Any = getattr(Engine, name), **more: Any) -> Any:
            calls.append(_name)
            if condition(calls.count(_name), _name):
                signal.raise_signal(signal.SIGINT)
            return _original(self, *arguments, **more)

        monkeypatch.setattr(Engine, name, counted)


@pytest.mark.parametrize(("where", "when"), [("train_on", n) for n in range(1, 6)] + [("evaluate", n) for n in (1, 2, 3)])
def test_a_run_cut_anywhere_and_resumed_ends_with_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, when: int
) -> None:
    """Also within a validation: the third ``evaluate`` is that of the last iteration."""
    values = small(*PROTONET, "trainer.iterations=5")
    straight = train(values, tmp_path / "straight")
    with monkeypatch.context() as patch:
        interrupt_when(lambda count, name: (name, count) == (where, when), patch)
        with pytest.raises(Interrupted):
            train(values, tmp_path / "cut")
    resumed = train(values, tmp_path / "cut", resume=True)
    assert {k: v for k, v in resumed.items() if k not in TIMING} == {k: v for k, v in straight.items() if k not in TIMING}
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "straight")
    for name in ("best", "last"):
        a, b = (checkpoint.load(tmp_path / run / "checkpoints" / f"{name}.pt") for run in ("straight", "cut"))
        assert same(a["algorithm"], b["algorithm"])
        assert same(a["outer"], b["outer"])


def test_test_episodes_are_made_only_after_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, calls = ClassEpisodes.batch, []

    def watched(self: ClassEpisodes, indices: Sequence[int]) -> Any:
        calls.append(self.split)
        return batch(self, indices)

    monkeypatch.setattr(ClassEpisodes, "batch", watched)
    train(small(*PROTONET), tmp_path)
    first_test = calls.index("test")
    assert set(calls[:first_test]) == {"train", "val"}
    assert set(calls[first_test:]) == {"test"}
    assert (tmp_path / "checkpoints" / "best.pt").is_file()


def test_the_test_is_of_the_best_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score, validations = Engine.score, []

    def worse_and_worse(self: Engine, algorithm: Any, episodes: Any, n: int, asked: Any, *rest: Any, **more: Any) -> Any:
        result = score(self, algorithm, episodes, n, asked, *rest, **more)
        if episodes.split == "val":
            validations.append(episodes)
            result["score"] = result["score"] + 100 * len(validations)  # squared errors
        return result

    monkeypatch.setattr(Engine, "score", worse_and_worse)
    values = regression("maml")
    summary = train(values, tmp_path)
    assert summary["best_step"] == 2
    run = Run(values)
    for name, tested in (("best", True), ("last", False)):
        run.algorithm.load_state_dict(checkpoint.load(tmp_path / "checkpoints" / f"{name}.pt")["algorithm"])
        scores = score(run.engine, run.algorithm, run.episodes("test"), 6, LAST, lambda done: None)["score"][:, -1]
        assert np.allclose(scores, np.load(tmp_path / "test_scores.npy"), rtol=1e-6) == tested


def test_validation_uses_the_same_episodes_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, calls = ClassEpisodes.batch, []

    def watched(self: ClassEpisodes, indices: Sequence[int]) -> Any:
        calls.append((self.split, tuple(indices)))
        return batch(self, indices)

    monkeypatch.setattr(ClassEpisodes, "batch", watched)
    train(small(*PROTONET), tmp_path)
    assert {indices for split, indices in calls if split == "val"} == {(0,), (0, 1, 2, 3)}  # one to learn the shapes
    trained = [index for split, indices in calls if split == "train" for index in indices]
    assert trained == list(range(12))  # 6 iterations of 2 tasks, each once


def test_the_summary_and_the_folder_are_the_contracts(tmp_path: Path) -> None:
    values = small("algo=maml", "net.hidden=8", "net.down=stride")
    summary = train(values, tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    keys = "algo data way shot query seed parameters best_step val test episodes_sha256 bn_mode wall_s tasks_per_s peak_memory_mb versions"
    assert set(keys.split()) <= set(summary)
    assert {"config.yaml", "metrics.jsonl", "summary.json", "test_scores.npy", "checkpoints"} <= {path.name for path in tmp_path.iterdir()}
    scores = np.load(tmp_path / "test_scores.npy")
    accuracy = summary["test"]["accuracy"]
    assert accuracy == {"mean": scores.mean(), "ci95": pytest.approx(1.96 * scores.std() / math.sqrt(len(scores))), "n": 6}
    assert [point["step"] for point in summary["test"]["curve"]] == [0, 1, 2, 3]
    assert set(summary["test"]["curve"][0]) == {"step", "mean", "ci95"}
    assert summary["test"]["curve"][-1]["mean"] == accuracy["mean"]
    assert set(summary["test"]) == {"accuracy", "loss", "nll", "brier", *OF_POOL, *AFTER_SCALING, "curve"}
    assert set(summary["val"]["accuracy"]) == {"mean", "ci95", "n"}
    assert summary["bn_mode"] == "batch"
    assert summary["parameters"] == sum(p.numel() for p in Run(values).algorithm.parameters())


def test_regression_reports_mse(tmp_path: Path) -> None:
    summary = train(regression("maml"), tmp_path)
    assert set(summary["test"]) == {"mse", "loss", "curve"}
    assert summary["test"]["mse"]["mean"] == pytest.approx(summary["test"]["loss"]["mean"])
    assert summary["bn_mode"] == "none"


def test_running_statistics_are_calibrated_before_validation(tmp_path: Path) -> None:
    train(small("algo=protonet", "net.hidden=8", "net.norm=running"), tmp_path)
    stored = checkpoint.load(tmp_path / "checkpoints" / "best.pt")["algorithm"]
    means = [value for name, value in stored.items() if name.endswith("norm.mean")]
    assert means
    assert all(mean.abs().sum() > 0 for mean in means)


def test_running_statistics_are_those_of_images_as_evaluation_sees_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(ProtoNet, "calibrate", lambda self, tasks: seen.extend(task.query.x for task in tasks))
    values = small("algo=protonet", "net.norm=running", "augment=characters", "trainer.iterations=1")
    train(values, tmp_path)
    plain = Run({**values, "augment": {**small()["augment"]}}).episodes("train")
    assert len(seen) > 1
    assert all(torch.equal(x, plain.batch([i]).query.x[0]) for i, x in enumerate(seen))
