"""Run folders: made so that no two processes share one, and taken away again when nothing came of the run."""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from metarun.errors import UserError

DATE = re.compile(r"\d{4}-\d\d-\d\d")


def alternatives(wanted: Path) -> Iterator[Path]:
    """``wanted``, ``wanted_2``, ``wanted_3``, …: two runs that start within a second both get a folder."""
    return itertools.chain([wanted], (wanted.with_name(f"{wanted.name}_{n}") for n in itertools.count(2)))


@contextmanager
def new_folder(names: Iterable[Path], mend: str = "name another with hydra.run.dir=FOLDER") -> Iterator[Path]:
    """The first of ``names`` that is free, created. If the block fails before there is a result, all that was created goes again.

    Args:
        mend: what the user can do when none can be made.

    Raises:
        UserError: no folder can be made there, or all names are taken.
    """
    made: list[Path] = []
    path = _claim(names, made, mend)
    try:
        yield path
    except BaseException:
        if not worth_keeping(path):
            for child in path.iterdir():
                shutil.rmtree(child) if child.is_dir() else child.unlink()
            for folder in reversed(made):
                with suppress(OSError):  # others use it by now
                    folder.rmdir()
        raise


def _claim(names: Iterable[Path], made: list[Path], mend: str) -> Path:
    path = Path()
    try:
        for path in names:
            made.extend(parent for parent in reversed(path.parents) if not parent.exists())
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                path.mkdir()  # by this process and no other
                made.append(path)
                return path
        if path.is_dir() and not any(path.iterdir()):  # the only name there is, and an empty folder
            return path
    except OSError as error:
        why = f"{error.strerror}: {error.filename}"
        raise UserError(f"the folder {path} cannot be made ({why}); {mend}") from None
    other = f"or: metarun resume {path}" if (path / "config.yaml").exists() else "or delete it, as it holds no run"
    raise UserError(f"{path} is there already and is not an empty folder; {mend}, {other}")


def worth_keeping(path: Path) -> bool:
    """A checkpoint, or numbers of a run that failed, or runs of a sweep, or answers of a prediction."""
    results = (*(path / "checkpoints").glob("*.pt"), *path.glob("predictions.*"))
    return bool(results) or any(file.stat().st_size for file in path.rglob("metrics.jsonl"))


@contextmanager
def held(folder: Path, wait: Callable[[], None] | None = None) -> Iterator[None]:
    """A run's folder for this process alone; the system lets go of it with the process, whatever ends that.

    Args:
        folder: there already.
        wait: called before waiting for another process that works there; without it, that is an error.

    Raises:
        UserError: another process works there.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise UserError(f"another process is at work in {folder}; wait until it has ended, or stop it") from None
                wait()
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def outputs_root(folder: Path) -> Path:
    """The folder that holds all runs beside this one: what is above ``[multirun/]DATE/``, or the run's own folder."""
    for path in folder.resolve().parents:
        if DATE.fullmatch(path.name):
            return path.parent.parent if path.parent.name == "multirun" else path.parent
    return folder


def relative(path: Path) -> str:
    """A path as short as it can be said from here."""
    path, here = path.resolve(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
