"""Features of images that were computed before, kept on disk by the content of the image and of the net: one SQLite file in the cache.
Never trusted: what is damaged, or cannot be read or written, is computed again."""

from __future__ import annotations

import functools
import hashlib
import logging
import sqlite3
import time
import zlib
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
from torch import Tensor

from metarun.data.cache import folder
from metarun.nets.base import Net

log = logging.getLogger(__name__)

LARGEST = 4 * 2**30  # bytes of the file; beyond, the quarter that was longest not asked for is dropped
AT_A_TIME = 500  # rows of one question: SQLite's own limit is 999 in old versions
NEUTRAL = ("weights", "freeze")  # attributes of nets that say where the weights came from, and what becomes of them
PATIENCE = 10.0  # seconds that another process may write
TABLE = "CREATE TABLE IF NOT EXISTS features (net BLOB, image BLOB, used INTEGER, vector BLOB, PRIMARY KEY (net, image)) WITHOUT ROWID"


def mark(image: np.ndarray) -> bytes:
    """16 bytes that tell an image, [channels, height, width] uint8, from every other."""
    head = f"{image.dtype} {image.shape}".encode()
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16, key=head[:64]).digest()


def fingerprint(net: Net, *further: str) -> bytes:
    """32 bytes that tell a net from every other: its class, settings, weights, and what else decides its features."""
    plain = {name: value for name, value in vars(net).items() if isinstance(value, (str, int, float, bool, tuple))}
    settings = {name: value for name, value in plain.items() if name not in NEUTRAL}
    found = hashlib.sha256(repr((type(net).__name__, sorted(settings.items(), key=str), repr(net), further)).encode())
    for name, tensor in sorted({**dict(net.named_parameters()), **dict(net.named_buffers())}.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).numpy().data)
    return found.digest()


class Store:
    """The features of one net.

    Args:
        net: its ``fingerprint``.
        features: how many numbers an image has.
    """

    def __init__(self, net: bytes, features: int) -> None:
        self.net, self.features = net, features

    def find(self, images: Sequence[bytes]) -> dict[bytes, np.ndarray]:
        """Of these images, by ``mark``, those that are known: [features] float32 each."""
        found: dict[bytes, np.ndarray] = {}
        try:
            with closing(_open()) as base, base:
                for first in range(0, len(images), AT_A_TIME):
                    part = images[first : first + AT_A_TIME]
                    places = ",".join("?" * len(part))
                    rows = base.execute(f"SELECT image, vector FROM features WHERE net = ? AND image IN ({places})", (self.net, *part))
                    found |= {image: vector for image, packed in rows if (vector := self._unpacked(packed)) is not None}
                now = int(time.time())
                base.executemany("UPDATE features SET used = ? WHERE net = ? AND image = ?", ((now, self.net, image) for image in found))
        except (sqlite3.Error, OSError) as error:
            _give_up(str(error))
        return found

    def keep(self, features: dict[bytes, np.ndarray]) -> None:
        """Keep features [features] float32 by the ``mark`` of their image."""
        now = int(time.time())
        rows = ((self.net, image, now, self._packed(vector)) for image, vector in features.items())
        try:
            with closing(_open()) as base, base:
                base.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?, ?)", rows)
                pages = base.execute("PRAGMA page_count").fetchone()[0] - base.execute("PRAGMA freelist_count").fetchone()[0]
                if pages * base.execute("PRAGMA page_size").fetchone()[0] > LARGEST:
                    count = base.execute("SELECT COUNT(*) FROM features").fetchone()[0]
                    old = "SELECT net, image FROM features ORDER BY used LIMIT ?"
                    base.execute(f"DELETE FROM features WHERE (net, image) IN ({old})", (count // 4,))
        except (sqlite3.Error, OSError) as error:
            _give_up(str(error))

    @staticmethod
    def _packed(vector: np.ndarray) -> bytes:
        data = np.ascontiguousarray(vector, np.float32).tobytes()
        return zlib.crc32(data).to_bytes(4, "little") + data

    def _unpacked(self, packed: bytes) -> np.ndarray | None:
        if len(packed) != 4 + 4 * self.features or zlib.crc32(packed[4:]).to_bytes(4, "little") != packed[:4]:
            return None
        return np.frombuffer(packed, np.float32, offset=4)


def _open() -> sqlite3.Connection:
    path = folder("features") / "features.sqlite"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _connected(path)
    except sqlite3.DatabaseError as error:
        if "not a database" not in str(error) and "malformed" not in str(error):
            raise
        log.warning("the kept features %s are damaged and are computed anew", path)
        with suppress(OSError):
            path.unlink()
        return _connected(path)


def _connected(path: Path) -> sqlite3.Connection:
    base = sqlite3.connect(path, timeout=PATIENCE)
    try:
        base.execute("PRAGMA synchronous = OFF")  # a power cut costs the cache, which every row's checksum finds out
        base.execute(TABLE)
    except sqlite3.Error:
        base.close()
        raise
    return base


@functools.cache  # once, not once per batch
def _give_up(reason: str) -> None:
    log.warning("features cannot be kept in %s (%s) and are computed in every run; set METARUN_CACHE to a writable folder",
                folder("features"), reason)  # fmt: skip


def stored_marks(images: Tensor) -> list[bytes]:
    """``mark`` of each of the images [n, channels, height, width]."""
    return [mark(image) for image in images.cpu().numpy()]
