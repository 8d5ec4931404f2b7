"""Where a prediction's pictures come from: class folders or tables of labels for the support, anything for the query.
Says which file is of which class, and opens none of them but the tables."""

from __future__ import annotations

from pathlib import Path

from metarun.data.layout import WHOLE, labelled, tables
from metarun.data.picture import Found, Reader, search
from metarun.data.records import ENDINGS
from metarun.errors import UserError


def support(place: Path, reader: Reader) -> Found:
    """The pictures by class, of a folder or a table.

    Raises:
        UserError: it is neither, or has no classes.
    """
    wanted = f"one folder of {reader.noun}s per class, or labels.csv"
    if found := _by_table(place):
        return found
    if not place.is_dir():
        raise UserError(f"--support {place} {'is not a folder' if place.exists() else 'does not exist'}: give a folder with {wanted}")
    found = search(place, reader.endings)
    if not found.classes:
        raise UserError(f"--support {place} has no class folders: it should hold {wanted}")
    if loose := found.folders.get(""):
        raise UserError(f"--support {place} has {reader.noun}s outside its class folders, such as {loose[0].name}: move them into one")
    return found


def query(place: Path, reader: Reader) -> Found:
    """The pictures by the folder they lie in, those in ``place`` itself first; or by label, of a table; or one picture alone.

    Raises:
        UserError: there is no such folder or file.
    """
    if found := _by_table(place):
        return found
    if place.is_file():
        return Found(place.parent, {"": [place]}, {})
    if not place.is_dir():
        raise UserError(f"--query {place} does not exist: give a folder of {reader.noun}s, or one of them")
    return search(place, reader.endings)


def table_of(place: Path) -> Path | None:
    """The table of labels that is given, itself or as ``labels`` in a folder; None where there is none."""
    if place.is_dir():
        return tables(place).get(WHOLE)
    return place if place.is_file() and place.suffix.lower() in ENDINGS else None


def _by_table(place: Path) -> Found | None:
    """What a table names; None where there is none."""
    table = table_of(place)
    return Found(table.parent, dict(labelled(table)), {}) if table else None
