"""What ``metarun predict`` and ``metarun classify`` leave: a table of the answers, the confusion table, and a summary on stdout."""

from __future__ import annotations

import csv
import io
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from rich.console import Console

from metarun.errors import nearest
from metarun.predict.confusion import Confusion, said
from metarun.predict.contact_sheet import Answer
from metarun.predict.destination import Destination
from metarun.protocols.verification import roc

log = logging.getLogger(__name__)
LINE = "line"  # what a row of a table goes by
STRAYS = 8  # names of no class, of which a line tells


@dataclass(frozen=True)
class Outcome:
    """Answers, and what they say together.

    Attributes:
        answers: in order.
        classes: of the support.
        noun: what was asked about, several of them.
        known, strange: what is said of those that are of a class, and of those of none.
        key: the heading of an answer's name in a table.
    """

    answers: Sequence[Answer]
    classes: Sequence[str]
    noun: str = "pictures"
    known: str = "in folders named like a class"
    strange: str = "in folders that name no class of the support"
    key: str = "file"

    @cached_property
    def accuracy(self) -> float | None:
        """Of those whose class is known."""
        judged = [answer.guess == answer.truth for answer in self.answers if answer.truth is not None]
        return sum(judged) / len(judged) if judged else None

    @cached_property
    def strays(self) -> Counter[str]:
        """What else than a class is said of them, and how often."""
        return Counter(answer.stray for answer in self.answers if answer.stray is not None)

    @cached_property
    def confusion(self) -> Confusion | None:
        """Which class is taken for which, where that is known."""
        return Confusion.of(self.answers, self.classes)

    def told(self) -> dict[str, str]:
        """Of the known and the strange, in words."""
        known = sum(answer.truth is not None for answer in self.answers)
        return {
            "accuracy": "" if self.accuracy is None else f"{self.accuracy:.4f} on the {known} {self.noun} {self.known}",
            "of no class": self._of_no_class(),
        }

    def _of_no_class(self) -> str:
        """What is of none, and of which a class has nearly the name."""
        if not self.strays:
            return ""
        shown = [said(f"{name} ({count}{nearest(name, self.classes)})") for name, count in self.strays.most_common(STRAYS)]
        more = f" and {len(self.strays) - STRAYS} more" if len(self.strays) > STRAYS else ""
        return f"{self.strays.total()} {self.noun} {self.strange}: {', '.join(shown)}{more}"

    def separation(self, score: Callable[[Answer], float | None] = lambda answer: answer.belonging) -> float | None:
        """How well a score, by default belonging, tells answers about classes from those about none: AUROC; None: either is missing."""
        known = np.array([score(answer) for answer in self.answers if answer.truth is not None])
        others = np.array([score(answer) for answer in self.answers if answer.stray is not None])
        return roc(known, others).auc if len(known) and len(others) else None

    def save(self, to: Destination, title: str) -> dict[str, str]:
        """Write the table, and confusion beside it where there is room; what lies where."""
        to.write(self._csv() if to.table.suffix == ".csv" else self._json())
        if not self.confusion or not to.folder:
            return {}
        self.confusion.save(to.folder, title)
        return {"confusion": str(to.folder / "confusion.csv")}

    def _csv(self) -> str:
        """One line per query: its name, answer, probability of the likeliest class, then that of every class; ``truth`` where any is known,
        and ``belonging`` where it was asked for.
        """
        further = {
            "truth": any(answer.truth is not None for answer in self.answers),
            "belonging": any(answer.belonging is not None for answer in self.answers),
        }
        there = [name for name, wanted in further.items() if wanted]
        lines = [[self.key, "class", "probability", *there, *(f"p_{name}" for name in self.classes)]]
        for answer in self.answers:
            more = {"truth": answer.truth or "", "belonging": f"{answer.belonging:.6g}" if answer.belonging is not None else ""}
            first, *rest = (f"{p:.6f}" for p in (answer.confidence, *answer.probabilities.values()))
            lines.append([answer.file, answer.guess, first, *(more[name] for name in there), *rest])
        return as_csv(lines)

    def _json(self) -> str:
        """A list with one object per query; ``truth`` is null where it is not known, ``belonging`` there where it was asked for."""
        records = [
            {self.key: a.file, "class": a.guess, "probability": a.confidence, "truth": a.truth, "probabilities": a.probabilities}
            | ({} if a.belonging is None else {"belonging": a.belonging})
            for a in self.answers
        ]
        return as_json(records)


def warn_of(copies: Sequence[tuple[str, str]], n: int, noun: str) -> None:
    """Of n queries those that are in the support as well, each after what it is a copy of."""
    if copies:
        log.warning(
            "%d of %d %s to be classified are in the support as well, such as %s and %s: that they are recognised says nothing",
            len(copies), n, noun, *copies[0],
        )  # fmt: skip


def as_csv(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells, the headings first."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()


def as_json(records: Sequence[object]) -> str:
    """A list of objects."""
    return json.dumps(records, indent=1, ensure_ascii=False)


def tell(told: dict[str, str], confusion: Confusion | None = None) -> None:
    """On stdout what is not empty, by what it is about, and the confusion table."""
    for key, value in told.items():
        if value:
            print(f"{key:12} {value}")
    if confusion:
        Console(highlight=False, width=None if sys.stdout.isatty() else 100).print(confusion.table())
