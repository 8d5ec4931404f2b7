"""Where a run's numbers go: metrics.jsonl, TensorBoard, a live progress bar on a terminal and plain lines elsewhere."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from metarun.console import console

log = logging.getLogger(__name__)
QUIET_SECONDS = 30.0  # between plain progress lines, off a terminal


class Tracker:
    """Keeps the numbers of one run.

    Args:
        folder: the run's folder; None keeps nothing (an evaluation, a process beside the first).
        start: first iteration of this process (> 0 when a run is resumed); later points of an earlier process are dropped.
        every: training iterations between two logged points, each the mean over what lies between.
        tensorboard: write TensorBoard events to ``folder/tb``.
        progress: show a live bar when on a terminal, a plain line now and then elsewhere.
    """

    def __init__(self, folder: Path | None, start: int = 0, *, every: Annotated[int, Ge(1)], tensorboard: bool, progress: bool) -> None:
        self.every, self.progress = every, progress
        self.metrics = (folder / "metrics.jsonl" if folder else Path(os.devnull)).open("a", encoding="utf-8")
        self.writer: Any = None
        if tensorboard and folder:
            from torch.utils.tensorboard import SummaryWriter  # as slow to import as torch itself

            self.writer = SummaryWriter(str(folder / "tb"), purge_step=start + 1 if start else None)
        self.bar: Progress | None = None
        self.spoken = time.monotonic()

    def position(self) -> int:
        """Length of metrics.jsonl in bytes, for the checkpoint."""
        self.metrics.flush()
        return os.fstat(self.metrics.fileno()).st_size

    def rewind(self, position: int) -> None:
        """Cut metrics.jsonl back to a checkpoint's position: what came after is computed again."""
        if position < self.position():
            self.metrics.truncate(position)

    def log(self, step: int, split: str, values: dict[str, float]) -> None:
        """Record named numbers of a split at a training iteration."""
        self.metrics.write(json.dumps({"step": step, "split": split, **{name: _plain(value) for name, value in values.items()}}) + "\n")
        self.metrics.flush()
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(f"{split}/{name}", value, step)

    def curve(self, split: str, curve: list[dict[str, float]]) -> None:
        """The adaptation curve as TensorBoard scalars over inner steps."""
        if self.writer:
            for point in curve:
                self.writer.add_scalar(f"{split}/adaptation_curve", point["mean"], int(point["step"]))

    def hparams(self, values: dict[str, Any], results: dict[str, float]) -> None:
        """Hyperparameters and final results, in the run's own event file (``add_hparams`` would open a sub-run)."""
        if self.writer:
            from torch.utils.tensorboard.summary import hparams

            simple = {key: value if isinstance(value, (int, float, str, bool)) else str(value) for key, value in values.items()}
            for summary in hparams(simple, results):
                self.writer.file_writer.add_summary(summary)
            for name, value in results.items():
                self.writer.add_scalar(name, value)

    def show(self, label: str, done: int, total: int, values: dict[str, float]) -> None:
        """Move the progress display: ``done`` of ``total``, and a few numbers."""
        if not self.progress:
            return
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if not console.is_terminal:
            if time.monotonic() - self.spoken >= QUIET_SECONDS:
                self.spoken = time.monotonic()
                log.info("%s %d/%d  %s", label, done, total, text)
            return
        if self.bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[numbers]}"))
            self.bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, transient=True)
            self.bar.start()
        task = next((task for task in self.bar.tasks if task.description == label), None)
        number = task.id if task else self.bar.add_task(label, total=total, numbers="", completed=done)
        self.bar.update(number, completed=done, total=total, numbers=text, visible=done < total)

    def close(self) -> None:
        """Flush and close everything; safe to call twice."""
        if self.bar:
            self.bar.stop()
            self.bar = None
        if self.writer:
            self.writer.close()
        self.metrics.close()


def _plain(value: float) -> float | None:
    """JSON has no NaN: it becomes null."""
    return value if value == value and abs(value) != float("inf") else None
