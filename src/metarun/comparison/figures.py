"""What all pictures of a comparison share: colours, panels, legends, error bars.
Colours are told apart by colour-blind readers (Okabe and Ito) and doubled by markers."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from metarun.comparison.groups import BLOCK, Group, Statistic, labels
from metarun.comparison.runs import EPISODES
from metarun.comparison.view import View

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, FAINT = "#2b2f36", "#d9dce1"  # text and grid; the report replaces both, and the palette, to fit its theme
MARKERS = "osD^vPX"  # one more than colours, so that no look comes twice soon
STYLE: Any = {
    "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": FAINT, "grid.linewidth": 0.8,
    "axes.axisbelow": True, "axes.edgecolor": INK, "axes.labelcolor": INK, "axes.titlecolor": INK, "text.color": INK, "xtick.color": INK,
    "ytick.color": INK, "legend.frameon": False, "lines.linewidth": 1.8, "lines.markersize": 5, "svg.hashsalt": "metarun",
    "figure.constrained_layout.use": True, "figure.constrained_layout.h_pad": 0.08, "figure.constrained_layout.w_pad": 0.08,
}  # fmt: skip
DRAWN = 6  # groups to a panel: more cannot be told apart
PANELS = 6


class Plot(NamedTuple):
    """A figure, the name of its file, and what is to be seen on it."""

    name: str
    title: str
    caption: str
    figure: Figure


class Look(NamedTuple):
    """How a group is drawn."""

    color: str
    marker: str


def panels_of(view: View) -> dict[tuple[str, ...], dict[Group, str]]:
    """The first blocks, each with its best groups and their labels."""
    blocks: dict[tuple[str, ...], list[Group]] = {}
    for member in view.groups:
        blocks.setdefault(member.block, []).append(member)
    return {block: labels(_best_of(view, members)) for block, members in itertools.islice(blocks.items(), PANELS)}


def lines_of(view: View, axis_name: str) -> dict[tuple[str, ...], dict[str, list[tuple[int, Group]]]]:
    """For each of the first settings of the rest of a block, the lines over ways or shots: by label, points with their groups."""
    at = BLOCK.index(axis_name)
    settings: dict[tuple[str, ...], list[Group]] = {}
    for member in view.groups:
        if member.block[at].isdecimal() and member.statistic(view.by, view.metric):
            settings.setdefault(member.block[:at] + member.block[at + 1 :], []).append(member)
    panels: dict[tuple[str, ...], dict[str, list[tuple[int, Group]]]] = {}
    for rest, members in settings.items():
        lines: dict[str, list[tuple[int, Group]]] = {}
        for member, label in labels(members).items():
            lines.setdefault(label, []).append((int(member.block[at]), member))
        long = {label: sorted(points, key=lambda point: point[0]) for label, points in lines.items() if len(points) > 1}
        if long:
            best = sorted(long, key=lambda label: min(member.rank(view.by, view.metric) for _, member in long[label]))[:DRAWN]
            panels[rest] = {label: points for label, points in long.items() if label in best}
    return dict(itertools.islice(panels.items(), PANELS))


def _best_of(view: View, members: list[Group]) -> list[Group]:
    return sorted(members, key=lambda member: member.rank(view.by, view.metric))[:DRAWN]


def looks_of(view: View) -> dict[str, Look]:
    """One look for each label, the same in all panels of all pictures; those drawn in every picture come first."""
    drawn = [label for members in panels_of(view).values() for label in members.values()]
    drawn += [label for axis_name in ("shot", "way") for lines in lines_of(view, axis_name).values() for label in lines]
    looks = map(Look, itertools.cycle(PALETTE), itertools.cycle(MARKERS))
    return dict(zip(dict.fromkeys(drawn), looks))


def figure_of(panels: int, height: float = 3.4) -> tuple[Figure, list[Any]]:
    """A figure with room for so many panels, at most three beside each other, and their axes."""
    across = min(panels, 3) if panels != 4 else 2
    down = -(-panels // across)
    figure = Figure(figsize=(max(4.2 * across, 6.4), height * down))
    axes = figure.subplots(down, across, squeeze=False).ravel().tolist()
    for spare in axes[panels:]:
        spare.remove()
    return figure, axes[:panels]


def legend(figure: Figure, axes: list[Any]) -> None:
    """One legend below all panels."""
    entries: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            entries.setdefault(label, handle)
    longest = max(map(len, entries), default=1)
    columns = max(1, min(len(entries), int(figure.get_figwidth() * 12 / (longest + 8))))
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.22 * -(-len(entries) // columns))  # its rows take no height from the panels
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)


def named(block: tuple[str, ...]) -> str:
    """A panel's title."""
    asked = "" if block[3] == EPISODES else f", {block[3]}"
    return f"{block[0]}, {block[1]}-way {block[2]}-shot{asked}"


def left_out(view: View) -> str:
    """What the caption says when not all groups are drawn."""
    drawn = sum(map(len, panels_of(view).values()))
    return f" Of {len(view.groups)} groups, at most the best {DRAWN} of each setting are drawn." if drawn < len(view.groups) else ""


def bars(axis: Any, points: list[tuple[float, Statistic | None]], look: Look, label: str) -> None:
    """A line through means, with bars of ± std over runs, or of ± ci95 over episodes where there is one run."""
    kept = [(x, statistic) for x, statistic in points if statistic and statistic.known]
    half = [statistic.ci95 if statistic.std is None else statistic.std for _, statistic in kept]
    means = [statistic.mean for _, statistic in kept]
    axis.errorbar([x for x, _ in kept], means, half, color=look.color, marker=look.marker, capsize=3, label=label)
