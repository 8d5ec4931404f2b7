"""CIFAR-100 (Krizhevsky 2009): 100 classes of 600 colour images of 32 x 32 pixels, which CIFAR-FS and FC100 divide in their own ways.
Read from the official archive in its binary form, or from class folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Lt
from PIL import Image

from metarun.data.archive import Archive, contents, damaged
from metarun.data.benchmark import Benchmark, Pool, Size
from metarun.data.cache import cached_images, fingerprint, room

SIDE, RECORD = 32, 2 + 3 * 32 * 32  # pixels; bytes of an image: superclass, class, then red, green and blue rows
PARTS = {"train.bin": 500, "test.bin": 100}  # images of a class, in this order
NAMES = "fine_label_names.txt"


class Cifar100(Benchmark):
    """A division of CIFAR-100's classes; a class's images are in the order of the archive, its training part first."""

    published = 60_000
    folders = ("cifar100", "cifar_fs", "fc100")
    archives = ("cifar100binary", "cifar100", "cifarfs", "fc100")
    source = Archive(
        "cifar-100-binary.tar.gz", "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz", "md5:03b5dce01913d631647c71ecec9e9cb8"
    )
    wants = "put cifar-100-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html, or a folder of its 100 classes, into data.root"

    def __init__(
        self,
        seed: int,
        *,
        root: str | None,
        size: Size,
        download: bool,
        attributes: str | None = None,
        held_out: Annotated[float, Ge(0), Lt(1)] = 0.0,
    ) -> None:
        super().__init__(root, size, download, attributes, held_out)

    def label(self, file: str) -> str | None:
        folder = Path(file).parent.name
        return folder if folder in self.rank() else None

    def pool(self, place: Path, files: dict[str, Path], size: int) -> Pool:
        if files or self._plain(place) != "cifar100binary":
            return super().pool(place, files, size)

        def build() -> tuple[np.ndarray, Any]:
            wanted = {*PARTS, NAMES}
            parts = {Path(name).name: data for name, data in contents(place, lambda name: Path(name).name in wanted)}
            return resized(records(place, parts, list(self.rank())), size), None

        key = {"name": self.name, "version": 1, "size": size, "source": fingerprint(place)}
        images, _ = cached_images(key, build)
        return images, dict.fromkeys(self.rank(), sum(PARTS.values())), {label: label for label in self.rank()}


def records(place: Path, parts: dict[str, bytes], labels: list[str]) -> np.ndarray:
    """The archive's images [60000, 3, 32, 32] uint8, by class in the order of ``labels``.

    Raises:
        UserError: files or classes are missing, or are not as many bytes as published.
    """
    names = parts.get(NAMES, b"").decode(errors="replace").split()
    if sorted(names) != sorted(labels):
        raise damaged(place, f"{NAMES} does not name the 100 classes of CIFAR-100")
    order = [names.index(label) for label in labels]
    found = []
    for part, each in PARTS.items():
        data = np.frombuffer(parts.get(part, b""), np.uint8)
        if data.size != RECORD * each * len(order):
            raise damaged(place, f"{part} has {data.size:,} bytes instead of {RECORD * each * len(order):,}")
        data = data.reshape(-1, RECORD)
        if (np.bincount(data[:, 1], minlength=len(order)) != each).any():
            raise damaged(place, f"{part} does not have {each} images of every class")
        by_class = data[np.argsort(data[:, 1], kind="stable"), 2:].reshape(len(order), each, 3, SIDE, SIDE)
        found.append(by_class[order])
    return np.concatenate(found, 1).reshape(-1, 3, SIDE, SIDE)


def resized(images: np.ndarray, size: int) -> np.ndarray:
    """Images [n, 3, 32, 32] uint8 at another size (Lanczos, as class folders are read)."""
    if size == SIDE:
        return images
    result = room((len(images), 3, size, size))
    for row, image in enumerate(images):
        small = Image.fromarray(image.transpose(1, 2, 0)).resize((size, size), Image.Resampling.LANCZOS)
        result[row] = np.asarray(small).transpose(2, 0, 1)
    return result
