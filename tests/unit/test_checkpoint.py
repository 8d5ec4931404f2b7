"""Checkpoints: exact, atomic, and read without running what is in them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import same

from metarun.errors import RunError, UserError
from metarun.storage import checkpoint

STATE: dict[str, Any] = {
    "problem": {"classes": 9, "outputs": 3},
    "algorithm": {"w": torch.arange(3.0)},
    "outer": {"state": {0: {"step": torch.tensor(2.0)}}},
    "progress": {"iteration": 3, "best": {}},
}
OTHER = {**STATE, "progress": {"iteration": 4, "best": {}}}


def file_in(folder: Path) -> Path:
    path = folder / "run" / "checkpoints" / "last.pt"
    checkpoint.save(path, STATE)
    return path


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    assert same(checkpoint.load(file_in(tmp_path)), STATE)


def test_nothing_but_the_file_is_left_behind(tmp_path: Path) -> None:
    path = file_in(tmp_path)
    assert os.listdir(path.parent) == ["last.pt"]


def broken_save(state: Any, handle: Any) -> None:
    handle.write(b"half a check")
    raise OSError("disk full")


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file_in(tmp_path)
    monkeypatch.setattr(torch, "save", broken_save)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, OTHER)
    assert os.listdir(path.parent) == ["last.pt"]
    assert same(checkpoint.load(path), STATE)


def test_the_old_file_is_complete_until_the_new_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file_in(tmp_path)
    save, seen = torch.save, []

    def observing(state: Any, handle: Any) -> None:
        save(state, handle)
        seen.append(checkpoint.load(path))

    monkeypatch.setattr(torch, "save", observing)
    checkpoint.save(path, OTHER)
    assert same(seen[0], STATE)
    assert same(checkpoint.load(path), OTHER)


def test_the_file_is_replaced_and_never_rewritten(tmp_path: Path) -> None:
    """Whoever has the old file open, or linked, keeps all of it."""
    path = file_in(tmp_path)
    os.link(path, tmp_path / "old.pt")
    checkpoint.save(path, OTHER)
    assert same(checkpoint.load(tmp_path / "old.pt"), STATE)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def scramble(path: Path) -> None:
    path.write_bytes(os.urandom(500))


@pytest.mark.parametrize("damage", [cut, empty, scramble])
def test_a_damaged_file_is_the_runs_failure_in_one_line(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = file_in(tmp_path)
    damage(path)
    with pytest.raises(RunError, match="is damaged and cannot be read") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)
    assert "best" not in str(caught.value)


def test_the_other_checkpoint_is_offered_when_there_is_one(tmp_path: Path) -> None:
    path = file_in(tmp_path)
    checkpoint.save(path.with_name("best.pt"), STATE)
    cut(path)
    with pytest.raises(RunError, match=r"best\.pt beside it can be used: metarun eval .*run --checkpoint best"):
        checkpoint.load(path)


def test_a_missing_file_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no checkpoint at .*last\.pt"):
        checkpoint.load(tmp_path / "last.pt")


class Payload:
    """Unpickling it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    checkpoint.save(path, {**STATE, "progress": Payload(tmp_path / "hacked")})
    with pytest.raises(RunError):
        checkpoint.load(path)
    assert not (tmp_path / "hacked").exists()
