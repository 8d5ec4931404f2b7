"""What TensorBoard shows of a finished run beside its curves: a development episode with the learner's answers, the pictures of the test
(reliability, ROC, unknown queries), and in the projector the features of a test episode."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from metarun.drawing import figures
from metarun.errors import UserError
from metarun.run import Run
from metarun.runtime.fonts import legible
from metarun.task import select
from metarun.tracking.tracker import Tracker


def add(run: Run, tracker: Tracker, step: int, folder: Path) -> None:
    """Draw with the weights as they are, those of iteration ``step``; what these data have no picture of is left out."""
    with suppress(UserError):
        tracker.image("val/episode_0", figures.pixels(figures.episode(run, "val", 0, answered=True)), step)
    for name in ("roc", "reliability", "unknown"):
        if (path := folder / f"{name}.png").is_file():
            tracker.image(f"test/{name}", np.asarray(Image.open(path).convert("RGB")), step)
    if run.problem.kind.labelled and figures.is_image(run.problem.input_shape):
        _embed(run, tracker, "test" if "test" in run.data.splits else "val", step)


@torch.no_grad()
def _embed(run: Run, tracker: Tracker, split: str, step: int) -> None:
    """Support, if it is images, and queries of episode 0 as the meta-learned net sees them, before any adaptation."""
    task = select(run.episodes(split).batch([0]), 0)
    net = run.algorithm.net.eval()
    support, names = task.context.examples(), figures.names(run, split, task)
    parts = {"query": task.query} if run.algorithm.reads == "attributes" else {"support": support, "query": task.query}
    features = torch.cat([net(batch.x, support.x) for batch in parts.values()])
    rows = [[legible(names[label]), part] for part, batch in parts.items() for label in batch.y.tolist()]
    thumbnails = torch.cat([batch.x for batch in parts.values()]).cpu()
    if figures.has_ink(thumbnails.numpy()):
        thumbnails = 1 - thumbnails
    tracker.embedding(f"{split}_episode_0", features.float().cpu(), ["class", "part"], rows, thumbnails, step)
