"""One job of a sweep, in whatever process a launcher calls it: finished before, gone on with, or started; it reports and never raises.
Its folder alone decides what there is to do, so that a call repeated by Slurm, by a launcher or by the user does the rest of the work."""

from __future__ import annotations

import math
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from metarun.config import compose
from metarun.config.nested import leaves
from metarun.config.stored import read_config
from metarun.errors import RunError, UserError
from metarun.runtime.signals import Interrupted, StopFlag
from metarun.storage.foreign import json_object
from metarun.storage.run_folder import held
from metarun.sweeps.reports import report, reports
from metarun.tracking.console import console, start_logging

# Job numbers of a continued Optuna study go on where they stopped; here because every job's process imports this file.
OmegaConf.register_new_resolver("metarun.plus", lambda a, b: a + b, replace=True)


def job(cfg: DictConfig) -> float | None:
    """Run one configuration to its end.

    Returns:
        The development score of its best checkpoint, which a search optimizes; None when the run failed.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    top, own = folder.parent, folder
    console.quiet = not serial(hydra)
    try:
        values = compose.resolve(cfg)
        if "optuna" in hydra.sweeper._target_:
            folder = _same(top, values) or folder
        if any(said["state"] == "failed" for said in reports(top, folder.name)):
            return None  # killed twice in this sweep: not a third time
        # A process that a killed sweep has left behind may still run it: afterwards it is finished.
        with held(folder, lambda: report(top, folder.name, "waiting")):
            summary = _finish(values, folder, list(hydra.overrides.task))
    except Exception as error:
        line, status = compose.line_and_status(error, [])
        if status == 1:
            with (folder / "metarun.log").open("a", encoding="utf-8") as file:
                traceback.print_exc(file=file)
        report(top, folder.name, "failed", line)
        return None
    except BaseException:
        report(top, folder.name, "stopped")
        raise
    finally:
        start_logging()  # closes the run's log
        with suppress(OSError):
            own.rmdir()  # it is empty when the run was refused, or done in another folder
    return score(summary)["mean"]


def serial(hydra: Any) -> bool:
    """Whether, by Hydra's node of a config, jobs run one by one in the user's own process, and may write to the console."""
    return "basic_launcher" in hydra.launcher._target_


def score(summary: dict[str, Any]) -> dict[str, float]:
    """The development statistic that checkpoints are chosen by; no number where there was no validation."""
    return next(iter(summary["val"].values()), {"mean": math.nan})


def _finish(values: dict[str, Any], folder: Path, words: list[str]) -> dict[str, Any]:
    """Do what is left of a run; ``words`` are what the user is told when it starts.

    Raises:
        RunError: the folder holds a run of another configuration.
    """
    stored = _config(folder)
    finished = (folder / "summary.json").is_file()
    resume = any((folder / "checkpoints").glob("*.pt"))
    if (finished or resume) and stored != values:
        raise RunError(f"its folder holds a run of another configuration ({_changed(stored, values)}): move it away, or start a new sweep")
    if not finished:
        from metarun import experiment  # imports torch, for which a finished run need not wait

        start_logging(folder)
        report(folder.parent, folder.name, "resumed" if resume else "started", " ".join(words))
        with _checkpoint_before_requeue():
            experiment.train(values, folder, resume=stored is not None)
    summary = json_object(folder / "summary.json")
    report(folder.parent, folder.name, "before" if finished else "finished", _results(summary))
    return summary


@contextmanager
def _checkpoint_before_requeue() -> Iterator[None]:
    """On Slurm: the signal that comes before a job's time is up ends the training with a checkpoint first, then has it queued again."""
    requeue = signal.getsignal(signal.SIGUSR2)  # submitit's
    if not callable(requeue) or threading.current_thread() is not threading.main_thread():
        yield
        return
    told: list[int] = []

    def tell(number: int, frame: FrameType | None) -> None:
        if StopFlag.armed:
            told.append(number)
            signal.raise_signal(signal.SIGTERM)
        else:  # not training: nothing to save
            requeue(number, frame)

    signal.signal(signal.SIGUSR2, tell)
    try:
        yield
    except Interrupted:
        if told:
            requeue(told[0], None)  # ends the process
        raise
    finally:
        signal.signal(signal.SIGUSR2, requeue)


def _config(folder: Path) -> Any:
    """The stored config of a run folder, None when there is none that can be read."""
    try:
        return read_config(folder)
    except UserError:  # not there, or cut short
        return None


def _same(top: Path, values: dict[str, Any]) -> Path | None:
    """The folder of an earlier trial with this very configuration: a trial that was cut off comes again under another number."""
    return next((path.parent for path in sorted(top.glob("*/config.yaml")) if _config(path.parent) == values), None)


def _changed(stored: Any, values: dict[str, Any]) -> str:
    """The first key in which two configurations differ, in words."""
    old, new = dict(leaves(stored or {})), dict(leaves(values))
    key = next((key for key in {**new, **old} if old.get(key) != new.get(key)), "")
    return f"{key} is {old.get(key)} there, {new.get(key)} here" if key else "it cannot be read"


def _results(summary: dict[str, Any]) -> str:
    name = summary["metric"]
    found = {split: summary[split][name]["mean"] for split in ("val", "test") if name in (summary[split] or {})}
    return f"{name} {', '.join(f'{split} {math.nan if mean is None else mean:.4f}' for split, mean in found.items())}"
