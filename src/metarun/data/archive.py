"""Finding, downloading and reading a published archive: the zip as released, or the folder it unpacks to.
Whatever is wrong with it (absent, cut short, not a zip, an unreadable member) ends in one line for the user."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pooch

from metarun.data.cache import user_cache
from metarun.errors import UserError

INFLATES = 100  # times its own size that an archive may unfold to; pictures and text do far less
HARMLESS = 2**24  # bytes that any may

# All that zipfile and tarfile raise on bad input.
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError, RuntimeError)


class Archive(NamedTuple):
    """A file somebody publishes."""

    file: str  # its name, "NAME.zip"
    url: str
    hash: str  # "sha256:…" or "md5:…", as pooch takes it


def locate(source: Archive, root: str | None, subfolder: str, loose: str | None = None) -> Path | None:
    """Where a source lies, as zip or as unpacked folder ``NAME``, or None.

    Looked for in ``root``, ``$METARUN_DATA`` and the user's cache, in this order, each time also in ``subfolder``.

    Args:
        loose: for an archive without a folder of its own: the name of a thing whose presence shows that it was unpacked right here.

    Raises:
        UserError: ``root`` is given and is not a folder.
    """
    for place in places(root, subfolder):
        if (place / source.file).is_file():
            return place / source.file
        if (place / Path(source.file).stem).is_dir():
            return place / Path(source.file).stem
        if loose is not None and (place / loose).exists():
            return place
    return None


def places(root: str | None, subfolder: str) -> list[Path]:
    """The folders that ``locate`` looks into."""
    if root is not None and not Path(root).expanduser().is_dir():
        raise UserError(f"data.root={root} is not a folder; create it, give another, or leave data.root out")
    given = [root, os.environ.get("METARUN_DATA"), str(user_cache())]
    return [folder for top in given if top for folder in (Path(top).expanduser(), Path(top).expanduser() / subfolder)]


def obtain(source: Archive, root: str | None, subfolder: str, download: bool, loose: str | None = None) -> Path:
    """``locate``, and if there is nothing, download into the user's cache.

    Raises:
        UserError: the file is nowhere and cannot or must not be downloaded.
    """
    return locate(source, root, subfolder, loose) or fetch(source, root, subfolder, download)


def fetch(source: Archive, root: str | None, subfolder: str, download: bool) -> Path:
    """Download into the user's cache.

    Raises:
        UserError: it cannot or must not be.
    """
    if download:
        try:
            return Path(pooch.retrieve(source.url, source.hash, fname=source.file, path=user_cache() / subfolder, progressbar=True))
        except OSError as error:  # no network (the errors of requests are OSErrors), no room on the disk
            why = f"could not be downloaded from {source.url} ({type(error).__name__})"
        except ValueError:  # how pooch tells that the hash differs
            why = f"what {source.url} sends is not the published file (another hash)"
    else:
        why = f"data.download=false forbids fetching it from {source.url}"
    put = f"put it into {root}" if root else f"put it into {user_cache() / subfolder} or name its folder with data.root=FOLDER"
    raise UserError(f"{source.file} is not on this machine and {why}; {put}, or use data=glyphs, which needs no files")


def read(path: Path, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file of an archive or folder whose whole relative name (with ``/``) matches, in order of name.

    Raises:
        UserError: the archive is damaged (zipfile checks sizes and CRCs), unfolds to absurdly much, or a file cannot be read.
    """
    name = path.name
    try:
        if path.is_dir():
            files = [os.path.relpath(os.path.join(folder, file), path) for folder, _, names in os.walk(path) for file in names]
            for name in sorted(file for file in (Path(file).as_posix() for file in files) if wanted.fullmatch(file)):
                _refuse_pipe(path / name)
                yield name, (path / name).read_bytes()
        else:
            _refuse_pipe(path)
            with zipfile.ZipFile(path) as archive:
                members = {file.filename: file for file in archive.infolist() if wanted.fullmatch(file.filename)}
                refuse_bomb(path, sum(member.file_size for member in members.values()))
                for name in sorted(members):
                    yield name, archive.read(members[name])
    except DAMAGE as error:
        raise damaged(path, f"{name}: {error}") from None


def contents(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """As ``read``, of a zip or tar archive, in its own order and of any packing."""
    name = path.name
    try:
        _refuse_pipe(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                members = [file for file in archive.infolist() if wanted(file.filename)]
                refuse_bomb(path, sum(file.file_size for file in members))
                for file in members:
                    name = file.filename
                    yield name, archive.read(file)
        else:
            with path.open("rb") as packed, _unpacked(packed) as plain, tarfile.open(fileobj=_Capped(plain, path), mode="r:") as tar:
                for member in tar:
                    name = member.name
                    if member.isreg() and wanted(name):
                        yield name, tar.extractfile(member).read()  # type: ignore[union-attr]  # a regular file has content
    except DAMAGE as error:
        raise damaged(path, f"{name}: {error}") from None


def arrays(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` whose names are ``wanted``; one that would have to be unpickled is damage.

    Raises:
        UserError: it unfolds to absurdly much.
        ValueError, or one of ``DAMAGE``: it is none.
    """
    _refuse_pipe(path)
    with zipfile.ZipFile(path) as archive:
        refuse_bomb(path, sum(member.file_size for member in archive.infolist()))
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files if wanted(name)}


def _refuse_pipe(path: Path) -> None:
    """A pipe would be waited for, for ever."""
    if path.exists() and not path.is_file():
        raise OSError("not a regular file")


def _unpacked(packed: BinaryIO) -> BinaryIO:
    """What a tar file is packed in, taken off."""
    start = packed.read(6)
    packed.seek(0)
    openers: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
    opener = next((opener for magic, opener in openers.items() if start.startswith(magic)), None)
    return opener(packed) if opener else packed


class _Capped(io.RawIOBase):
    """A file of which no more is read than an archive at ``path`` may unfold to, headers included."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path

    def read(self, size: int = -1) -> bytes:
        refuse_bomb(self.path, self.file.tell() + max(size, 0))
        return self.file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        refuse_bomb(self.path, offset)
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()


def refuse_bomb(path: Path, size: int) -> None:
    """Before anything is unfolded: refuse an archive whose members have ``size`` bytes together, far more than pictures can be packed to.

    Raises:
        UserError: more than ``INFLATES`` times the archive's own size, and not ``HARMLESS``.
    """
    own = path.stat().st_size
    if size > max(HARMLESS, INFLATES * own):
        raise damaged(path, f"its {own:,} bytes would unfold to {size:,}")


def damaged(path: Path, what: str) -> UserError:
    """The one line for an archive that is not as published."""
    kind = "folder" if path.is_dir() else "file"
    return UserError(
        f"the {kind} {path} is damaged ({' '.join(what.split())}); delete it to have it downloaded again, or put an intact copy there"
    )
