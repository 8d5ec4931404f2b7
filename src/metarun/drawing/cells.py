"""Pictures of cells: the graph of what was chosen, and, of a mixture, how much every operation weighs on every edge."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from metarun.nets.cell import EDGES, OPERATIONS, Cell, derived

COLOURS: dict[str, str] = dict(zip(OPERATIONS, ("#bbbbbb", "#7fb69a", "#8a5a9e", "#c8553d", "#2f6690")))
PLACES = ((0.0, 0.0), (1.0, 0.75), (1.0, -0.75), (2.0, 0.0))  # of the nodes
ALONG = {(0, 3): 0.3, (1, 2): 0.25}  # where along an edge its label is, if not in the middle: two edges cross there


def figure(net: Cell, title: str) -> Figure:
    """The cell of a net."""
    picture = Figure(figsize=(9.0 if net.architecture else 4.5, 3.4), layout="constrained")
    FigureCanvasAgg(picture)
    graph, *beside = picture.subplots(1, 2 if net.architecture else 1, squeeze=False)[0]
    words = net.genotype or derived(net.mixture, net.operations)
    _graph(graph, words.split("-"))
    for axes in beside:
        logs = net.mixture.detach().view(len(EDGES), -1)
        _shares(axes, logs.softmax(1).cpu().numpy(), net.operations, words.split("-"))
    picture.suptitle(f"{title}\n{words}", fontsize=9)
    return picture


def _graph(axes: Axes, names: list[str]) -> None:
    for (start, end), name in zip(EDGES, names):
        (x0, y0), (x1, y1) = PLACES[start], PLACES[end]
        style = {"arrowstyle": "-|>", "color": COLOURS[name], "lw": 1.0 if name == "none" else 2.2, "shrinkA": 14, "shrinkB": 14}
        axes.annotate("", (x1, y1), (x0, y0), arrowprops=style | ({"linestyle": ":"} if name == "none" else {}))
        part = ALONG.get((start, end), 0.5)
        box = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none"}
        at = (x0 + part * (x1 - x0), y0 + part * (y1 - y0))
        axes.text(*at, name, color=COLOURS[name], fontsize=9, ha="center", va="center", bbox=box)
    for number, (x, y) in enumerate(PLACES):
        axes.text(
            x, y, str(number), ha="center", va="center", fontsize=10, bbox={"boxstyle": "circle,pad=0.35", "fc": "white", "ec": "#333333"}
        )
    axes.set(xlim=(-0.3, 2.3), ylim=(-1.1, 1.1))
    axes.axis("off")


def _shares(axes: Axes, shares: np.ndarray, operations: tuple[str, ...], names: list[str]) -> None:
    axes.imshow(shares, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(shares):
        for j, share in enumerate(row):
            chosen = operations[j] == names[i]
            ink = "white" if share > 0.5 else "black"
            axes.text(j, i, f"{share:.2f}", ha="center", va="center", fontsize=8, color=ink, weight="bold" if chosen else "normal")
    axes.set_xticks(range(len(operations)), operations, fontsize=8)
    axes.set_yticks(range(len(EDGES)), [f"{start}→{end}" for start, end in EDGES], fontsize=8)
    axes.set_title("softmax over operations; bold: chosen", fontsize=8)
