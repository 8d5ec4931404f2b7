"""Pictures as files, whoever brings them: finding them in folders, and reading one upright, opaque and in eight bits.
What a dataset then makes of a picture is its ``pictures``, the same in training and in prediction."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


class Pictures(NamedTuple):
    """How a picture file becomes an input."""

    shape: tuple[int, int, int]  # channels, height, width of an input
    read: Callable[[Path], np.ndarray | None]  # one file as [channels, height, width] uint8, or None if it cannot be read


def visible(names: Iterable[str]) -> list[str]:
    """Sorted, without hidden ones and the __MACOSX that some archives bring."""
    return sorted(name for name in names if not name.startswith((".", "__")))


def subfolders(base: Path) -> list[str]:
    """The visible folders in ``base``, links included."""
    return visible(entry.name for entry in os.scandir(base) if entry.is_dir())


def pictures_in(folder: Path) -> list[Path]:
    """The pictures that lie in ``folder`` itself, in alphabetical order; hidden files and other files are ignored."""
    return [folder / name for name in visible(os.listdir(folder)) if Path(name).suffix.lower() in SUFFIXES]


def class_folders(base: Path) -> dict[str, list[Path]]:
    """Every folder below ``base`` that holds pictures or nothing at all, by its path; links are followed at the first level only."""
    found = {}
    for top in subfolders(base):
        for folder, below, _ in os.walk(base / top):
            below[:] = visible(below)
            pictures = pictures_in(Path(folder))
            if pictures or not below:
                found[Path(folder).relative_to(base).as_posix()] = pictures
    return dict(sorted(found.items()))


def upright(path: Path, size: int) -> Image.Image:
    """A picture turned as its EXIF tag says, laid on white if transparent, in 8 bits a channel; ``size`` is what it will be resized to.

    Raises:
        Exception: decoders raise nearly anything on damaged bytes.
    """
    with Image.open(path) as file:
        # JPEG can decode straight to a half, quarter or eighth; twice the size leaves the detail to a later resize.
        file.draft(None, (2 * size, 2 * size))
        image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I;16"):  # Pillow would cut 16-bit greys off at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image.convert("RGBA"))
    return image


def handwriting(path: Path, size: int) -> np.ndarray | None:
    """A drawing as [1, size, size] uint8 with ink = 255 on paper = 0, or None if it cannot be read.

    The paper is the median grey of the picture's border: a picture that is not square is completed with it, never cropped or stretched,
    and light paper is inverted, so that dark ink and chalk come out alike. Then Lanczos, as Omniglot's own files are read.
    """
    try:
        grey = upright(path, size).convert("L")
    except Exception:  # see upright
        return None
    pixels = np.asarray(grey)
    paper = int(np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])))
    side = max(grey.size)
    square = ImageOps.pad(grey, (side, side), color=paper)
    ink = ImageOps.invert(square) if paper > 127 else square
    return np.asarray(ink.resize((size, size), Image.Resampling.LANCZOS))[None]
