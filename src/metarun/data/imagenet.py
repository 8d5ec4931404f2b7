"""What the few-shot subsets of ImageNet have in common: classes are WordNet identifiers such as n01532829, and the files are not free."""

from __future__ import annotations

import re
from pathlib import Path

from metarun.data.benchmark import Benchmark, Size

WNID = re.compile(r"n\d{8}")


class ImageNetSubset(Benchmark):
    """A class is a folder named by its wnid; a file outside of one is of the wnid that its own name begins with, as in Ravi's images/."""

    def __init__(self, seed: int, *, root: str | None, size: Size) -> None:
        super().__init__(root, size)

    def label(self, file: str) -> str | None:
        path = Path(file)
        folder, own = WNID.fullmatch(path.parent.name), WNID.match(path.name)
        label = folder[0] if folder else own[0] if own else ""
        return label if label in self.rank() else None
