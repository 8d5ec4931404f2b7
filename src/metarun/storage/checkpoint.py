"""Checkpoints: one file, written atomically, read with torch's safe loader and verified before anything is built from it.
A run cut at any moment leaves the last complete checkpoint behind."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarun.errors import RunError, UserError
from metarun.storage import foreign
from metarun.storage.files import replace_file

KEYS = {"problem", "algorithm", "outer", "progress"}  # of a checkpoint's content
OPTIONAL = {"carried"}  # the states of inner loops that go on in the next iteration, where there are such
FEW = 10_000  # classes or outputs that need no proof by a tensor as long


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings, lists and dicts only) to ``path``.

    Raises:
        DiskFull: there is no room.
        RunError: its numbers are not all finite; what was there before stays.
    """
    if wrong := not_finite(state):
        raise RunError(f"{wrong} would be saved to {path}, which stays as it was; try a smaller optim.lr or algo.inner_lr")
    buffer = io.BytesIO()  # a writer of torch's that meets a full disk says something else
    torch.save(state, buffer)
    replace_file(path, lambda handle: handle.write(buffer.getbuffer()))


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing in the file is executed, and every byte is checked.

    Raises:
        UserError: there is no such file.
        RunError: the file is damaged, or holds numbers that are not finite.
    """
    if not path.exists():
        raise UserError(f"no checkpoint at {path}: the run was cut before its first one, or this is not a run folder; start it again")
    try:
        return _read(path)
    except Exception as error:  # scrambled bytes make the unpickler raise whatever it stumbles over
        why = str(error) if isinstance(error, RunError) else "is damaged and cannot be read"
        raise RunError(f"the checkpoint {path} {why}{_hint(path)}") from None


def present(folder: Path) -> list[Path]:
    """The checkpoints that the run in ``folder`` can go on from: the last one, then the best, alone if it was killed between the two."""
    return [path for path in (folder / "checkpoints" / f"{name}.pt" for name in ("last", "best")) if path.exists()]


def not_finite(state: dict[str, Any]) -> str:
    """The first of the tensors in a checkpoint's content that has a number which is none, as ``the weights net.…``; or nothing."""
    for name, tensor in state["algorithm"].items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            return f"weights that are not finite numbers ({foreign.printable(name)})"
    outer = (leaf for leaf in _tensors(state["outer"]) if leaf.is_floating_point())
    return "" if all(leaf.isfinite().all() for leaf in outer) else "an optimizer whose numbers are not finite"


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in nested values, each once: a file may refer to the same list again and again."""
    found, todo, seen = [], [value], set[int]()
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (dict, list, tuple)):
            todo.extend(value.values() if isinstance(value, dict) else value)
    return found


def saved(path: Path) -> Any:
    """What torch has saved to a file, onto the CPU; nothing in it is executed, and every byte is checked, which torch itself does not.

    Raises:
        Exception: it is damaged, or somebody else's work.
    """
    with foreign.open_plain(path) as file:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            # As torch writes it: nothing is packed, so that nothing unfolds to more than the file's own size.
            if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > path.stat().st_size:
                raise ValueError("it holds more than its size")
            if archive.testzip() is not None:  # compares every CRC
                raise ValueError("a checksum differs")
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


def _read(path: Path) -> dict[str, Any]:
    """A checkpoint's content, verified.

    Raises:
        RunError: what is wrong with it, in words that follow the file's name.
        Exception: it is damaged.
    """
    state = saved(path)
    if not (isinstance(state, dict) and state.keys() - OPTIONAL == KEYS):
        raise ValueError("another program's")
    if not all(isinstance(name, str) and name.isprintable() for name in state["algorithm"]):
        raise ValueError("names that are no names")
    tensors = _tensors(state)
    if any(t.untyped_storage().nbytes() < t.numel() * t.element_size() for t in tensors):
        raise ValueError("a tensor of more numbers than are stored")
    longest = max([FEW, *(max(t.shape, default=0) for t in tensors)])
    for name, number in state["problem"].items():
        if type(number) is not int or not 0 <= number <= longest:
            raise RunError(f"says {name}={foreign.printable(str(number)[:20])}, for which it has no weights")
    if wrong := not_finite(state):
        raise RunError(f"holds {wrong}")
    return state


def _hint(path: Path) -> str:
    """What to do without this checkpoint."""
    other = path.with_name("best.pt" if path.name == "last.pt" else "last.pt")
    try:
        _read(other)
    except Exception:  # it is no better, or not there
        return ""
    how = f"metarun eval {path.parents[1]} --checkpoint {other.stem}"
    delete = f", or delete {path.name} and: metarun resume {path.parents[1]}" if path.name == "last.pt" else ""
    return f"; {other.name} beside it can be used: {how}{delete}"
