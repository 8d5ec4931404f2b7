"""What is done with a run: meta-train and test it, test it again, check it. Building is ``run``'s, deciding the command line's."""

from __future__ import annotations

import io
import json
import logging
import math
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from metarun.algorithm import Algorithm
from metarun.config import inputs
from metarun.config.nested import leaves
from metarun.config.stored import to_yaml
from metarun.data import shapes
from metarun.data.base import ImageDataset
from metarun.data.episodes import Episodes
from metarun.errors import UserError
from metarun.kernels import select as kernels
from metarun.optim import MetaOptimizer
from metarun.predict import audit
from metarun.protocols.base import Arrays, Protocol, Scores, statistics
from metarun.run import Run
from metarun.runtime.distributed import World
from metarun.runtime.memory import resident_peak
from metarun.runtime.version import __version__
from metarun.storage import checkpoint, provenance
from metarun.storage import resume as stored
from metarun.storage.files import writing
from metarun.storage.run_folder import relative
from metarun.tracking.tracker import Tracker
from metarun.trainer import Progress, StopFlag, Trainer, asked_of, divergence

log = logging.getLogger(__name__)


def train(values: dict[str, Any], folder: Path, resume: bool = False) -> dict[str, Any]:
    """Meta-train (or go on), meta-test the best checkpoint once, write and return the summary, which says that the run is finished.

    Raises:
        UserError, RunError, Interrupted: see ``Run`` and ``Trainer.fit``.
        DiskFull: there is no room; the last good checkpoint stays.
    """
    world = World.join()
    with writing(folder):
        return _train(values, folder, world, world.broadcast(stored.state(folder) if resume and world.rank == 0 else None), resume)


def _train(values: dict[str, Any], folder: Path, world: World, state: dict[str, Any] | None, resume: bool) -> dict[str, Any]:
    def build() -> tuple[Run, Episodes, Episodes, Episodes | None]:
        # Going on does not take the run that this one began with: its weights are long in the checkpoint.
        run = Run(values | {"init_from": None} if state else values, state, world, stored=resume)
        return run, *_episodes(run)

    run, train_episodes, val_episodes, test_episodes = world.together(build)
    values = run.values
    splits = {"train": train_episodes.plain, "val": val_episodes, "test": test_episodes}
    noted = "" if world.rank else inputs.note(values, run.data, splits)
    log.debug(provenance.line(__version__))
    log.info("%s on %s, data %s, run folder %s", values["algo"]["name"], run.device, values["data"]["name"], relative(folder))
    if not world.rank and not state:
        _warn_of_few(run)
    if not state:
        run.write(folder / "config.yaml", to_yaml(values))
        run.write(inputs.path(folder), noted)
    elif noted:
        inputs.warn_of_changes(folder, noted)
    optimizer: MetaOptimizer = run.valid.optim.build(run.algorithm.groups())
    start = state["progress"]["iteration"] if state else 0
    tracker = _tracker(run, folder, start)
    try:
        if not world.rank:
            tracker.begin(folder, values, _hparams(values))
        # What is solved for in closed form reads training episodes without being trained.
        reads = run.algorithm.learns or type(run.algorithm).calibrate is not Algorithm.calibrate
        known = run.engine.known(run.algorithm.net, train_episodes) if reads else train_episodes
        trainer: Trainer = run.valid.trainer.build(
            run.algorithm, optimizer, run.engine, tracker, folder, known, val_episodes, run.validation
        )
        if state:
            trainer.load(state)
            log.info("resuming at iteration %d of %d", start, trainer.iterations)
        else:
            tracker.layout(run.problem.metric)
        with kernels.using(run.engine.kernels):  # what validation computes outside of the engine
            trainer.fit()
        run.algorithm.load_state_dict(_read(world, folder / "checkpoints" / "best.pt")["algorithm"])
        result = measure(run, "test", tracker, folder, trainer.progress.best) if test_episodes else None
        best = {f"hparam/{name}": mean for name, mean in _means(result or trainer.progress.best).items()}
        tracker.hparams(_hparams(values), best)
        if result:
            tracker.curve("test", result["curve"])
        if tracker.pictures:
            from metarun.drawing import tensorboard_images  # and with it matplotlib, as slow as the drawing

            try:
                tensorboard_images.add(run, tracker, trainer.progress.best_step, folder)
            except Exception as error:  # whatever drawing stumbles over, the result is not lost for it
                log.warning("TensorBoard has no pictures of this run: %s", error)
        progress, looks = trainer.finish(), stored.test_looks(folder) + (result is not None)
        speed = progress.tasks_per_s(trainer.meta_batch)
        found = {"val": val_episodes, "test": test_episodes}
        summary = summary_of(run, progress, found, val=progress.best, test=result, looks=looks, tasks_per_s=round(speed, 3))
        if audit.possible(run):
            summary |= _audit(run, tracker, folder)
        run.write(folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
        return summary
    finally:
        tracker.close()


def _means(result: dict[str, Any]) -> dict[str, float]:
    """The means of a result's scores, which also has a curve."""
    return {name: found["mean"] for name, found in result.items() if isinstance(found, dict)}


def _audit(run: Run, tracker: Tracker, folder: Path) -> dict[str, Any]:
    """Judge every file of the user's folder: keeps ``weights.csv`` and the sheet ``suspects.png``, and returns the most suspicious."""
    with StopFlag() as stop:

        def after_block(done: int, n: int) -> None:
            tracker.show("weigh files", done, n, {})
            stop.check(run.engine.world)

        data, judged = audit.suspects(run, after_block)
    run.write(folder / "weights.csv", audit.table(judged))
    if run.world.rank == 0:
        audit.sheet(folder / "suspects.png", run.title, data, judged)
    return {"suspects": audit.listed(judged)}


def _hparams(values: dict[str, Any]) -> dict[str, Any]:
    """What TensorBoard's table of runs shows: no paths of classes, nor what no number hangs on. It puts what differs first by itself."""
    return {name: value for name, value in leaves(values) if not name.endswith("_target_") and not name.startswith(inputs.INDIFFERENT)}


def _episodes(run: Run) -> tuple[Episodes, Episodes, Episodes | None]:
    """Those of training, development and test; what is not to be had is refused here, before training."""
    return run.episodes("train"), run.episodes("val"), run.episodes("test") if "test" in run.data.splits else None


def evaluate(values: dict[str, Any], run_folder: Path, name: str, folder: Path, split: Literal["test", "val"] = "test") -> dict[str, Any]:
    """Measure the checkpoint ``name`` of a run under another config; ``folder`` receives summary.json and the episodes' scores.

    Args:
        split: ``test``, a look at the test split that is counted, or ``val``, the development episodes, as often as you like.
    """
    world = World.join()
    state = _read(world, run_folder / "checkpoints" / f"{name}.pt")

    def build() -> tuple[Run, Episodes]:
        run = Run(values, state, world)
        inputs.refuse_other_columns(run_folder, run.data)
        inputs.refuse_known_classes(run_folder, values, run.data, split)
        return run, run.episodes(split)

    run, episodes = world.together(build)
    if not world.rank:
        inputs.warn_of_other_data(run_folder, values, split, episodes.content())
    values = run.values
    progress = Progress.of(state["progress"])
    started = time.monotonic()
    tracker = _tracker(run, None)
    try:
        if not world.rank:
            tracker.begin(folder, values, _hparams(values))
        result = measure(run, split, tracker, folder, progress.best)
        tracker.log(progress.best_step, split, _means(result))
        tracker.curve(split, result["curve"])
        tracker.hparams(_hparams(values), {f"hparam/{name}": mean for name, mean in _means(result).items()})
    finally:
        tracker.close()
    progress.wall_s = time.monotonic() - started
    looks = stored.test_looks(run_folder)
    if split == "test":
        looks += 1
        log.info("look %d at the test split with this run; to choose between settings: metarun eval RUN --split val", looks)
    val, test = (result, None) if split == "val" else (None, result)
    summary = summary_of(run, progress, {split: episodes}, val=val, test=test, looks=looks)
    run.write(folder / "config.yaml", to_yaml(values))
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
    run.valid.optim.build(run.algorithm.groups())
    try:
        found = _episodes(run)
    except UserError as error:
        raise UserError(f"{error}{_proposal(run)}") from None
    _warn_of_few(run)
    for split, episodes in zip(("train", "val", "test"), found):
        if episodes is None:
            continue
        run.engine.evaluate(run.algorithm, episodes.batch([0]), run.validation)
        spec = run.spec["train" if split == "train" else "eval"]
        report[split] = f"{run.data.describe(split)}; {spec}{'; the same classes in every episode' * episodes.same_classes}"
    return report


def _proposal(run: Run) -> str:
    """A shape of episodes that the data have enough for, in words that end a message; nothing where that is not what is wrong."""
    if not isinstance(run.data, ImageDataset) or not {"train", "val"} <= run.data.splits.keys():
        return ""
    least = next((f"data.{key}" for key in ("min_images", "min_rows", "min_texts") if key in run.values["data"]), None)
    return shapes.proposal(run.data.splits, run.spec["eval"], least)


def _warn_of_few(run: Run) -> None:
    """Say where the classes of development tasks are hardly more than those of one."""
    val = run.data.splits.get("val") if isinstance(run.data, ImageDataset) and run.data.fixed_spec is None else None
    if val and (told := shapes.few_classes("val", val, run.spec["eval"])):
        log.warning("%s", told)


def measure(run: Run, split: str, tracker: Tracker, folder: Path, development: Scores) -> dict[str, Any]:
    """What the run's protocols find with the weights as they are: scores and a curve.

    Keeps ``{split}_scores.npy``, a score for every episode, and the protocols' pictures.

    Args:
        development: what validation found with these weights.

    Raises:
        UserError: the answers of this method are not such that a protocol has anything to say of them.
    """
    found: dict[str, Any] = {}
    for asked in (protocol.after(development) for protocol in run.protocols):
        if rehearsal := asked.rehearsal(run.algorithm):
            asked = asked.decided(run.problem, _asked(run, "val", rehearsal, tracker))
        arrays = _asked(run, split, asked, tracker)
        scores = asked.per_episode(arrays)
        if trouble := divergence(scores):
            log.warning("%s%s", split, trouble)
        if scores is not None and not found:
            buffer = io.BytesIO()
            np.save(buffer, scores)
            run.write(folder / f"{split}_scores.npy", buffer.getvalue())
        named, curve = asked.summarise(run.problem, arrays)
        if not named:
            raise UserError(f"protocol={asked.name} is not possible with algo={run.values['algo']['name']}: it needs {asked.needs}")
        found = named | {"curve": curve} | found
        for part in asked.parts if tracker.draws else ():
            for name, drawn in part.pictures(arrays, run.title, run.episodes(split, asked)):
                from metarun.drawing import figures  # and with it matplotlib

                figures.save(drawn, folder / name)
    return found


def _asked(run: Run, split: str, asked: Protocol, tracker: Tracker) -> Arrays:
    """What a protocol measures of a split."""
    episodes = run.episodes(split, asked)
    n = min(run.valid.trainer.values[f"{split}_episodes"], episodes.length or sys.maxsize)
    if not n:
        raise UserError(f"trainer.{split}_episodes=0 leaves nothing to measure: add trainer.{split}_episodes=N")
    with StopFlag() as stop:
        return asked_of(run.engine, run.algorithm, episodes, n, asked, tracker, split, stop)


def summary_of(
    run: Run,
    progress: Progress,
    episodes: Mapping[str, Episodes | None],
    *,
    val: dict[str, Any] | None = None,
    test: dict[str, Any] | None = None,
    looks: int,
    tasks_per_s: float | None = None,
) -> dict[str, Any]:
    """The contract's summary.json.

    Args:
        episodes: of the splits that were measured.
        val, test: what was found on them; None where nothing was.
        looks: at the test split with this run, this one included.
        tasks_per_s: of training; None if there was none.
    """
    cuda = run.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(run.device) / 2**20 if cuda else resident_peak()
    spec = run.spec["eval"]
    metric, higher_is_better = run.protocols[0].parts[0].metric(run.problem)
    asked, tested = episodes.get("test"), int(test[metric]["n"]) if test else 0
    summary = {
        "algo": run.values["algo"]["name"],
        "data": run.data_name,
        "way": spec.way,
        "shot": spec.shot,
        "query": spec.query,
        "seed": run.valid.root.seed,
        "parameters": sum(p.numel() for p in run.algorithm.parameters()),
        "found": run.algorithm.found(),
        "best_step": progress.best_step,
        "iterations": progress.iteration,
        "task": run.problem.kind.describe(spec),
        "protocol": [part.name for asked in run.protocols for part in asked.parts],
        "metric": metric,
        "higher_is_better": higher_is_better,
        "val": val,
        "test": test,
        "same_classes": [split for split, found in episodes.items() if found and found.same_classes],
        "test_looks": looks,
        "bounds": {name: statistics(scores) for name, scores in asked.bounds(tested).items()} if asked and tested else {},
        "episodes_sha256": asked.sha256(tested) if asked and tested else None,
        "bn_mode": run.bn_mode,
        "precision": run.valid.root.precision,
        "device": str(run.device),
        "wall_s": round(progress.wall_s, 3),
        "tasks_per_s": tasks_per_s,
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
