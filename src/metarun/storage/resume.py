"""What a run's folder holds of work already done: what a run goes on from, how a finished one is opened again, looks at the test split."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

from metarun.storage import checkpoint, foreign
from metarun.storage.files import remove_temporary, sync_folder

log = logging.getLogger(__name__)
LEFTOVERS = ("metrics.jsonl", "test_scores.npy", "tb")  # of a run cut before its first checkpoint


def state(folder: Path) -> dict[str, Any] | None:
    """The content of the checkpoint that the run goes on from; None: it was killed before the first one and starts again.

    What killed processes left half written is taken away; nobody else may be at work in the folder.

    Raises:
        RunError: the checkpoint is damaged.
    """
    for place in (folder, folder / "checkpoints"):
        remove_temporary(place)
    checkpoints = checkpoint.present(folder)
    if not checkpoints:
        for name in LEFTOVERS:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        log.info("there is no checkpoint yet: the run starts from the beginning")
        return None
    found, kept = checkpoint.load(checkpoints[0]), whole_lines(folder / "metrics.jsonl")
    if found["progress"]["metrics_bytes"] > kept:
        earlier = next((s for s in map(checkpoint.load, checkpoints[1:]) if s["progress"]["metrics_bytes"] <= kept), None)
        what = f"computed again from iteration {earlier['progress']['iteration']} on" if earlier else "lost; the weights are not"
        log.warning("%s was cut short (a power cut?): lines up to iteration %d are %s",
                    folder / "metrics.jsonl", found["progress"]["iteration"], what)  # fmt: skip
        return earlier or found
    return found


def whole_lines(path: Path) -> int:
    """Bytes of a file up to the end of its last whole line; 0 where there is none."""
    if not path.exists():
        return 0
    with foreign.open_plain(path) as file:
        end = os.fstat(file.fileno()).st_size
        while end > 0:
            start = max(0, end - 2**16)
            file.seek(start)
            if (last := file.read(end - start).rfind(b"\n")) >= 0:
                return start + last + 1
            end = start
    return 0


def reopen(folder: Path) -> None:
    """Make a finished run an unfinished one that can go further; its result so far moves to ``eval/<n>``, where it still counts."""
    place = folder / "eval" / str(next(n for n in range(10**6) if not (folder / "eval" / str(n)).exists()))
    place.mkdir(parents=True)
    for name in ("config.yaml", "test_scores.npy"):
        if (folder / name).exists():
            shutil.copy2(folder / name, place / name)
    os.rename(folder / "summary.json", place / "summary.json")
    sync_folder(folder)
    log.info("the result so far is kept in %s", place)


def test_looks(folder: Path) -> int:
    """How often a test split has been looked at with the run in ``folder``: by the run itself, and by evaluations of it."""
    summaries = []
    for path in (folder / "summary.json", *folder.glob("eval/*/summary.json")):
        try:
            summaries.append(foreign.json_object(path))
        except foreign.DamagedError:  # not there yet; half a file does not exist
            continue
    return sum(summary.get("test") is not None for summary in summaries)
