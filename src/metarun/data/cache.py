"""Decoded images, kept once as a plain uint8 .npy file with a JSON note beside it, so that only the first run decodes.
A cache is never trusted: a changed source has another key, and a damaged file fails its checksum; both are rebuilt."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import math
import os
import secrets
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pooch

log = logging.getLogger(__name__)

LARGE = 256 * 2**20  # bytes; above this the file is memory-mapped instead of read
PIECE = 2**20  # bytes checksummed at a time
STALE = 24 * 3600.0  # seconds after which nobody is still writing a temporary file


def user_cache() -> Path:
    """The user's own cache folder for this program: downloads go here, and decoded images unless ``$METARUN_CACHE`` is set."""
    return Path(pooch.os_cache("metarun"))


def fingerprint(source: Path) -> list[str | int]:
    """What tells one state of a source from another, JSON-able: its path, and the size and times of its file or files.

    ``source`` is a file, or a folder, whose files all count, at any depth; contents are not read.
    """
    root = str(source.resolve())
    files = [root] if source.is_file() else sorted(os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names)
    digest = hashlib.sha256()
    for path in files:
        stat = os.stat(path) if os.path.exists(path) else os.lstat(path)  # a link to nowhere: whoever reads it will complain
        digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\n".encode(errors="surrogateescape"))
    return [root, len(files), digest.hexdigest()]


def cached_images(key: dict[str, Any], build: Callable[[], tuple[np.ndarray, Any]]) -> tuple[np.ndarray, Any]:
    """``build()``, or what an earlier ``build()`` of the same key returned.

    Args:
        key: JSON-able; names everything the result depends on: dataset, options, ``fingerprint`` of the sources, and a
            version of the code. ``key["name"]`` opens the file's name.
        build: decodes; returns the images (uint8, any shape) and JSON-able notes about them (names, counts …).

    Returns:
        The images, writable without touching the file (above 256 MB memory-mapped, copy on write), and the notes as JSON
        gives them back (tuples have become lists).
    """
    text = json.dumps(key, sort_keys=True)
    place = folder("images")
    path = place / f"{key['name']}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npy"
    found = _read(path, text)
    if found is not None:
        return found
    images, notes = build()
    if images.dtype != np.uint8:
        raise TypeError(f"images to be cached are uint8, not {images.dtype}")
    images = np.ascontiguousarray(images)
    side = json.dumps({"key": text, "shape": images.shape, "crc32": _crc32(images), "notes": notes})
    kept = None
    try:
        place.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(place)
        _write(path, lambda file: np.save(file, images))
        _write(path.with_suffix(".json"), lambda file: file.write(side.encode()))
        if images.nbytes > LARGE:
            kept = _read(path, text)
    except OSError as error:
        _warn_unwritable(str(place), error.strerror)
    return kept or (images, json.loads(side)["notes"])


def room(shape: tuple[int, ...]) -> np.ndarray:
    """An array of uint8 to decode into: in memory, above 256 MB in a file without a name in the cache's folder."""
    if math.prod(shape) <= LARGE:
        return np.empty(shape, np.uint8)
    place = folder("images")
    try:
        place.mkdir(parents=True, exist_ok=True)
        return np.memmap(tempfile.TemporaryFile(dir=place), np.uint8, "w+", shape=shape)
    except OSError:
        return np.empty(shape, np.uint8)


def folder(kind: str) -> Path:
    """Where what is computed anew if it is missing is kept: ``images`` that were decoded, ``features`` of frozen nets."""
    return Path(os.environ.get("METARUN_CACHE") or user_cache()).expanduser() / kind


@functools.cache  # once per folder, not once per file
def _warn_unwritable(folder: str, reason: str) -> None:
    log.warning(
        "decoded images cannot be kept in %s (%s) and are decoded in every run; set METARUN_CACHE to a writable folder", folder, reason
    )


def _read(path: Path, text: str) -> tuple[np.ndarray, Any] | None:
    """The images and notes of a cache file, or None when it is absent, of another key, cut short or damaged."""
    try:
        side = json.loads(path.with_suffix(".json").read_bytes())
        if side["key"] != text:
            return None
        large = path.stat().st_size > LARGE
        # Copy on write ("c") rather than read-only, because torch refuses to share read-only arrays without a warning.
        images = np.load(path, mmap_mode="c" if large else None, allow_pickle=False)
        if images.dtype != np.uint8 or list(images.shape) != side["shape"] or _crc32(images) != side["crc32"]:
            log.warning("the cached images %s are damaged and are made anew", path)
            return None
        return images, side["notes"]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None  # if it matters, the attempt to write will say so
    except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
        log.warning("the cached images %s cannot be read and are made anew (%s)", path, error)
        return None


def _crc32(images: np.ndarray) -> int:
    """CRC-32 of the bytes, piece by piece: a memory-mapped array is never held whole."""
    flat, crc = images.reshape(-1), 0
    for start in range(0, flat.size, PIECE):
        crc = zlib.crc32(flat[start : start + PIECE].tobytes(), crc)
    return crc


def _remove_leftovers(folder: Path) -> None:
    """Take away what processes that were killed have left half written; other processes may be writing now."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # another process was quicker
            if time.time() - path.stat().st_mtime > STALE:
                path.unlink()


def _write(path: Path, fill: Callable[[Any], object]) -> None:
    """Write a whole file or none: a temporary file in the same folder, synced, then renamed over the old one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
