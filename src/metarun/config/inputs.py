"""What a run's numbers come from, noted beside its checkpoints when it begins: the configuration, a digest of the data of each split, and
of a table its columns. A run that goes on with something else says so, since its numbers would be of both."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from metarun.config import legacy
from metarun.config.nested import leaves
from metarun.data.base import Dataset, ImageDataset
from metarun.data.columns import Columns
from metarun.data.episodes import Episodes
from metarun.errors import UserError

log = logging.getLogger(__name__)

# Where things are and how they are shown: no number hangs on it.
INDIFFERENT = ("data.root", "data.download", "device", "name", "logger.")
LARGEST = 4_000_000  # bytes of a note; no configuration comes near it
UNREADABLE = (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError)


def path(folder: Path) -> Path:
    """Where the run in ``folder`` keeps its note."""
    return folder / "checkpoints" / "inputs.json"


def note(values: dict[str, Any], data: Dataset, episodes: Mapping[str, Episodes | None]) -> str:
    """The note, JSON: a resolved configuration, ``Episodes.content`` by split, the columns of a table, and the classes of training."""
    digests = {split: found.content().hex() for split, found in episodes.items() if found}
    table, train = Columns.of(data), data.splits.get("train") if isinstance(data, ImageDataset) else None
    classes = dict(zip(train.names, train.marks())) if train else {}
    return json.dumps({"config": values, "data": digests, "table": table.plain() if table else None, "classes": classes}, indent=1) + "\n"


def columns(folder: Path) -> Columns | None:
    """Those of the table that the run in ``folder`` was trained on; None: it was not, or by an earlier version, or nobody can tell."""
    try:
        return Columns.parsed(found) if (found := _kept(folder).get("table")) else None
    except UNREADABLE:
        return None


def warn_of_changes(folder: Path, now: str) -> None:
    """Say what differs between the ``note`` of today and the one that the run began with; a run of an earlier version has none."""
    try:
        changed = list(_changes(_kept(folder), json.loads(now)))
    except FileNotFoundError:
        return
    except UNREADABLE as error:
        why = " ".join(str(error).split())
        log.warning("%s cannot be read (%s): whether data or configuration have changed is not known", path(folder), why)
        return
    if changed:
        log.warning("since this run began something has changed, and its numbers will be of both: %s", "; ".join(changed))


def refuse_other_columns(folder: Path, data: Dataset) -> None:
    """Refuse, with a UserError, a table whose columns are not those that the run in ``folder`` was trained with."""
    if data.form and (before := columns(folder)):
        before.refuse_others(data.form)


def refuse_known_classes(folder: Path, values: dict[str, Any], data: Dataset, split: str) -> None:
    """Refuse to measure the run in ``folder`` on classes that it was trained on, as another division of the same classes may have them.

    Raises:
        UserError: with one of them.
    """
    if not isinstance(data, ImageDataset) or split not in data.splits:
        return
    try:
        kept = _kept(folder)
        known, before = dict(kept["classes"]), kept["config"]["data"]
    except UNREADABLE:
        return
    part, own = data.splits[split], {*data.splits["train"].names} if "train" in data.splits else set()
    # Where no two splits have a name in common, it is a class's own in all divisions of the same files.
    same = all(before.get(key) == values["data"].get(key) for key in ("name", "root")) and not own & {*part.names}
    marks = {*known.values()}
    if shared := [name for name, mark in zip(part.names, part.marks()) if mark in marks or (same and name in known)]:
        raise UserError(
            f"{len(shared)} of the {part.classes} classes of {split} are classes that this run was trained on, such as {shared[0]}: divide "
            "them as in training, or train anew"
        )


def warn_of_other_data(folder: Path, values: dict[str, Any], split: str, content: bytes) -> None:
    """Say that the data of a split are others than the run in ``folder`` began with, where their configuration is the same."""
    try:
        kept = _kept(folder)
        same, before = kept["config"]["data"] == values["data"], kept["data"].get(split)
    except UNREADABLE:
        return
    if same and before not in (None, content.hex()):
        log.warning("the data of %s have changed since this run began: its earlier results are of others", split)


def _kept(folder: Path) -> dict[str, Any]:
    """The note of the run in ``folder``; raises one of ``UNREADABLE`` where there is none that can be read."""
    kept = path(folder)
    if kept.stat().st_size > LARGEST:
        raise ValueError("it is too large")
    found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def _changes(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    old, new = before["data"], now["data"]
    if splits := [split for split in old.keys() & new.keys() if old[split] != new[split]]:
        yield f"the data of {' and '.join(sorted(splits))}"
    old, new = (dict(leaves(legacy.updated(config))) for config in (before["config"], now["config"]))
    for key in sorted(old.keys() | new.keys()):
        if not key.startswith(INDIFFERENT) and old.get(key) != new.get(key):
            yield f"{key} from {_shown(old, key)} to {_shown(new, key)}"


def _shown(values: dict[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "nothing"
