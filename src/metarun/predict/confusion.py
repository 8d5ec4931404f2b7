"""What was answered for pictures whose class is known: accuracy by class and the confusion table, for the terminal, as CSV and as a picture."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from metarun.storage.files import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TOLD = 12  # classes of which the terminal has a line each; of more only those with the most errors
NUMBERED = 25  # rows and columns up to which the picture has the numbers in its cells
BLUE, INK, RULE = "Blues", "#1c1c1c", "#d9d9d9"


@dataclass(frozen=True)
class Confusion:
    """Counts of answers by truth.

    Attributes:
        rows: truths, the classes first and then folders that name none.
        columns: answers, the classes first.
        counts: by (truth, answer).
        classes: how many of the rows and columns are classes.
    """

    rows: list[str]
    columns: list[str]
    counts: Counter[tuple[str, str]]
    classes: int

    @classmethod
    def of(cls, truths: Sequence[str], answers: Sequence[str], classes: Sequence[str]) -> Confusion:
        """Of truths and answers, one each for every picture."""
        own = set(classes)
        others = sorted(set(truths) - own)
        rows = [name for name in classes if name in set(truths)]
        return cls(rows + others, [*classes, *sorted(set(answers) - own)], Counter(zip(truths, answers, strict=True)), len(rows))

    def of_row(self, truth: str) -> tuple[int, int]:
        """How many pictures of this truth there are, and how many are answered so."""
        return sum(self.counts[truth, answer] for answer in self.columns), self.counts[truth, truth]

    def lines(self) -> list[str]:
        """A line for each class: accuracy, and what it is taken for."""
        found = []
        for truth in self.rows[: self.classes]:
            n, right = self.of_row(truth)
            wrong = sorted(((self.counts[truth, a], a) for a in self.columns if a != truth and self.counts[truth, a]), reverse=True)
            taken = ", ".join(f"{answer} {count}" for count, answer in wrong[:3])
            found.append((right / n, f"{right:4} of {n:<4} {100 * right / n:5.1f} %  {truth}{f'  (answered {taken})' * bool(taken)}"))
        if len(found) > TOLD:
            found = sorted(found, key=lambda each: each[0])[:TOLD]
            return [*(line for _, line in found), f"      … the {TOLD} classes with the most errors of {self.classes}"]
        return [line for _, line in found]

    def csv(self) -> str:
        """A table with a row for each truth, its accuracy, and a column for each answer."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["truth", "pictures", "accuracy", *self.columns])
        for place, truth in enumerate(self.rows):
            n, right = self.of_row(truth)
            share = f"{right / n:.4f}" if place < self.classes else ""
            writer.writerow([truth, n, share, *(self.counts[truth, answer] for answer in self.columns)])
        return out.getvalue()

    def json(self) -> dict[str, dict[str, int]]:
        """By truth and answer, the counts that are not zero."""
        return {truth: {answer: n for answer in self.columns if (n := self.counts[truth, answer])} for truth in self.rows}

    def figure(self, title: str) -> Figure:
        """The table as a picture: shares of each row by colour, counts in the cells while they are legible."""
        from matplotlib.figure import Figure

        height, width = len(self.rows), len(self.columns)
        cell = 0.42 if max(height, width) <= NUMBERED else 0.16
        figure = Figure(figsize=(2.6 + cell * width, 1.9 + cell * height), layout="constrained")
        axes = figure.subplots()
        shares = [[self.counts[truth, answer] / self.of_row(truth)[0] for answer in self.columns] for truth in self.rows]
        axes.imshow(shares, cmap=BLUE, vmin=0, vmax=1, aspect="auto")
        if cell > 0.3:
            for y, truth in enumerate(self.rows):
                for x, answer in enumerate(self.columns):
                    if n := self.counts[truth, answer]:
                        axes.text(x, y, str(n), ha="center", va="center", fontsize=9, color="white" if shares[y][x] > 0.6 else INK)
        size = 9 if cell > 0.3 else 5
        axes.set_xticks(range(width), self.columns, rotation=90, fontsize=size)
        axes.set_yticks(range(height), self.rows, fontsize=size)
        axes.set(xlabel="answer", ylabel="folder")
        axes.set_title(title, fontsize=10, loc="left")
        if 0 < self.classes < height:
            axes.axhline(self.classes - 0.5, color=INK, linewidth=1)
        axes.tick_params(length=0)
        axes.spines[:].set_color(RULE)
        return figure

    def save(self, table: Path, picture: Path, title: str) -> None:
        """Write the table as CSV and the picture as PNG."""
        replace_file(table, lambda handle: handle.write(self.csv().encode(errors="surrogateescape")))
        drawn = self.figure(title)
        replace_file(picture, lambda handle: drawn.savefig(handle, format="png", dpi=130))
