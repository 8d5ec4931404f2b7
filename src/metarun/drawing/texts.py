"""An episode of texts as a page: a paragraph of lines for every class, support first, then queries with what a learner took them for."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from metarun.data.picture import Wording
from metarun.drawing.panel import Panel
from metarun.runtime.fonts import families, legible

LETTERS, SHOWN = 110, 8  # of a line, and lines of a class shown at most, per block
LINE = 0.19  # inches
PLAIN, RIGHT, WRONG = "#444444", "#3f7d5c", "#d1495b"
Lines = list[tuple[str, str, bool]]  # text, colour, whether bold


def figure(blocks: Sequence[Panel], names: Sequence[str], title: str, wording: Wording) -> Figure:
    """The episode; of each block the first ``SHOWN`` texts of a class.

    Args:
        blocks: the texts as inputs, bytes / 255, and where a learner was asked its answers, labels of ``names``.
        names: of the classes.
        wording: of the data.
    """
    lines: Lines = [(title, "black", True), ("", PLAIN, False)]
    lines += [(block.title, block.colour, False) for block in blocks]
    for label, name in enumerate(names):
        lines += [("", PLAIN, False), (f"{label}   {name}", "black", True)]
        for block in blocks:
            lines += _lines(block, label, wording)
    width, height = 8.5, LINE * (len(lines) + 1)
    page = Figure(figsize=(width, height))
    for i, (text, colour, bold) in enumerate(lines, start=1):
        page.text(
            0.15 / width, 1 - LINE * (i + 0.1) / height, text, fontsize=8.5, color=colour, family=families([text]), parse_math=False,
            fontweight="bold" if bold else "normal",
        )  # fmt: skip
    return page


def _lines(block: Panel, label: int, wording: Wording) -> Lines:
    """The texts of a class."""
    rows = (block.batch.y == label).nonzero()[:, 0].tolist()
    found: Lines = []
    for row in rows[:SHOWN]:
        text, colour = wording.decode((block.batch.x[row] * 255).round().byte().cpu().numpy()), block.colour
        if block.guesses is not None:
            guess = int(block.guesses[row])
            colour = RIGHT if guess == label else WRONG
            text = text if guess == label else f"[{guess}] {text}"
        text = legible(text)
        found.append((text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…", colour, False))
    more = len(rows) - SHOWN
    return [*found, (f"and {more} more", block.colour, False)] if more > 0 else found
