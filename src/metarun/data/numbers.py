"""Tables of numbers as people keep them: CSV or lines of JSON, a row per example, some columns numbers and one the name of a group.
Every cell is checked, and every mistake names file, line and column."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metarun.data.division import divide
from metarun.data.layout import SPLITS
from metarun.data.records import ENDINGS, records
from metarun.errors import UserError, nearest

log = logging.getLogger(__name__)

NAMED = 5  # groups that a message names
Pick = Callable[[list[str]], list[str]]  # of all columns, those of the numbers, in order; raises UserError


class Table(NamedTuple):
    """Rows of numbers in groups, in the order of the file within a group."""

    columns: list[str]
    groups: dict[str, np.ndarray]  # [rows, columns] float64, by name in order of name


def refuse_unnamed(where: str, columns: Sequence[str]) -> None:
    """Refuse, with a UserError, a column of numbers without a name, which would tell the order of the lines."""
    if "" in columns:
        raise UserError(f"{where} has a column without a name, as of line numbers that a program has written: name it, or remove it")


def gather(root: str | None, data: str, key: str, pick: Pick) -> tuple[dict[str, Table] | None, Table | None]:
    """The tables of splits, or else the one that is not divided.

    Args:
        root: a table, or a folder with ``train``, ``val`` and ``test`` as tables.
        data: the option, for messages.
        key: the column of groups.
        pick: which columns are read.

    Raises:
        UserError: there is no such file or folder; or see ``read``.
    """
    wants = f"give data.root=FILE.csv, or a folder with train.csv, val.csv and test.csv, which have a column {key} and columns of numbers"
    if root is None:
        raise UserError(f"data={data} needs data.root; {wants}")
    base = Path(root).expanduser()
    if base.is_file():
        if base.suffix.lower() not in ENDINGS:
            raise UserError(f"data.root={root} is no table by its name ({', '.join(ENDINGS)}); {wants}")
        return None, read(base, key, pick)
    if not base.is_dir():
        raise UserError(f"data.root={root} does not exist; {wants}")
    found: dict[str, Path] = {}
    for path in sorted(path for path in base.iterdir() if path.suffix.lower() in ENDINGS and path.is_file()):
        if (split := SPLITS.get(path.stem.lower())) and found.setdefault(split, path) != path:
            raise UserError(f"{base} has {found[split].name} and {path.name}, both for the split {split}: keep one")
    if not found:
        raise UserError(f"data.root={root} holds no train.csv, val.csv or test.csv; {wants}")
    splits: dict[str, Table] = {split: read(found[split], key, pick) for split in ("train", "val", "test") if split in found}
    first, *rest = splits
    for split in rest:
        if splits[split].columns != splits[first].columns:
            differ = sorted({*splits[split].columns} ^ {*splits[first].columns}) or ["their order"]
            raise UserError(f"{found[first]} and {found[split]} have other columns ({', '.join(differ)}): give them the same")
    return splits, None


def read(path: Path, key: str, pick: Pick) -> Table:
    """A table, its rows by what stands in the column ``key``.

    Raises:
        UserError: a column is missing, a line is too short or too long, a cell that should be a number is none; or there are no lines.
    """
    form = f'{{"{key}": "…", "x1": 0.5}}'
    columns: list[str] | None = None
    found: dict[str, list[list[float]]] = {}
    for line, record in records(str(path), path.read_bytes(), [key], form):
        where = f"{path} line {line}"
        if not isinstance(record, dict):
            raise UserError(f"{where} is no object; write it as {form}")
        columns = pick([name for name in record if name != key]) if columns is None else columns
        if record.get(key) is None or isinstance(record[key], (dict, list)) or not str(record[key]).strip():
            raise UserError(f"{where} has nothing in the column {key}: fill it in, or remove the line")
        found.setdefault(str(record[key]).strip(), []).append([number(record, column, where) for column in columns])
    if columns is None:
        raise UserError(f"{path} has no lines of numbers below the one that names the columns")
    return Table(columns, {name: np.array(found[name]) for name in sorted(found)})


def number(record: dict[str, Any], column: str, where: str) -> float:
    """What a line has in a column.

    Raises:
        UserError: nothing, or no finite number.
    """
    cell = record.get(column)
    if cell is None:
        raise UserError(f"{where} is too short: it has nothing in the column {column}")
    try:
        value = float(str(cell) if isinstance(cell, bool) else cell)  # JSON's true is no number
    except OverflowError:  # an integer of hundreds of digits
        value = math.inf
    except (TypeError, ValueError):
        raise UserError(
            f"{where}: {str(cell)!r} in the column {column} is no number, as 0.5 is; mend it, or leave that column out"
        ) from None
    if not math.isfinite(value) or abs(value) > float(np.finfo(np.float32).max):
        raise UserError(f"{where}: {cell} in the column {column} is not finite; fill it in, or remove the line")
    return value


def chosen(key: str, there: Sequence[str], names: Sequence[str]) -> list[str]:
    """The columns that the option ``key`` names.

    Raises:
        UserError: one is not there.
    """
    for name in names:
        if name not in there:
            raise UserError(f"data.{key} names the column {name}, which the table does not have{nearest(name, there)}")
    return list(names)


def in_splits(
    tables: dict[str, Table] | None,
    whole: Table | None,
    what: str,
    min_rows: int,
    val_fraction: float,
    test_fraction: float,
    split_seed: int,
    fold: int,
) -> dict[str, dict[str, np.ndarray]]:
    """The groups of each split, without those that have fewer than ``min_rows`` rows, which are named; see ``divide`` for the rest.

    Args:
        tables, whole: one of them, of ``gather``.
        what: groups are, for messages: ``classes`` or ``tasks``.

    Raises:
        UserError: none is left in a split, or there are too few to divide.
    """
    given = {split: table.groups for split, table in tables.items()} if tables else {"": whole.groups if whole else {}}
    small = [f"{name} ({len(rows)})" for groups in given.values() for name, rows in groups.items() if len(rows) < min_rows]
    kept = {split: {name: rows for name, rows in groups.items() if len(rows) >= min_rows} for split, groups in given.items()}
    for split, groups in kept.items():
        if not groups:
            raise UserError(f"none of the {what}{f' of {split}' * bool(split)} has data.min_rows={min_rows} rows: choose fewer")
    if small:
        more = f" and {len(small) - NAMED} more" if len(small) > NAMED else ""
        log.warning("%s left out, as they have fewer than data.min_rows=%d rows: %s%s", what, min_rows, ", ".join(small[:NAMED]), more)
    if tables:
        return kept
    names = divide(list(kept[""]), what, val_fraction, test_fraction, split_seed, fold)
    return {split: {name: kept[""][name] for name in part} for split, part in names.items()}
