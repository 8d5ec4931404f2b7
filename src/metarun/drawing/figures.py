"""Pictures of what a learner gets: an episode, support on the left and queries on the right, the classes of a split, augmentation.
Images are rows of classes, texts paragraphs, points of regression lie in the plane, as do trajectories; answers can be drawn in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from metarun import inner
from metarun.abilities import Augments
from metarun.adaptation import adapt
from metarun.data.base import ImageDataset
from metarun.data.task_augment import APART
from metarun.drawing import cells, texts, trajectories
from metarun.drawing.panel import Panel
from metarun.errors import UserError
from metarun.kernels import select as kernels
from metarun.nets.cell import Cell
from metarun.problem import EpisodeSpec, Gaussian, Samples, best_guess, spread
from metarun.run import Run
from metarun.runtime.fonts import families, legible
from metarun.storage.files import replace_file
from metarun.task import Batch, Task, select

COLUMNS, ROWS = 12, 40  # images of a class and classes shown at most, per block
INCH = 0.5  # side of an image
CURVE = 500  # points that show the curve behind a regression task
FRAME, LAST_FRAME, COLOURS = 60, 2000, 64  # of a film: milliseconds, and how many colours it has
GAP = 0.12  # between images, as a fraction of their side
SUPPORT, QUERY, RIGHT, WRONG, ORACLE, SAMPLE = "#c8553d", "#2f6690", "#7fb69a", "#d1495b", "#8a5a9e", "#3d8f86"
LINES = 20  # samples of an answer that are drawn at most


def episode(run: Run, split: str, index: int, answered: bool = False) -> Figure:
    """An episode of a split; ``answered``: with what the learner, as it is, makes of its queries.

    Raises:
        UserError: there is no such episode, or its examples are neither images nor texts nor points of one coordinate, nor act on a plane.
    """
    task, spec, where = _asked(run, split, index)
    reader = run.valid.data.target.reader(**run.valid.data.values)
    wording = reader.wording if reader else None
    if wording or is_image(task.query.x.shape[1:]):
        blocks = [Panel("support", SUPPORT, task.context.examples())] if spec.shot else []
        blocks.append(Panel("query", QUERY, task.query))
        if answered:
            guesses = best_guess(_answers(run, task, task.query.x)).argmax(-1)
            right = int((guesses == task.query.y).sum())
            blocks[-1] = Panel(
                f"query: {right} of {len(guesses)} right; red: taken for the class of that number", QUERY, task.query, guesses
            )
        title = f"{spec.way}-way {spec.shot}-shot:  {where}"
        if wording:
            return texts.figure(blocks, [_short(name) for name in names(run, split, task)], title, wording)
        rows = [f"{_short(name)}   {label}" for label, name in enumerate(names(run, split, task))]
        return _images(blocks, rows, title)
    if task.query.x.shape[1:] == (1,) and task.query.y.shape[1:] == (1,):
        try:
            further = run.data.episodes(split, replace(spec, query=CURVE), run.valid.root.seed, run.device)
        except UserError:  # a table has no more points than it has
            further = run.data.episodes(split, spec, run.valid.root.seed, run.device)
        curve = select(further.batch([index]), 0).query
        fitted = _answers(run, task, curve.x) if answered else None
        return _points(task, curve, fitted, further.oracle(index, curve.x), f"{int(task.context.seen.sum())}-shot regression:  {where}")
    if _on_a_plane(run):
        return trajectories.figure(run, task, f"{spec.shot} trajectories to adapt by:  {where}")
    raise UserError(
        "only grey or colour images, texts and curves of one variable are drawn, and trajectories on a plane; "
        f"these examples have shape {list(run.problem.input_shape)}"
    )


def film(run: Run, split: str, index: int, path: Path) -> None:
    """Write the trajectories of an episode of a split as a GIF in which they grow.

    Raises:
        UserError: there is no such episode, or nothing in it acts on a plane.
    """
    if not _on_a_plane(run):
        raise UserError(f"--out {path.name} is to be a film, which trajectories on a plane make; give a name that ends with .png")
    task, spec, where = _asked(run, split, index)
    grown = trajectories.film(run, task, f"{spec.shot} trajectories to adapt by:  {where}")
    drawn = [Image.fromarray(pixels(figure)) for figure in grown]
    colours = drawn[-1].quantize(COLOURS)  # of the whole picture, for all frames, so that what stands still takes no room
    frames = [image.quantize(palette=colours, dither=Image.Dither.NONE) for image in drawn]
    times = [FRAME] * (len(frames) - 1) + [LAST_FRAME]
    replace_file(path, lambda handle: frames[0].save(handle, format="GIF", save_all=True, append_images=frames[1:], duration=times, loop=0))


def _asked(run: Run, split: str, index: int) -> tuple[Task, EpisodeSpec, str]:
    """An episode, its shape, and how a title says which it is."""
    episodes = run.episodes(split)
    if episodes.length is not None and index >= episodes.length:
        raise UserError(f"--index {index} is not possible: these data have {episodes.length} {split} episodes, 0 to {episodes.length - 1}")
    where = f"{run.values['data']['name']}, {split} episode {index}, seed {run.valid.root.seed}"
    return select(episodes.batch([index]), 0), run.spec["train" if split == "train" else "eval"], where


def _on_a_plane(run: Run) -> bool:
    """Whether something acts, and what is seen of it is a place."""
    return run.problem.simulator is not None and run.problem.input_shape == (2,)


def classes(run: Run, split: str, index: int) -> Figure:
    """Sheet ``index`` of a split's classes, a row of samples each; every sheet is spread over the whole split.

    Raises:
        UserError: there is no such sheet, or these data are not images in classes.
    """
    if not (isinstance(run.data, ImageDataset) and is_image(run.data.input_shape)):
        raise UserError(f"data={run.values['data']['name']} has no classes of images to show; leave --what out for an episode")
    if split not in run.data.splits:
        raise UserError(f"these data have no {split} split, only {', '.join(run.data.splits)}")
    data = run.data.splits[split]
    sheets = -(-data.classes // ROWS)
    if index >= sheets:
        raise UserError(f"--index {index} is not possible: the {data.classes} {split} classes fill sheets 0 to {sheets - 1}")
    shown = range(index, data.classes, sheets)
    rows = [np.arange(data.starts[c], data.starts[c] + data.counts[c]) for c in shown]
    labels = torch.arange(len(shown)).repeat_interleave(torch.tensor([len(row) for row in rows]))
    batch = Batch(data.images[torch.from_numpy(np.concatenate(rows))].float() / 255, labels)
    title = f"{run.values['data']['name']}, {split}:  {len(shown)} of {data.classes:,} classes"
    return _images([Panel("images", QUERY, batch)], [_short(data.names[c]) for c in shown], title)


def augmentation(run: Run, split: str, index: int) -> Figure:
    """The support of a training episode (zero-shot: a query of each class), and beside every image what augmentation makes of it: the one
    that the learner has learned, or that of the run.

    Raises:
        UserError: there is no augmentation that images show, or these are not episodes of training.
    """
    learned = run.algorithm.augmentation if isinstance(run.algorithm, Augments) else None
    changes = learned or run.augment
    if not (learned or run.augment.images or run.augment.tasks in ("rotations", "mixup")):
        raise UserError("augment=none changes no image; choose one, for example augment=characters or augment=photos")
    if split != "train":
        raise UserError(f"--split {split} is not augmented: only training episodes are")
    plain = run.data.episodes(split, run.spec["train"], run.valid.root.seed, run.device)
    many = plain.batch([index] * COLUMNS)
    task, spec = select(many, 0), run.spec["train"]

    def first(task: Task) -> Tensor:
        """An image of each class, as they are grouped."""
        shown = task.context.examples() if spec.shot else task.query
        return shown.x[torch.searchsorted(shown.y.cpu(), y).to(shown.x.device)]

    y, key = torch.arange(spec.way), task.context.key
    if not learned:  # as many tasks as columns are made of the one
        keys = inner.fold_in(key, torch.arange(COLUMNS, device=key.device))
        others = plain.batch([index + APART + i for i in range(COLUMNS)]) if run.augment.tasks == "mixup" else None
        many = run.augment.task(many._replace(context=many.context._replace(key=keys)), others, run.data.classes)
    copies = torch.stack([first(select(many, i)) for i in range(COLUMNS)], 1).flatten(0, 1)
    if learned or run.augment.images:
        with torch.no_grad():
            copies = changes(copies, changes.noise(key, len(copies)))
    blocks = [Panel("image", SUPPORT, Batch(first(task), y)), Panel("augmented", QUERY, Batch(copies, y.repeat_interleave(COLUMNS)))]
    name = f"algo={run.values['algo']['name']}, as it was learned" if learned else f"augment={run.values['augment']['name']}"
    return _images(
        blocks, [_short(name) for name in names(run, split, task)], f"{run.values['data']['name']}, {split} episode {index}, {name}"
    )


def cell(run: Run, split: str, index: int) -> Figure:
    """The cell of the run's net, which neither split nor index change.

    Raises:
        UserError: the net has none.
    """
    if not isinstance(run.algorithm.net, Cell):
        raise UserError(f"net={run.values['net']['name']} has no cells to show; choose net=cell, or leave --what out for an episode")
    return cells.figure(run.algorithm.net, f"the cell of {run.values['algo']['name']} on {run.values['data']['name']}")


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file."""
    FigureCanvasAgg(figure)
    replace_file(path, lambda handle: figure.savefig(handle, format="png", dpi=160, facecolor="white"))


def pixels(figure: Figure) -> np.ndarray:
    """A figure as an image [height, width, 3] uint8."""
    figure.set_dpi(100)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def is_image(shape: Sequence[int]) -> bool:
    """Whether examples of this shape are grey or colour images."""
    return len(shape) == 3 and shape[0] in (1, 3)


def has_ink(x: np.ndarray) -> bool:
    """Whether images [n, channels, height, width] in 0..1 are handwriting, ink 1 on paper 0, which is to be seen dark on light."""
    return x.shape[1] == 1 and float(np.median(x)) < 0.1


@torch.no_grad()
def _answers(run: Run, task: Task, x: Tensor) -> Tensor | Gaussian | Samples:
    """What the learner, adapted as in a test, answers to ``x``."""
    run.algorithm.eval()
    with kernels.using(run.engine.kernels):
        *_, state = adapt(run.algorithm, task.context, run.algorithm.steps(task.context, False))
        return run.algorithm.predict(state, x)


def names(run: Run, split: str, task: Task) -> list[str]:
    """What the classes of the episode are called, in the order of their labels."""
    numbers = task.context.classes.tolist()
    if isinstance(run.data, ImageDataset):
        return [run.data.splits[split].names[i] for i in numbers]
    return [f"class {i}" for i in numbers]


def _short(name: str) -> str:
    name = legible(name)
    return name if len(name) <= 40 else "…" + name[-39:]


def _images(blocks: list[Panel], names: list[str], title: str) -> Figure:
    names = names[:ROWS]
    mosaics = [_mosaic(block.batch, len(names)) for block in blocks]
    step = INCH * (1 + GAP)
    widths = [max(shown * step, 0.062 * len(block.title)) for block, (_, shown, _) in zip(blocks, mosaics)]
    left = 0.07 * max(map(len, names)) + 0.2
    width, height = max(left + sum(widths) + 0.45, 0.085 * len(title) + 0.4), len(names) * step + 0.8
    figure = Figure(figsize=(width, height))
    figure.text(0.15 / width, 1 - 0.22 / height, title, fontsize=11, fontweight="bold", va="center")
    x = left
    for block, (mosaic, shown, most), room in zip(blocks, mosaics, widths):
        axes = figure.add_axes((x / width, 0.1 / height, shown * step / width, len(names) * step / height))
        ink = has_ink(block.batch.x.cpu().numpy())
        axes.imshow(mosaic.squeeze(-1) if mosaic.shape[-1] == 1 else mosaic, cmap="gray_r" if ink else "gray", vmin=0, vmax=1)
        axes.set_title(
            block.title if shown == most else f"{block.title} ({shown} of {most})", fontsize=10, color=block.colour, loc="left", pad=4
        )
        first = block is blocks[0]
        rows = (np.arange(len(names)) + 0.5) * mosaic.shape[0] / len(names)
        axes.set_yticks(rows, names if first else [""] * len(names), fontsize=8, color="#444444", family=families(names), parse_math=False)
        axes.set_xticks([])
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set(color=block.colour, linewidth=1.4)
        if block.guesses is not None:
            _judge(axes, block.batch, block.guesses, len(names))
        x += room + 0.25
    return figure


def _judge(axes: Axes, batch: Batch, guesses: Tensor, way: int) -> None:
    """Frame every image of a mosaic: right, or wrong with the number of the class it was taken for."""
    height, width = batch.x.shape[-2:]
    gap = max(1, round(GAP * height))
    y = batch.y.cpu()
    for label in range(way):
        for column, guess in enumerate(guesses.cpu()[y == label][:COLUMNS].tolist()):
            left, top = column * (width + gap) + gap // 2, label * (height + gap) + gap // 2
            colour = RIGHT if guess == label else WRONG
            axes.add_patch(Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor=colour, linewidth=1.4))
            if guess != label:
                axes.text(
                    left + width - 1, top, guess, fontsize=7, color="white", ha="right", va="top",
                    bbox={"facecolor": WRONG, "edgecolor": "none", "pad": 1},
                )  # fmt: skip


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


def _points(task: Task, curve: Batch, fitted: Tensor | Gaussian | Samples | None, oracle: Gaussian | None, title: str) -> Figure:
    """``curve``: many further points of the same task, drawn faintly; ``fitted``, ``oracle``: a learner's answers to them, with their
    uncertainty, and those of one who knows how the task came about."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes: Axes = figure.add_subplot()
    axes.axhline(0, color="#dddddd", linewidth=0.8, zorder=0)
    axes.scatter(curve.x.cpu(), curve.y.cpu(), s=2, color="#b9c6d0", zorder=1)
    order = curve.x[:, 0].argsort()
    x = curve.x[order, 0].cpu()
    if fitted is not None:
        mean = best_guess(fitted)[order, 0].cpu()
        axes.plot(x, mean, color="#444444", linewidth=1.4, label="answers", zorder=1)
        if isinstance(fitted, (Gaussian, Samples)):
            wide = 2 * spread(fitted)[order, 0].sqrt().cpu()
            axes.fill_between(x, mean - wide, mean + wide, color="#444444", alpha=0.15, linewidth=0, label="± 2 s.d.")
        if isinstance(fitted, Samples) and isinstance(fitted.members, Gaussian):
            of_each = fitted.members.mean[:LINES, order, 0].cpu()
            axes.plot(x, of_each.T, color=SAMPLE, linewidth=0.8, alpha=0.7, label=["samples", *[None] * (len(of_each) - 1)], zorder=1)
    if oracle is not None:
        mean, wide = oracle.mean[order, 0].cpu(), 2 * oracle.variance[order, 0].sqrt().cpu()
        axes.plot(x, mean, "--", color=ORACLE, linewidth=1.1, label="oracle, ± 2 s.d.", zorder=1)
        for edge in (mean - wide, mean + wide):
            axes.plot(x, edge, ":", color=ORACLE, linewidth=1.1, zorder=1)
    seen = task.context.seen
    support = Batch(task.context.support.x[seen], task.context.support.y[seen])
    for label, (x, y), size, colour in (("query", task.query, 28, QUERY), ("support", support, 70, SUPPORT)):
        axes.scatter(x.cpu(), y.cpu(), s=size, color=colour, label=f"{label} ({len(x)})", edgecolor="white", linewidth=0.8, zorder=2)
    axes.set_title(title, fontsize=11, fontweight="bold", loc="left")
    axes.set_xlabel("x")
    axes.set_ylabel("y")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure
