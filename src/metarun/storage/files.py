"""Writing so that nothing is lost: whole files or none, whatever signal comes; and one line when the disk is full."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from metarun.errors import RunError
from metarun.runtime.signals import unbroken

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFull(RunError):
    """There is no room for a file."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around whatever writes to ``path``.

    Raises:
        DiskFull: there is no room; every other error comes through, with the path in it.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DiskFull(f"disk full while writing {path}; make room") from None
        error.filename = error.filename or str(path)
        raise


def replace_file(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Call ``write(handle)`` on a temporary file beside ``path`` and put it in place in one step, or leave ``path`` as it was.

    A signal that comes meanwhile waits for the end.

    Raises:
        DiskFull: there is no room.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path), unbroken():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        try:
            with temporary.open("xb") as handle:  # never through a link
                write(handle)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make what was put into a folder, renamed in it or taken from it survive a power cut."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_temporary(folder: Path) -> None:
    """Take away what killed processes have left half written; nobody else may be at work in ``folder``."""
    for path in folder.glob(".*.tmp"):
        path.unlink()
