"""What a run's numbers come from, noted beside its checkpoints when it begins: the configuration, and a digest of the data of each split.
A run that goes on with something else says so, since its numbers would be of both."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from metarun.config import legacy
from metarun.config.nested import leaves
from metarun.data.episodes import Episodes

log = logging.getLogger(__name__)

# Where things are and how they are shown: no number hangs on it.
INDIFFERENT = ("data.root", "data.download", "device", "name", "logger.")
LARGEST = 4_000_000  # bytes of a note; no configuration comes near it


def path(folder: Path) -> Path:
    """Where the run in ``folder`` keeps its note."""
    return folder / "checkpoints" / "inputs.json"


def note(values: dict[str, Any], episodes: Mapping[str, Episodes | None]) -> str:
    """The note, JSON: a resolved configuration, and ``Episodes.content`` by split."""
    digests = {split: found.content().hex() for split, found in episodes.items() if found}
    return json.dumps({"config": values, "data": digests}, indent=1) + "\n"


def warn_of_changes(folder: Path, now: str) -> None:
    """Say what differs between the ``note`` of today and the one that the run began with; a run of an earlier version has none."""
    kept = path(folder)
    try:
        if kept.stat().st_size > LARGEST:
            raise ValueError("it is too large")
        changed = list(_changes(json.loads(kept.read_text(encoding="utf-8")), json.loads(now)))
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        log.warning("%s cannot be read (%s): whether data or configuration have changed is not known", kept, " ".join(str(error).split()))
        return
    if changed:
        log.warning("since this run began something has changed, and its numbers will be of both: %s", "; ".join(changed))


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
