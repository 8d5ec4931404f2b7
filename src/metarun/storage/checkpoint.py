"""Checkpoints: one file, written atomically, read with torch's safe loader.
A run cut at any moment leaves the last complete checkpoint behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from metarun.errors import RunError, UserError

KEYS = {"problem", "algorithm", "outer", "progress"}  # of a checkpoint's content
OPTIONAL = {"carried"}  # the states of inner loops that go on in the next iteration, where there are such


def replace_file(path: Path, write: Any) -> None:
    """Call ``write(handle)`` on a temporary file beside ``path`` and put it in place in one step, or leave ``path`` as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as handle:
            write(handle)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings, lists and dicts only) to ``path``."""
    replace_file(path, lambda handle: torch.save(state, handle))


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing in the file is executed.

    Raises:
        UserError: there is no such file.
        RunError: the file is damaged.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}: the run was cut before its first one, or this is not a run folder; start it again")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not (isinstance(state, dict) and state.keys() - OPTIONAL == KEYS):
            raise ValueError("another program's")
        return state
    except Exception:  # scrambled bytes make the unpickler raise whatever it stumbles over
        other = path.with_name("best.pt" if path.name == "last.pt" else "last.pt")
        hint = f"; {other.name} beside it can be used: metarun eval {path.parents[1]} --checkpoint {other.stem}" if other.is_file() else ""
        raise RunError(f"the checkpoint {path} is damaged and cannot be read{hint}") from None
