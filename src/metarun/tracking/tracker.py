"""Where a run's numbers go: metrics.jsonl and TensorBoard, kept in its folder, other services that are named, the progress display."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, MinLen
from torch import Tensor

from metarun.storage.files import writing
from metarun.storage.resume import whole_lines
from metarun.tracking.console import Display
from metarun.tracking.sink import INNER, ITERATION, Sink
from metarun.tracking.sinks import Guarded, open_sinks


class Tracker:
    """Keeps the numbers of one run.

    Args:
        folder: the run's folder; None keeps nothing (an evaluation, a process beside the first).
        start: first iteration of this process (> 0 when a run is resumed); later points of an earlier process are dropped.
        every: training iterations between two logged points, each the mean over what lies between.
        tensorboard: write TensorBoard events to ``folder/tb``.
        pictures: want pictures, in the run's folder and in TensorBoard, and embeddings there.
        progress: show a live bar when on a terminal, a plain line now and then elsewhere.
        wandb: send the numbers to Weights & Biases: ``online`` while the run is on, or ``offline``, kept in its folder; None: not at all.
        mlflow: send them to MLflow, by the address of a server, or ``local``, kept beside the runs; None: not at all.
        project: under which these two list the run.
    """

    def __init__(
        self,
        folder: Path | None,
        start: int = 0,
        *,
        every: Annotated[int, Ge(1)],
        tensorboard: bool,
        pictures: bool = True,
        progress: bool,
        wandb: Literal["offline", "online"] | None = None,
        mlflow: Annotated[str, MinLen(1)] | None = None,
        project: Annotated[str, MinLen(1)] = "metarun",
    ) -> None:
        self.every, self.display = every, Display(progress)
        self.services: dict[str, Any] = {"wandb": wandb, "mlflow": mlflow, "project": project}
        self.sinks: list[Guarded] = []
        self.path = folder / "metrics.jsonl" if folder else Path(os.devnull)
        # Never through a link, and without a buffer: what has been logged is in the file, and closing cannot fail.
        with writing(self.path):
            self.metrics = os.fdopen(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666), "ab", buffering=0)
        self.writer: Any = None
        if tensorboard and folder:
            threading.excepthook = _without_disk_errors
            from torch.utils.tensorboard import SummaryWriter  # as slow to import as torch itself

            # Of a new run, too: TensorBoard takes the second such mark for a restart, not the first.
            self.writer = SummaryWriter(str(folder / "tb"), purge_step=start + 1)
        self.draws = pictures

    @property
    def pictures(self) -> bool:
        """Whether pictures go anywhere beside the run's folder."""
        return self.draws and (self.writer is not None or bool(self.sinks))

    def begin(self, folder: Path, values: dict[str, Any], parameters: dict[str, Any]) -> None:
        """Open what the configuration ``values`` names beside TensorBoard; ``parameters`` is what is shown of it, by dotted name.

        Raises:
            UserError, RunError: see ``open_sinks``.
        """
        self.sinks = open_sinks(folder, values, parameters, **self.services)

    def layout(self, metric: str) -> None:
        """TensorBoard's Custom Scalars: learning and adaptation with 95 % bands, and the two losses."""
        if self.writer:
            charts = {f"development {metric}": _margin(f"val/{metric}"), "loss": ["Multiline", ["^train/loss$", "^val/loss$"]]}
            adaptation = {f"test {metric} as learning goes on": _margin("test/adaptation_curve")}
            self.writer.add_custom_scalars({"learning": charts, "adaptation": adaptation})

    def position(self) -> int:
        """Length of metrics.jsonl in bytes, for the checkpoint; so much of it is on the disk."""
        if self.path != Path(os.devnull):
            os.fsync(self.metrics.fileno())
        return os.fstat(self.metrics.fileno()).st_size

    def rewind(self, position: int) -> None:
        """Cut metrics.jsonl back to a checkpoint's position, as what came after is computed again, or to its last whole line."""
        if self.path != Path(os.devnull):
            self.metrics.truncate(min(position, whole_lines(self.path)))

    def log(self, step: int, split: str, values: dict[str, float]) -> None:
        """Record named numbers of a split at a training iteration; ``ci95`` among them belongs to the first."""
        line = json.dumps({"step": step, "split": split, **{name: _plain(value) for name, value in values.items()}}).encode() + b"\n"
        with writing(self.path):
            while line:  # a disk that is nearly full takes a part
                line = line[self.metrics.write(line) :]
        self._send(lambda sink: sink.scalars(ITERATION, step, {f"{split}/{name}": value for name, value in values.items()}))
        if self.writer:
            for name, value in values.items():
                self.writer.add_scalar(f"{split}/{name}", value, step)
            if "ci95" in values:
                name = next(iter(values))
                self._band(f"{split}/{name}", values[name], values["ci95"], step)

    def curve(self, split: str, curve: list[dict[str, float]]) -> None:
        """The adaptation curve as scalars over inner steps."""
        tag = f"{split}/adaptation_curve"

        def drawn(sink: Sink) -> None:
            for point in curve:
                sink.scalars(INNER, int(point["step"]), {tag: point["mean"]})

        self._send(drawn)
        if self.writer:
            for point in curve:
                self.writer.add_scalar(tag, point["mean"], int(point["step"]))
                self._band(tag, point["mean"], point["ci95"], int(point["step"]))

    def _band(self, tag: str, mean: float, ci95: float, step: int) -> None:
        for edge, value in zip(_margin(tag)[1][1:], (mean - ci95, mean + ci95)):
            self.writer.add_scalar(edge, value, step)

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """A picture [height, width, 3] uint8; ask for ``pictures`` first."""
        self._send(lambda sink: sink.image(tag, image, step))
        if self.writer:
            self.writer.add_image(tag, image, step, dataformats="HWC")

    def embedding(self, tag: str, features: Tensor, header: list[str], rows: list[list[str]], thumbnails: Tensor, step: int) -> None:
        """Points [n, features] for the projector with a row of words each and pictures [n, channels, height, width] in 0..1."""
        clean = [[" ".join(word.split()) for word in row] for row in rows]  # they become a table with tabs
        if self.writer:
            self.writer.add_embedding(features, clean, thumbnails, step, tag, metadata_header=header)

    def hparams(self, values: dict[str, Any], results: dict[str, float]) -> None:
        """Hyperparameters and final results, in the run's own event file (``add_hparams`` would open a sub-run)."""
        self._send(lambda sink: sink.results(results))
        if self.writer:
            from torch.utils.tensorboard.summary import hparams

            simple = {key: value if isinstance(value, (int, float, str, bool)) else str(value) for key, value in values.items()}
            for summary in hparams(simple, results):
                self.writer.file_writer.add_summary(summary)
            for name, value in results.items():
                self.writer.add_scalar(name, value)

    def _send(self, do: Callable[[Sink], None]) -> None:
        for guarded in self.sinks:
            guarded(do)

    def show(self, label: str, done: int, total: int, values: dict[str, float], note: str = "") -> None:
        """Move the progress display: ``done`` of ``total``, and a few numbers or a note."""
        self.display.show(label, done, total, values, note)

    def close(self) -> None:
        """Flush and close everything; safe to call twice."""
        self.display.close()
        self.metrics.close()
        failed = sys.exc_info()[0] is not None
        self._send(lambda sink: sink.close(failed))
        self.sinks = []
        if self.writer:
            self.writer.close()


def _margin(tag: str) -> list[Any]:
    """A Custom Scalars chart of a mean with its band, whose edges are kept in a section of their own."""
    return ["Margin", [tag, f"band/{tag}/low", f"band/{tag}/high"]]


def _without_disk_errors(error: threading.ExceptHookArgs) -> None:
    """TensorBoard writes in a thread of its own; what a disk refuses is raised again in the run's, and told there."""
    if not issubclass(error.exc_type, OSError):
        threading.__excepthook__(error)


def _plain(value: float) -> float | None:
    """JSON has no NaN: it becomes null."""
    return value if value == value and abs(value) != float("inf") else None
