"""Which class is taken for which: answers by truth, as a table on the terminal, a CSV file and a picture.
Rows are truths, columns answers; what is of no class, and what is answered so, comes last."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from metarun.predict.contact_sheet import Answer
from metarun.protocols.belonging import UNKNOWN
from metarun.runtime.fonts import families, legible
from metarun.storage.files import replace_file
from metarun.storage.foreign import printable

NONE = "(no class)"  # the truth of what is of none of the classes
SHOWN = 10  # classes, or pairs of them, that a terminal shows
DRAWN = 60  # classes, beyond which a picture has no names


@dataclass(frozen=True)
class Confusion:
    """Counts of answers [truths, answers]; of every class that is one of the truths, in their order."""

    truths: list[str]
    answers: list[str]
    counts: np.ndarray

    @classmethod
    def of(cls, answers: Sequence[Answer], classes: Sequence[str]) -> Confusion | None:
        """Of all answers that can be judged; None if none can."""
        judged = [answer for answer in answers if answer.right is not None]
        if not judged:
            return None
        pairs = Counter((answer.truth or NONE, answer.guess) for answer in judged)
        truths = [name for name in (*classes, NONE) if any(truth == name for truth, _ in pairs)]
        guesses = [*classes, UNKNOWN] if any(answer.belonging is not None for answer in judged) else [*classes]
        return cls(truths, guesses, np.array([[pairs[truth, guess] for guess in guesses] for truth in truths]))

    def right(self, truth: str) -> tuple[int, int]:
        """How many of a truth are answered rightly, and how many there are."""
        row = self.counts[self.truths.index(truth)]
        return int(row[self.answers.index(UNKNOWN if truth == NONE else truth)]), int(row.sum())

    def mistakes(self) -> list[tuple[str, str, int]]:
        """Truth, answer and how often, of wrong answers, the commonest first."""
        found = [
            (truth, answer, int(self.counts[i, j]))
            for i, truth in enumerate(self.truths)
            for j, answer in enumerate(self.answers)
            if self.counts[i, j] and answer != (UNKNOWN if truth == NONE else truth)
        ]
        return sorted(found, key=lambda mistake: -mistake[2])

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        accuracy = {truth: self.right(truth)[0] / self.right(truth)[1] for truth in self.truths}
        return {"truths": self.truths, "answers": self.answers, "counts": self.counts.tolist(), "accuracy": accuracy}

    def csv(self) -> str:
        """A line per truth: its name, how many, the share of right answers, and how often each answer came."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["truth", "n", "accuracy", *self.answers])
        for truth, row in zip(self.truths, self.counts.tolist()):
            right, n = self.right(truth)
            writer.writerow([truth, n, f"{right / n:.6f}", *row])
        return out.getvalue()

    def table(self) -> Table:
        """For a terminal; of many classes those that fare worst, and the commonest mistakes for each."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
        table.add_column("truth")
        table.add_column("right", justify="right")
        table.add_column("accuracy", justify="right")
        few = len(self.answers) <= SHOWN
        for answer in self.answers if few else ["taken for"]:
            table.add_column(Text(said(answer)), justify="right" if few else "left")
        shown = self.truths if few else sorted(self.truths, key=lambda truth: self.right(truth)[0] / self.right(truth)[1])[:SHOWN]
        for truth in shown:
            right, n = self.right(truth)
            row = self.counts[self.truths.index(truth)].tolist()
            wrong = [f"{answer} ({times})" for name, answer, times in self.mistakes() if name == truth]
            cells = [str(count) if count else "·" for count in row] if few else [", ".join(wrong[:3])]
            words = [said(truth), f"{right} of {n}", f"{right / n:.4f}", *map(said, cells)]
            table.add_row(*map(Text, words))  # names are no markup
        return table

    def save(self, folder: Path, title: str) -> None:
        """Write ``confusion.csv`` and ``confusion.png``."""
        written = self.csv()
        replace_file(folder / "confusion.csv", lambda handle: handle.write(written.encode(errors="surrogateescape")))
        self.draw(folder / "confusion.png", title)

    def draw(self, path: Path, title: str) -> None:
        """Write the picture: the share of every truth's answers as a shade, and their number."""
        from matplotlib.figure import Figure

        shares = self.counts / self.counts.sum(1, keepdims=True)
        rows, columns = shares.shape
        side = min(0.45, 14 / max(rows, columns))
        figure = Figure(figsize=(2.6 + side * columns, 1.9 + side * rows), layout="constrained")
        axes = figure.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal")
        axes.set(xlabel="answer", ylabel="truth")
        if max(rows, columns) <= DRAWN:
            words: dict[str, Any] = {"family": families([*self.truths, *self.answers]), "parse_math": False}
            axes.set_xticks(range(columns), [legible(name) for name in self.answers], rotation=90, **words)
            axes.set_yticks(range(rows), [legible(name) for name in self.truths], **words)
            for i, j in zip(*self.counts.nonzero()):
                color = "white" if shares[i, j] > 0.5 else "#1c1c1c"
                axes.text(j, i, str(self.counts[i, j]), ha="center", va="center", fontsize=min(9, 20 * side), color=color)
        figure.suptitle(legible(title), fontsize=9, parse_math=False, family=families([title]))
        replace_file(path, lambda handle: figure.savefig(handle, format="png", dpi=120))


def said(name: str) -> str:
    """A folder's name as any terminal can print it: ``\\xff`` for a byte that is no UTF-8."""
    return str(printable(name.encode(errors="surrogateescape").decode(errors="backslashreplace")))
