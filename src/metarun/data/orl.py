"""ORL: 40 people, ten pictures of each face (Samaria, Harter 1994; AT&T Laboratories Cambridge), for verification and identification
of people whom training has not seen."""

from __future__ import annotations

import re
from typing import ClassVar

from metarun.data.benchmark import Benchmark, Size

FILE = re.compile(r"(?:.*/)?(s\d{1,2})/\d{1,2}\.(?:png|pgm)")
PEOPLE = [f"s{number}" for number in range(1, 41)]


class ORL(Benchmark):
    """Grey pictures, read as colour ones of three equal channels; people 1 to 24 are for training, 25 to 30 for development, 31 to 40 for
    the test.

    Args:
        seed: unused; the split is given.
        root, size: see ``Benchmark``.
    """

    name = "orl"
    lists: ClassVar = {"train": tuple(PEOPLE[:24]), "val": tuple(PEOPLE[24:30]), "test": tuple(PEOPLE[30:])}
    published = 400
    archives = ("orlfacespng", "orlfaces", "attfaces")
    wants = "put att_faces.zip or orl_faces.zip, with a folder s1 to s40 for each of the people, into data.root"
    folders = ("orl", "orl_faces", "att_faces", "faces")

    def __init__(self, seed: int, *, root: str | None, size: Size) -> None:
        super().__init__(root, size)

    def label(self, file: str) -> str | None:
        found = FILE.fullmatch(file)
        return found[1] if found and found[1] in self.rank() else None
