"""CUB: 200 bird species (Wah, Branson, Welinder, Perona, Belongie 2011, Caltech-UCSD Birds-200-2011) in 100, 50 and 50 classes,
as Chen, Liu, Kira, Wang, Huang 2019 (arXiv:1904.04232) divide them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from metarun.data.archive import Archive
from metarun.data.benchmark import Benchmark, Size

SPECIES = re.compile(r"(\d{3})\.\w.*")  # 001.Black_footed_Albatross
NUMBERS = [f"{number:03d}" for number in range(1, 201)]


class CUB(Benchmark):
    """Of every four species in the order of their numbers the first and third are for training, the second for development, the fourth
    for the test. Whole photographs, not the birds' bounding boxes.

    Args:
        seed: unused; the split is given.
        root, size, download: see ``Benchmark``; the archive is 1.1 GB.
    """

    name = "cub"
    lists: ClassVar = {"train": tuple(NUMBERS[::2]), "val": tuple(NUMBERS[1::4]), "test": tuple(NUMBERS[3::4])}
    published = 11_788
    archives = ("cub2002011", "cub")
    source = Archive(
        "CUB_200_2011.tgz", "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz", "md5:97eceeb196236b17998738112f37df78"
    )
    wants = "put CUB_200_2011.tgz from https://data.caltech.edu/records/65de6-vp158, or the folder that it unpacks to, into data.root"

    def __init__(self, seed: int, *, root: str | None, size: Size, download: bool) -> None:
        super().__init__(root, size, download)

    def label(self, file: str) -> str | None:
        species = SPECIES.fullmatch(Path(file).parent.name)
        return species[1] if species and species[1] in self.rank() else None
