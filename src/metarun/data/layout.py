"""How people label their pictures: by class folders, or by a table of file names and labels; divided into splits already, or not.
Says which file is of which class, and opens none of them but the tables."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from metarun.data.picture import search, subfolders
from metarun.data.records import ENDINGS, records
from metarun.errors import UserError, nearest

LAYOUT = (
    "FOLDER holds one folder of pictures per class, or train/, val/ and test/ with such class folders in each, or labels.csv with the "
    "columns filename and label, or train.csv, val.csv and test.csv of that kind"
)
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
WHOLE = "labels"  # name of the table of a folder that is not divided
FILE, LABEL = ("filename", "file_name", "file", "path", "image"), ("label", "class")  # names of a table's columns, the best first
FORM = '{"filename": "…", "label": "…"}'
Classes = dict[str, list[Path]]  # pictures by class name


class Gathered(NamedTuple):
    """The labelled files of a folder."""

    base: Path
    splits: dict[str, Classes] | None  # by name, where the folder is divided
    classes: Classes  # where it is not
    passed: dict[str, str]  # path below the folder to the reason why it is passed over


def gather(root: str, depth: int | None) -> Gathered:
    """What is labelled below a folder, or in a table.

    Tables count before folders: ``labels`` or one for each split, as ``.csv`` or ``.jsonl``, in the folder itself, see ``labelled``.

    Args:
        root: the folder, or a table.
        depth: how many folders name a class, from the top; pictures in folders further down are of that class. None: all of them.

    Raises:
        UserError: there is no such folder, or it is neither of these.
    """
    base = Path(root).expanduser()
    if base.is_file() and base.suffix.lower() in ENDINGS:
        return Gathered(base.parent, None, labelled(base), {})
    if not base.is_dir():
        wrong = "is not a folder" if base.exists() else "does not exist"
        raise UserError(f"data.root={root} {wrong}; give data.root=FOLDER, where {LAYOUT}")
    if found := tables(base):
        if WHOLE in found:
            return Gathered(base, None, labelled(found[WHOLE]), {})
        return Gathered(base, {split: labelled(found[split]) for split in ("train", "val", "test") if split in found}, {}, {})
    passed: dict[str, str] = {}
    if tops := _given_splits(base):
        return Gathered(base, {split: _classes(base, folder, depth, passed) for split, folder in tops.items()}, {}, passed)
    return Gathered(base, None, _classes(base, base, depth, passed), passed)


def tables(base: Path) -> dict[str, Path]:
    """The tables of labels in a folder: ``labels``, or else one by split.

    Raises:
        UserError: two for the same.
    """
    found: dict[str, Path] = {}
    for path in sorted(path for path in base.iterdir() if path.suffix.lower() in ENDINGS and path.is_file()):
        name = SPLITS.get(path.stem.lower(), WHOLE if path.stem.lower() == WHOLE else None)
        if name and found.setdefault(name, path) != path:
            raise UserError(f"{base} has {found[name].name} and {path.name}: keep one")
    if WHOLE in found and len(found) > 1:
        other = next(path.name for name, path in found.items() if name != WHOLE)
        raise UserError(f"{base} has {found[WHOLE].name}, whose classes are divided for you, and {other}, which does so itself: keep one")
    return found


def labelled(table: Path) -> Classes:
    """The files that a table names, by label, in the order of its lines.

    Its columns are ``filename`` (or another of ``FILE``) and ``label`` (or ``class``); more of them count for nothing. Files are looked for
    beside the table, and there in ``images/`` and in the folder of the table's name.

    Raises:
        UserError: the table cannot be read, lacks a column or a cell, or names a file that is not there; with the number of the line.
    """
    found: Classes = {}
    places = [table.parent, table.parent / "images", table.parent / table.stem]
    for number, record in records(str(table), table.read_bytes(), (), FORM):
        where = f"{table} line {number}"
        if not isinstance(record, dict):
            raise UserError(f"{where} has no filename and label; write it as {FORM}")
        name, label = _cell(record, FILE, table, where), _cell(record, LABEL, table, where)
        spellings = (name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))  # archives from a Mac spell é in two characters
        paths = (place / spelt for spelt in spellings for place in places)
        path = next((path for path in paths if os.path.isfile(path)), None)  # false for a name that is too long, too
        if path is None:
            there = [file.name for place in places if place.is_dir() for file in place.iterdir()]
            raise UserError(f"{where} names {name}, which is not there{nearest(Path(name).name, there)}; names count from {table.parent}")
        found.setdefault(label, []).append(path)
    if not found:
        form = FORM if table.suffix.lower() == ".jsonl" else "spaniel1.jpg,spaniel"
        raise UserError(f"{table} has no lines; write one per picture, as {form}")
    return dict(sorted(found.items()))


def _cell(record: dict[str, Any], names: Collection[str], table: Path, where: str) -> str:
    """What a line has in the column of one of these names."""
    best, *_ = names
    column = next((name for name in names if name in record), None)
    if column is None:
        if table.suffix.lower() == ".jsonl":
            raise UserError(f"{where} has no {best}; write it as {FORM}")
        raise UserError(
            f"{table} has no column {best}{nearest(best, record)}; its first line names the columns, filename and label among them"
        )
    value = record[column]
    if value is None or not str(value).strip() or isinstance(value, (dict, list)):
        raise UserError(f"{where} has no {column}: every line has a file and its label; fill it in, or remove the line")
    return str(value).strip()


def _given_splits(base: Path) -> dict[str, Path] | None:
    """The folders of the splits by name, if ``base`` is divided into such; ``train`` may also be the name of a class.

    Raises:
        UserError: two folders for one split, or others beside them.
    """
    names = subfolders(base)
    known = [name for name in names if name.lower() in SPLITS]
    # A folder of pictures is a class, whatever its name; an empty one beside a true split is a split that lacks its classes.
    if not any(subfolders(base / name) for name in known):
        return None
    if others := [name for name in names if name not in known]:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise UserError(
            f"{base} has {', '.join(f'{name}/' for name in known)} and beside them {others[0]}/{more}, which fits no split: move it out of "
            "data.root, or into one of them if it is a class"
        )
    found: dict[str, Path] = {}
    for name in known:
        split = SPLITS[name.lower()]
        if split in found:
            raise UserError(f"{base} has {found[split].name}/ and {name}/, both for the split {split}: keep one")
        found[split] = base / name
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def _classes(base: Path, folder: Path, depth: int | None, passed: dict[str, str]) -> Classes:
    """The classes below ``folder``; what is passed over is added by its path below ``base``."""
    found = search(folder)
    if not found.classes:
        raise UserError(f"{folder} has no class folders; give data.root=FOLDER, where {LAYOUT}")
    below = {(folder / name).relative_to(base).as_posix(): reason for name, reason in found.passed.items()}
    loose_ones = {path.relative_to(base).as_posix(): "outside of the class folders" for path in found.folders.get("", [])}
    passed |= below | loose_ones
    classes: Classes = {}
    for name, paths in found.classes.items():
        classes.setdefault("/".join(name.split("/")[:depth]), []).extend(paths)
    return classes
