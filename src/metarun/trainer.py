"""Meta-train, validate on development tasks, keep the best, meta-test once.
Names no algorithm and knows no task axis: it hands stacked tasks to the engine and numbers to the tracker."""

from __future__ import annotations

import logging
import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Gt

from metarun.algorithm import Algorithm, State
from metarun.data.episodes import Episodes
from metarun.data.slots import slots
from metarun.engine import Engine
from metarun.errors import RunError, UserError
from metarun.optim import MetaOptimizer
from metarun.protocols.base import Curve, Protocol
from metarun.runtime.distributed import Alone
from metarun.runtime.profiling import profiled
from metarun.runtime.recording import EAGER
from metarun.runtime.signals import Interrupted, StopFlag
from metarun.storage import checkpoint
from metarun.task import select
from metarun.tracking.tracker import Tracker

log = logging.getLogger(__name__)
FIRST = EAGER + 1  # steps of a process that compile and record: their time says nothing of the others'
CALIBRATION_TASKS = 32  # training episodes behind the population statistics of norm=running


@dataclass
class Progress:
    """All of a run's state beside weights and optimizer; plain numbers, kept in the checkpoint."""

    iteration: int = 0  # training iterations done
    validated: int = 0  # iteration of the last validation
    best_step: int = 0
    best: dict[str, dict[str, float]] = field(default_factory=dict)  # development statistics of the best checkpoint
    stale: int = 0  # validations since the best one
    window: dict[str, float] = field(default_factory=dict)  # sums of training metrics since the last logged point
    window_size: int = 0
    train_s: float = 0.0  # spent in training steps, but for the first of each process
    timed: int = 0  # how many steps that is
    wall_s: float = 0.0  # spent altogether, in all processes
    metrics_bytes: int = 0
    since: int = 0  # the iteration before which no inner loop was begun that could go on

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Progress:
        """What a checkpoint holds.

        Raises:
            RunError: it holds something else.
        """
        blank = asdict(cls())
        if any(type(value) is not type(blank.get(name)) for name, value in stored.items()):
            raise RunError("the checkpoint's progress is not that of a run of metarun; start the run again")
        return cls(**{"timed": stored.get("iteration", 0)} | stored)  # the first checkpoints timed every step

    def tasks_per_s(self, meta_batch: int) -> float:
        """Training throughput so far."""
        return self.timed * meta_batch / max(self.train_s, 1e-9)


def asked_of(
    engine: Engine, algorithm: Algorithm, episodes: Episodes, n: int, asked: Protocol, tracker: Tracker, label: str, stop: StopFlag
) -> dict[str, np.ndarray]:
    """``Engine.score`` under a progress display, ready to be interrupted."""

    def after_block(done: int) -> None:
        tracker.show(label, done, n, {})
        stop.check(engine.world)

    return engine.score(algorithm, episodes, n, asked, after_block)


def divergence(scores: np.ndarray | None) -> str:
    """What to say of the scores of episodes, some of which may be no numbers; nothing if all are."""
    if scores is None or not (lost := int(np.isnan(scores).sum())):
        return ""
    return f": adaptation diverges in {lost} of {len(scores)} episodes; try a smaller algo.inner_lr or fewer algo.test_steps"


class Trainer:
    """Runs one experiment.

    Args:
        asked: how validation asks the learner.
        iterations: meta-training iterations; none for a method that has nothing to learn.
        meta_batch: tasks per iteration.
        val_every: iterations between validations (and checkpoints).
        val_episodes: development episodes per validation, the same ones each time; 0 for none, of a method that has nothing to learn.
        test_episodes: episodes of the meta-test.
        patience: stop after so many validations without improvement; null for never.
        max_minutes: stop meta-training after so many minutes of wall time, over all resumed processes; null for never.
        profile: record a few training steps, and tell where their time goes.
        curve: at which inner steps the test takes the adaptation curve: ``all``; ``log``, 0, 1, 2, 4, 8, … and the last; the ``last``
            alone; or ``auto``, whichever of the first two it can afford.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        optimizer: MetaOptimizer,
        engine: Engine,
        tracker: Tracker,
        folder: Path,
        train: Episodes,
        val: Episodes,
        asked: Protocol,
        *,
        iterations: Annotated[int, Ge(0)],
        meta_batch: Annotated[int, Ge(1)],
        val_every: Annotated[int, Ge(1)],
        val_episodes: Annotated[int, Ge(0)],
        test_episodes: Annotated[int, Ge(1)],
        patience: Annotated[int, Ge(1)] | None,
        max_minutes: Annotated[float, Gt(0)] | None,
        profile: bool = False,
        curve: Curve = "auto",
    ) -> None:
        if algorithm.learns and not val_episodes:
            raise UserError("trainer.val_episodes=0 is for methods that have nothing to learn; here checkpoints are chosen by validation")
        self.algorithm, self.optimizer, self.engine, self.tracker = algorithm, optimizer, engine, tracker
        self.checkpoints, self.train, self.val, self.asked = folder / "checkpoints", train, val, asked
        self.iterations = iterations if algorithm.learns else 0
        self.meta_batch, self.val_every, self.val_episodes = meta_batch, val_every, val_episodes
        self.test_episodes, self.patience, self.max_minutes = test_episodes, patience, max_minutes
        self.profile = folder / "profile" if profile and engine.world.rank == 0 else None
        self.progress = Progress()
        self.carried: State = ()  # of this rank's places: where inner loops that go on in the next iteration stand
        self.steps = 0  # taken by this process
        self.started = time.monotonic()

    def fit(self) -> None:
        """Meta-train from wherever ``progress`` stands; afterwards ``best.pt`` holds the best checkpoint.

        Raises:
            Interrupted: a signal came; ``last.pt`` is saved.
            Alone: another rank is gone; ``last.pt`` is saved if this is rank 0.
            RunError: the loss is no longer a number; the last good checkpoint stays.
        """
        p = self.progress
        with StopFlag() as stop, profiled(self.profile) if self.profile else nullcontext(lambda: None) as step_done:
            try:
                while True:
                    finished = self._finished()
                    if (p.iteration > p.validated and (finished or p.iteration % self.val_every == 0)) or (finished and not p.best):
                        self._validate(stop)
                        finished = self._finished()
                    if finished:
                        stop.check(self.engine.world)  # a signal during the last validation
                        if p.iteration < self.iterations:
                            why = "max_minutes" if self.patience is None or p.stale < self.patience else "patience"
                            log.info("meta-training ends at iteration %d of %d: trainer.%s", p.iteration, self.iterations, why)
                        return
                    self._train_step()
                    step_done()
                    stop.check(self.engine.world)
            except (Interrupted, Alone):
                stop.leave()
                self.save("last")
                raise

    def _finished(self) -> bool:
        p = self.progress
        late = self.max_minutes is not None and self.engine.world.any(self._wall() >= 60 * self.max_minutes)
        return p.iteration >= self.iterations or late or (self.patience is not None and p.stale >= self.patience)

    def _wall(self) -> float:
        return self.progress.wall_s + time.monotonic() - self.started

    def _train_step(self) -> None:
        p = self.progress
        if self.steps < FIRST:
            self.tracker.show("train", p.iteration, self.iterations, {}, "compiling and recording the step")
        begun = time.monotonic()
        done = p.iteration / max(self.iterations, 1)
        learner = self.algorithm
        places = slots(p.iteration, self.meta_batch, learner.unrolls, learner.inner_steps, p.since)
        metrics, self.carried = self.optimizer.estimate(self.engine, learner, self.train, places, self.carried, done)
        if all(map(math.isfinite, metrics.values())):
            metrics |= self.optimizer.step(done)
        if not all(map(math.isfinite, metrics.values())):
            raise RunError(
                f"the training loss or its gradient is not a number any more at iteration {p.iteration + 1}; try a smaller optim.lr "
                "or algo.inner_lr (algo.scale or algo.init of what trains from scratch), optim.clip_norm=10, or precision=fp32"
            )
        p.iteration += 1
        self.steps += 1
        if self.steps > FIRST:
            p.train_s, p.timed = p.train_s + time.monotonic() - begun, p.timed + 1
        for name, value in metrics.items():
            p.window[name] = p.window.get(name, 0.0) + value
        p.window_size += 1
        if p.iteration % self.tracker.every == 0:
            means = {name: total / p.window_size for name, total in p.window.items()}
            self.tracker.log(p.iteration, "train", {**means, "tasks_per_s": p.tasks_per_s(self.meta_batch)})
            p.window, p.window_size = {}, 0
        shown = {name: metrics[name] for name in ("loss", self.algorithm.problem.metric) if name in metrics}
        self.tracker.show("train", p.iteration, self.iterations, {**shown, "tasks/s": p.tasks_per_s(self.meta_batch)})

    def _validate(self, stop: StopFlag) -> None:
        p, problem = self.progress, self.algorithm.problem
        # As evaluation will see them: what augmentation does to the statistics (it blurs) would be missing there.
        self.algorithm.calibrate(select(self.train.plain.batch([i]), 0) for i in range(CALIBRATION_TASKS))
        if not self.val_episodes:
            self.save("best")
            self.save("last")
            return
        values = asked_of(self.engine, self.algorithm, self.val, self.val_episodes, self.asked, self.tracker, "validate", stop)
        result, _ = self.asked.summarise(problem, values)
        mean, best = result[problem.metric]["mean"], p.best.get(problem.metric, {}).get("mean")
        # Any number is better than none, and none, which compares with nothing, only better than no validation at all.
        better = best is None or (math.isnan(best) and not math.isnan(mean)) or (mean > best if problem.higher_is_better else mean < best)
        self.tracker.log(p.iteration, "val", {name: s["mean"] for name, s in result.items()} | {"ci95": result[problem.metric]["ci95"]})
        p.validated = p.iteration
        if better:
            p.best_step, p.best, p.stale = p.iteration, result, 0
            self.save("best")
        else:
            p.stale += 1
        self.save("last")
        mark = divergence(self.asked.per_episode(values)) or ("  (best so far)" if better else "")
        log.info("iteration %d: development %s %.4f ± %.4f%s", p.iteration, problem.metric, mean, result[problem.metric]["ci95"], mark)

    def save(self, name: str) -> None:
        """Write ``checkpoints/{name}.pt``: everything that a bit-exact continuation needs; only rank 0 writes."""
        try:
            carried = self.engine.gathered(self.carried)
        except Alone:
            carried = []  # what the others held is lost: their inner loops begin anew
        if self.engine.world.rank:
            return
        p = self.progress
        state = asdict(p) | {"metrics_bytes": self.tracker.position(), "wall_s": self._wall()}
        checkpoint.save(
            self.checkpoints / f"{name}.pt",
            {
                "problem": {name: getattr(self.algorithm.problem, name) for name in ("classes", "outputs", "attributes")},
                "algorithm": self.algorithm.state_dict(),
                "outer": self.optimizer.state_dict(),
                "progress": state,
            }
            | ({"carried": carried} if carried else {}),
        )

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's content; numbers logged after it are dropped, they are computed again."""
        self.algorithm.load_state_dict(state["algorithm"])
        self.optimizer.load_state_dict(state["outer"])
        self.progress = Progress.of(state["progress"])
        if self.algorithm.unrolls > 1:
            begun = self.algorithm.begin(select(self.train.batch([0]), 0).context)
            self.carried = self.engine.restored(self.optimizer.carries(self.algorithm, begun), state.get("carried", []))
            if not state.get("carried"):
                self.progress.since = self.progress.iteration
        self.tracker.rewind(self.progress.metrics_bytes)
        self.started = time.monotonic()

    def finish(self) -> Progress:
        """The progress, with the wall time up to now."""
        return replace(self.progress, wall_s=self._wall())
