"""What is known of classes without their pictures: a table of numbers, one line per class, or vectors of the words of their names."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch

from metarun.data.episodes import Split
from metarun.data.word_vectors import SUFFIXES, read_word_vectors
from metarun.errors import UserError, nearest

LINE = "give one line per class, its name and then its numbers, as in spaniel,1,0,0.5"


def described(splits: dict[str, Split], file: str | Path | None, others: Collection[str] = ()) -> dict[str, Split]:
    """Splits whose classes have the attributes of a file, see ``read_attributes`` and ``read_word_vectors``; None leaves them as they are.
    ``others``: classes that a table has to name, too, though they were left out.

    Raises:
        UserError: there is no such file, it is not as described there, or lacks a class.
    """
    if file is None:
        return splits
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(
            f"data.attributes={file} is no file; give a table of classes and numbers (.csv) or word vectors ({', '.join(SUFFIXES)})"
        )
    names = [name for split in splits.values() for name in split.names]
    found = read_word_vectors(path, names) if path.suffix.lower() in SUFFIXES else read_attributes(path, {*names, *others})
    return {
        name: split._replace(attributes=torch.from_numpy(np.stack([found[one] for one in split.names]))) for name, split in splits.items()
    }


def read_attributes(path: Path, classes: Collection[str]) -> dict[str, np.ndarray]:
    """The attribute vector of every class, [attributes] float32, all of the same length.

    The file is a CSV table in UTF-8: name of the class, then numbers. A first line that begins with ``class`` is a heading.

    Raises:
        UserError: the file is empty or no text, a class is missing, unknown or there twice, what should be a number is none, or lines
            differ in length.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [(number, [cell.strip() for cell in row]) for number, row in enumerate(csv.reader(file), start=1) if any(row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a table in UTF-8 ({error}); {LINE}") from None
    if lines and lines[0][1][0].lower() == "class":
        del lines[0]
    if not lines:
        raise UserError(f"{path} is empty; {LINE}")
    found: dict[str, np.ndarray] = {}
    length = len(lines[0][1]) - 1
    for number, (name, *cells) in lines:
        where = f"{path} line {number}: "
        if name not in classes:
            raise UserError(f"{where}there is no class '{name}'{nearest(name, classes)}; remove the line, or add a folder of that name")
        if name in found:
            raise UserError(f"{where}class '{name}' for the second time; keep one line per class")
        if len(cells) != length or not cells:
            raise UserError(
                f"{where}class '{name}' has {len(cells)} numbers, the first class {length}; give every class as many, at least one"
            )
        found[name] = np.array([_number(cell, where, name) for cell in cells], np.float32)
    if missing := sorted(set(classes) - set(found)):
        more = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise UserError(f"{path} has no line for class '{missing[0]}'{more}; {LINE}")
    return found


def _number(cell: str, where: str, name: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or abs(value) > float(np.finfo(np.float32).max):
        raise UserError(f"{where}'{cell}' of class '{name}' is not a number; write it as 0.5, 1 or -2e3")
    return value
