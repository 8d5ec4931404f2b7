"""What hyperparameters do to the development score: a line for one that differs, heat maps for two, parallel coordinates for more."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from metarun.comparison.figures import INK, MARKERS, PALETTE, PANELS, Look, Plot, bars, figure_of, legend, named
from metarun.comparison.groups import BLOCK, Group, short, text
from metarun.comparison.view import View

TICKS = 6  # values of a setting that are all named on its axis
AXES = 8  # of parallel coordinates, the score's among them: more cannot be followed
PARTS = 4  # of equal size, that many different numbers are put into to see how much hangs on them


def hyperparameters(view: View) -> Plot | None:
    """What the numeric settings that differ do to the development score: a line, heat maps, or parallel coordinates."""
    scored = [member for member in view.groups if member.rank("val", view.metric) < math.inf]
    norm = ["norm"] * (len({member.key.get("norm") for member in scored}) > 1)  # which has a column of its own in tables
    names = [name for name in (*view.columns, *norm) if name not in (*BLOCK, "algo")]
    numeric = [name for name in names if all(_is_number(member.key[name]) or member.key[name] is None for member in view.groups)]
    if not numeric or len(scored) < 3:
        return None
    if len(names) == 1:
        return _lines(view, numeric[0], scored)
    if len(names) == len(numeric) == 2:
        return _heat_maps(view, numeric, scored)
    return _parallel(view, names, scored)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _val(view: View, member: Group) -> float:
    """The development score of a group that has one; hyperparameters are never judged on test."""
    statistic = member.statistic("val", view.metric)
    assert statistic is not None
    return statistic.mean


def _by(members: list[Group], key: Callable[[Group], Any]) -> dict[Any, list[Group]]:
    found: dict[Any, list[Group]] = {}
    for member in members:
        found.setdefault(key(member), []).append(member)
    return dict(itertools.islice(found.items(), PANELS))


def _algo(member: Group) -> str:
    return str(member.key.get("algo", ""))


def _is_wide(values: list[float]) -> bool:
    """Whether values that span orders of magnitude belong on a logarithmic axis."""
    return min(values) > 0 and max(values) / min(values) >= 20


def _lines(view: View, name: str, scored: list[Group]) -> Plot | None:
    blocks = _by([member for member in scored if _is_number(member.key[name])], lambda member: member.block)
    figure, axes = figure_of(len(blocks))
    algos = dict.fromkeys(_algo(member) for member in scored)
    looks = {algo: Look(color, marker) for algo, color, marker in zip(algos, itertools.cycle(PALETTE), itertools.cycle(MARKERS))}
    for axis, (block, members) in zip(axes, blocks.items()):
        for algo, line in _by(members, _algo).items():
            points = [(member.key[name], member.statistic("val", view.metric)) for member in line]
            bars(axis, sorted(points, key=lambda point: point[0]), looks[algo], algo)
        places = sorted({member.key[name] for member in members})
        if _is_wide(places):
            axis.set_xscale("log")
        if len(places) <= TICKS:
            axis.set_xticks(places, [text(place) for place in places])
            axis.set_xticks([], minor=True)
        axis.set(title=named(block), xlabel=short(name), ylabel=f"val {view.metric or members[0].metric}")
    legend(figure, axes)
    caption = f"Development score over {name}; bars are ± std over {view.spread}, or ± ci95 over episodes for a single run."
    return Plot("hyperparameters", "Hyperparameters", caption, figure)


def _heat_maps(view: View, names: list[str], scored: list[Group]) -> Plot:
    first, second = names
    panels = _by(scored, lambda member: (member.block, _algo(member)))
    scales = {block: [_val(view, member) for member in members] for block, members in _by(scored, lambda member: member.block).items()}
    figure, axes = figure_of(len(panels), height=3.8)
    for axis, ((block, algo), members) in zip(axes, panels.items()):
        columns = sorted({member.key[first] for member in members}, key=_number_first)
        rows = sorted({member.key[second] for member in members}, key=_number_first)
        grid = np.full((len(rows), len(columns)), np.nan)
        for member in members:
            grid[rows.index(member.key[second]), columns.index(member.key[first])] = _val(view, member)
        metric = view.metric or members[0].metric
        low, high = min(scales[block]), max(scales[block])  # one scale for all algorithms of a block
        palette = "cividis" if members[0].merit(1.0, view.metric) > 0 else "cividis_r"
        image = axis.imshow(grid, cmap=palette, vmin=low, vmax=high, aspect="auto", origin="lower")
        figure.colorbar(image, ax=axis, label=f"val {metric}")
        axis.grid(False)
        axis.set_xticks(range(len(columns)), [text(value) for value in columns])
        axis.set_yticks(range(len(rows)), [text(value) for value in rows])
        if grid.size <= 64:
            for (i, j), value in np.ndenumerate(grid):
                if np.isfinite(value):
                    axis.text(
                        j, i, f"{value:.3g}", ha="center", va="center", color="black" if sum(image.to_rgba(value)[:3]) > 1.5 else "white"
                    )
        axis.set(title=f"{algo} {named(block)}".strip(), xlabel=short(first), ylabel=short(second))
    caption = f"Mean development score over {view.spread} for each pair of {first} and {second}."
    return Plot("hyperparameters", "Hyperparameters", caption, figure)


def _number_first(value: Any) -> tuple[bool, float]:
    return value is None, value or 0.0


def _parallel(view: View, names: list[str], scored: list[Group]) -> Plot:
    """One vertical axis a setting, one line a group, coloured by the score on the last axis."""
    settings = [*(["algo"] if len({_algo(member) for member in scored}) > 1 else []), *names]
    blocks = _by(scored, lambda member: member.block)
    weights = {name: _importance(view, name, list(blocks.values())) for name in settings}
    chosen = sorted(settings, key=weights.__getitem__, reverse=True)[: AXES - 1]
    names = [name for name in settings if name in chosen]
    blocks = dict(itertools.islice(blocks.items(), 3))
    figure = Figure(figsize=(max(6.4, 1.7 * (len(names) + 1)), 3.9 * len(blocks)))
    axes = figure.subplots(len(blocks), 1, squeeze=False).ravel()
    for axis, (block, members) in zip(axes, blocks.items()):
        metric = view.metric or members[0].metric
        scores = np.array([_val(view, member) for member in members])
        scales = [_scale([member.key[name] for member in members]) for name in names] + [_scale(scores.tolist(), spread=True)]
        merit = np.array([member.merit(score, view.metric) for member, score in zip(members, scores)])
        merit = (merit - merit.min()) / max(float(np.ptp(scores)), 1e-12)
        for i in np.argsort(merit):  # the best on top
            heights = [scale[0](value) for scale, value in zip(scales, [*(members[i].key[name] for name in names), scores[i]])]
            color = colormaps["viridis"](0.95 * merit[i])
            axis.plot(
                range(len(heights)), heights, color=color, linewidth=0.8 + 1.8 * merit[i] ** 3, alpha=0.35 + 0.6 * merit[i], clip_on=False
            )
        for x, (_, ticks) in enumerate(scales):
            axis.axvline(x, color=INK, linewidth=0.8)
            for height, label in ticks:
                axis.annotate(label, (x, height), (4, 0), textcoords="offset points", va="center", fontsize=8, clip_on=False,
                              bbox={"boxstyle": "round,pad=0.15", "facecolor": "#ffffff", "edgecolor": "none", "alpha": 0.75})  # fmt: skip
        axis.grid(False)
        axis.spines[["left", "bottom"]].set_visible(False)
        axis.set(title=named(block), yticks=[], xlim=(-0.1, len(names) + 0.4), ylim=(-0.14, 1.05))
        axis.set_xticks(range(len(names) + 1), [*map(short, names), f"val {metric}"])
        axis.tick_params(length=0)
    caption = f"Each line is a group (mean development score over {view.spread}); yellow and thick is good, dark and thin is bad."
    if len(names) < len(settings):
        caption += f" Of {len(settings)} settings, the {len(names)} on which most of the score hangs."
    return Plot("hyperparameters", "Hyperparameters", caption, figure)


def _importance(view: View, name: str, blocks: list[list[Group]]) -> float:
    """How much of the variance of the development score lies between the values of a setting, at most 1, mean over blocks.

    Adjusted for the number of values (epsilon squared), so that a setting is not important for having many.
    """
    found = []
    for members in blocks:
        parts = _parts([member.key[name] for member in members])
        scores = np.array([_val(view, member) for member in members])
        within = sum(((scores[parts == part] - scores[parts == part].mean()) ** 2).sum() for part in set(parts.tolist()))
        whole, free = ((scores - scores.mean()) ** 2).sum(), len(scores) - len(set(parts.tolist()))
        found.append(1 - within / whole * (len(scores) - 1) / free if whole > 0 and free else 0.0)
    return float(np.mean(found))


def _parts(values: list[Any]) -> np.ndarray:
    """Which values count as one, by number: equal ones; of many numbers, those of like size."""
    numbers = sorted(value for value in values if _is_number(value))
    if len(set(numbers)) > PARTS:
        edges = np.quantile(numbers, np.arange(1, PARTS) / PARTS)
        values = [int(np.searchsorted(edges, value)) if _is_number(value) else value for value in values]
    order = {value: i for i, value in enumerate(dict.fromkeys(map(text, values)))}
    return np.array([order[text(value)] for value in values])


def _scale(values: list[Any], spread: bool = False) -> tuple[Callable[[Any], float], list[tuple[float, str]]]:
    """Values to heights 0..1, and the labelled heights; numbers keep their distances, words are evenly spaced, None lies below."""
    numbers = sorted({value for value in values if _is_number(value)})
    if numbers and all(_is_number(value) or value is None for value in values):
        wide = _is_wide(numbers) and not spread
        low, high = (np.log(numbers[0]), np.log(numbers[-1])) if wide else (numbers[0], numbers[-1])

        def height(value: Any) -> float:
            if value is None:
                return -0.1
            return float(((np.log(value) if wide else value) - low) / (high - low)) if high > low else 0.5

        labelled = (
            numbers
            if len(numbers) <= TICKS and not spread
            else [float(f"{value:.3g}") for value in np.linspace(numbers[0], numbers[-1], 5)]
        )
        ticks = [(height(value), text(value)) for value in labelled]
        return height, ticks + [(-0.1, "–")] * (None in values)
    words = sorted({text(value) for value in values})
    places = {word: i / max(len(words) - 1, 1) for i, word in enumerate(words)}
    return lambda value: places[text(value)], [(place, word) for word, place in places.items()]
