"""A picture of an episode, as the learner gets it: the support on the left, the queries on the right.
Images are rows of classes; a regression task is its points in the plane."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from metarun.checkpoint import replace_file
from metarun.data.base import ImageDataset
from metarun.errors import UserError
from metarun.run import Run
from metarun.task import Batch, Task, select

COLUMNS, ROWS = 12, 40  # images of a class and classes shown at most, per block
INCH = 0.5  # side of an image
CURVE = 500  # points that show the curve behind a regression task
GAP = 0.12  # between images, as a fraction of their side
SUPPORT, QUERY = "#c8553d", "#2f6690"


def episode(run: Run, split: str, index: int, path: Path) -> None:
    """Draw an episode of a split into a PNG file.

    Raises:
        UserError: there is no such episode, or its examples are neither images nor points of one coordinate.
    """
    episodes = run.episodes(split)
    if episodes.length is not None and index >= episodes.length:
        raise UserError(f"--index {index} is not possible: these data have {episodes.length} {split} episodes, 0 to {episodes.length - 1}")
    task = select(episodes.batch([index]), 0)
    spec = run.spec["train" if split == "train" else "eval"]
    where = f"{run.values['data']['name']}, {split} episode {index}, seed {run.valid['seed']}"
    if task.query.x.dim() == 4:
        figure = _images(task, _names(run, split, task), f"{spec.way}-way {spec.shot}-shot:  {where}")
    elif task.query.x.shape[1:] == (1,) and task.query.y.shape[1:] == (1,):
        dense = run.data.episodes(split, replace(spec, query=CURVE), run.valid["seed"]).batch([index])
        figure = _points(task, select(dense, 0).query, f"{spec.shot}-shot regression:  {where}")
    else:
        raise UserError(f"only images and curves of one variable are drawn; these examples have shape {list(task.query.x.shape[1:])}")
    FigureCanvasAgg(figure)
    replace_file(path, lambda handle: figure.savefig(handle, format="png", dpi=160, facecolor="white"))


def _names(run: Run, split: str, task: Task) -> list[str]:
    """What the classes of the episode are called, in the order of their labels."""
    classes = task.context.classes.tolist()
    if isinstance(run.data, ImageDataset):
        return [run.data.splits[split].names[i] for i in classes]
    return [f"class {i}" for i in classes]


def _images(task: Task, names: list[str], title: str) -> Figure:
    names = [f"{name if len(name) <= 40 else '…' + name[-39:]}   {label}" for label, name in enumerate(names[:ROWS])]
    blocks = [("support", SUPPORT, task.context.support), ("query", QUERY, task.query)]
    mosaics = [_mosaic(batch, len(names)) for _, _, batch in blocks]
    step = INCH * (1 + GAP)
    widths = [shown * step for _, shown, _ in mosaics]
    left = 0.07 * max(map(len, names)) + 0.2
    width, height = max(left + sum(widths) + 0.45, 0.085 * len(title) + 0.4), len(names) * step + 0.8
    figure = Figure(figsize=(width, height))
    figure.text(0.15 / width, 1 - 0.22 / height, title, fontsize=11, fontweight="bold", va="center")
    x = left
    for (label, colour, batch), (mosaic, shown, most), block in zip(blocks, mosaics, widths):
        axes = figure.add_axes((x / width, 0.1 / height, block / width, len(names) * step / height))
        # Ink is 1 on paper 0 in handwriting, which is to be seen dark on light; photographs are shown as they are.
        ink = mosaic.shape[-1] == 1 and float(np.median(batch.x.cpu().numpy())) < 0.1
        axes.imshow(mosaic.squeeze(-1) if mosaic.shape[-1] == 1 else mosaic, cmap="gray_r" if ink else "gray", vmin=0, vmax=1)
        axes.set_title(label if shown == most else f"{label} ({shown} of {most})", fontsize=10, color=colour, loc="left", pad=4)
        rows = (np.arange(len(names)) + 0.5) * mosaic.shape[0] / len(names)
        axes.set_yticks(rows, names if label == "support" else [""] * len(names), fontsize=8, color="#444444")
        axes.set_xticks([])
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set(color=colour, linewidth=1.4)
        x += block + 0.25
    return figure


def _mosaic(batch: Batch, way: int) -> tuple[np.ndarray, int, int]:
    """Rows of classes as one image [height, width, channels] in 0..1 (NaN between), the columns shown, and how many there are."""
    x, y = batch.x.cpu().numpy(), batch.y.cpu().numpy()
    rows = [x[y == label] for label in range(way)]
    most = max(map(len, rows))
    shown = min(most, COLUMNS)
    channels, height, width = x.shape[1:]
    gap = max(1, round(GAP * height))
    canvas = np.full((way * (height + gap), shown * (width + gap), channels), np.nan, np.float32)
    for i, row in enumerate(rows):
        for j, image in enumerate(row[:shown]):
            top, left = i * (height + gap) + gap // 2, j * (width + gap) + gap // 2
            canvas[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return (canvas if channels == 1 else np.nan_to_num(canvas, nan=1.0)), shown, most


def _points(task: Task, curve: Batch, title: str) -> Figure:
    """``curve``: many further points of the same task, drawn faintly."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes: Axes = figure.add_subplot()
    axes.axhline(0, color="#dddddd", linewidth=0.8, zorder=0)
    axes.scatter(curve.x.cpu(), curve.y.cpu(), s=2, color="#b9c6d0", zorder=1)
    for label, (x, y), size, colour in (("query", task.query, 28, QUERY), ("support", task.context.support, 70, SUPPORT)):
        axes.scatter(x.cpu(), y.cpu(), s=size, color=colour, label=f"{label} ({len(x)})", edgecolor="white", linewidth=0.8, zorder=2)
    axes.set_title(title, fontsize=11, fontweight="bold", loc="left")
    axes.set_xlabel("x")
    axes.set_ylabel("y")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure
