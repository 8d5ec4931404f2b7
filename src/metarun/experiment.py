"""What is done with a run: meta-train and test it, test it again, check it. Building is ``run``'s, deciding the command line's."""

from __future__ import annotations

import io
import json
import logging
import math
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from metarun import __version__
from metarun.data.episodes import Episodes
from metarun.optim import MetaOptimizer
from metarun.run import Run
from metarun.runtime.distributed import World
from metarun.storage import checkpoint
from metarun.tracking.tracker import Tracker
from metarun.trainer import Progress, StopFlag, Trainer, results, statistics, watched_score

log = logging.getLogger(__name__)


def train(values: dict[str, Any], folder: Path, resume: bool = False) -> dict[str, Any]:
    """Meta-train (or go on), meta-test the best checkpoint once, write and return the summary.

    Raises:
        UserError, RunError, Interrupted: see ``Run`` and ``Trainer.fit``.
    """
    world = World.join()

    def build() -> tuple[Run, Episodes, Episodes, Episodes | None]:
        # Going on does not take the run that this one began with: its weights are long in the checkpoint.
        run = Run(values | {"init_from": None} if resume else values, world=world)
        test = run.episodes("test") if "test" in run.data.splits else None  # refused now rather than after training
        return run, run.episodes("train"), run.episodes("val"), test

    run, train_episodes, val_episodes, test_episodes = world.together(build)
    if not resume:
        run.write(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(values)))
    optimizer: MetaOptimizer = run.valid.optim.build(run.algorithm.groups())
    state = _read(world, folder / "checkpoints" / "last.pt") if resume else None
    start = state["progress"]["iteration"] if state else 0
    tracker = _tracker(run, folder, start)
    try:
        trainer: Trainer = run.valid.trainer.build(run.algorithm, optimizer, run.engine, tracker, folder, train_episodes, val_episodes)
        if state:
            trainer.load(state)
            log.info("resuming at iteration %d of %d", start, trainer.iterations)
        else:
            tracker.layout(run.problem.metric)
        trainer.fit()
        run.algorithm.load_state_dict(_read(world, folder / "checkpoints" / "best.pt")["algorithm"])
        result = test(run, test_episodes, tracker, folder) if test_episodes else None
        summary = summary_of(run, trainer.finish(), result, test_episodes)
        run.write(folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
        best = {f"hparam/{name}": stat["mean"] for name, stat in (result or trainer.progress.best).items() if isinstance(stat, dict)}
        tracker.hparams(_hparams(values), best)
        if result:
            tracker.curve("test", result["curve"])
        if tracker.pictures:
            from metarun.drawing import tensorboard_images  # and with it matplotlib, as slow as the drawing

            tensorboard_images.add(run, tracker, trainer.progress.best_step, folder)
        return summary
    finally:
        tracker.close()


def evaluate(values: dict[str, Any], run_folder: Path, name: str, folder: Path) -> dict[str, Any]:
    """Meta-test the checkpoint ``name`` of a run under another config; ``folder`` receives summary.json and test_scores.npy."""
    world = World.join()
    state = _read(world, run_folder / "checkpoints" / f"{name}.pt")

    def build() -> tuple[Run, Episodes]:
        run = Run(values, state, world)
        return run, run.episodes("test")

    run, episodes = world.together(build)
    progress = Progress(**state["progress"])
    started = time.monotonic()
    tracker = _tracker(run, None)
    try:
        result = test(run, episodes, tracker, folder)
    finally:
        tracker.close()
    progress.wall_s = time.monotonic() - started
    summary = summary_of(run, progress, result, episodes)
    run.write(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(values)))
    run.write(folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def _read(world: World, path: Path) -> dict[str, Any]:
    """A checkpoint's content; rank 0 reads it for all."""
    return world.broadcast(checkpoint.load(path) if world.rank == 0 else None)


def _tracker(run: Run, folder: Path | None, start: int = 0) -> Tracker:
    """The run's tracker; beside rank 0, one that keeps and shows nothing."""
    logger = run.valid.logger
    tracker: Tracker = logger.build(None, pictures=False, progress=False) if run.world.rank else logger.build(folder, start)
    return tracker


def check(values: dict[str, Any]) -> dict[str, str]:
    """Build everything, adapt to one task of each split, and say what there is; trains and writes nothing.

    Raises:
        UserError: whatever training would refuse.
    """
    run = Run(values)
    report = {
        "algorithm": f"{values['algo']['name']}, {sum(p.numel() for p in run.algorithm.parameters()):,} meta-parameters",
        "device": f"{run.device}, {run.valid.root.precision}",
        "norm": run.bn_mode,
    }
    for split in run.data.splits:
        episodes = run.episodes(split)
        run.engine.evaluate(run.algorithm, episodes.batch([0]), curve=False)
        spec = run.spec["train" if split == "train" else "eval"]
        report[split] = f"{run.data.describe(split)}; {spec}"
    return report


def test(run: Run, episodes: Episodes, tracker: Tracker, folder: Path) -> dict[str, Any]:
    """Meta-test with the weights as they are: statistics and adaptation curve; keeps ``test_scores.npy``, and ``roc.png`` of pairs."""
    n = min(run.valid.trainer.values["test_episodes"], episodes.length or sys.maxsize)
    with StopFlag() as stop:
        values = watched_score(run.engine, run.algorithm, episodes, n, True, tracker, "test", stop)
    score = values["score"]
    scores = io.BytesIO()
    np.save(scores, score[:, -1])
    run.write(folder / "test_scores.npy", scores.getvalue())
    points = [statistics(score[:, k]) for k in range(score.shape[1])]
    curve = [{"step": k, "mean": point["mean"], "ci95": point["ci95"]} for k, point in enumerate(points)]
    if "same" in values and tracker.draws:
        from metarun.drawing import figures  # and with it matplotlib

        figures.save(figures.roc(run, values["same"], values["different"]), folder / "roc.png")
    return results(run.problem, values) | {"curve": curve}


def summary_of(run: Run, progress: Progress, test: dict[str, Any] | None, episodes: Episodes | None) -> dict[str, Any]:
    """The contract's summary.json."""
    cuda = run.device.type == "cuda"
    unit = 2**20 if sys.platform == "darwin" else 2**10  # of ru_maxrss in a megabyte
    peak = torch.cuda.max_memory_allocated(run.device) / 2**20 if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    spec = run.spec["eval"]
    tested = int(test[run.problem.metric]["n"]) if episodes and test else 0
    summary = {
        "algo": run.values["algo"]["name"],
        "data": run.values["data"]["name"],
        "way": spec.way,
        "shot": spec.shot,
        "query": spec.query,
        "seed": run.valid.root.seed,
        "parameters": sum(p.numel() for p in run.algorithm.parameters()),
        "best_step": progress.best_step,
        "iterations": progress.iteration,
        "task": run.problem.kind.describe(spec),
        "metric": run.problem.metric,
        "higher_is_better": run.problem.higher_is_better,
        "val": progress.best,
        "test": test,
        "bounds": {name: statistics(scores) for name, scores in episodes.bounds(tested).items()} if episodes and tested else {},
        "episodes_sha256": episodes.sha256(tested) if episodes and tested else None,
        "bn_mode": run.bn_mode,
        "precision": run.valid.root.precision,
        "device": str(run.device),
        "wall_s": round(progress.wall_s, 3),
        "tasks_per_s": round(progress.tasks_per_s(run.valid.trainer.values["meta_batch"]), 3),
        "peak_memory_mb": round(peak, 1),
        "versions": {
            "metarun": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
    return _json_able(summary)


def _json_able(value: Any) -> Any:
    """JSON has no NaN: a score that is not a number (an inner loop that diverged) becomes null."""
    if isinstance(value, dict):
        return {key: _json_able(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_json_able(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _hparams(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a config by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _hparams(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
