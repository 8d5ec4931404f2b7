"""Your own pictures: a folder of class folders, or train/, val/ and test/ with class folders in each.
Decoded once into the cache; classes, never pictures, are divided between the splits."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Le
from PIL import Image, ImageOps

from metarun.data.attributes import read_attributes
from metarun.data.base import ImageDataset
from metarun.data.cache import cached_images
from metarun.data.episodes import CLASSES, Split, draws, episode_keys
from metarun.data.picture import Pictures, class_folders, subfolders, upright
from metarun.errors import UserError

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
LAYOUT = "FOLDER holds one folder of pictures per class, or train/, val/ and test/ with such class folders in each"
Classes = dict[str, list[Path]]  # pictures by class name


class Folder(ImageDataset):
    """Any pictures sorted into folders. A class is a folder with pictures in it, at any depth; its name is its path below the root.

    Hidden files and other files are ignored; a picture that cannot be read is skipped with a warning; ``decode`` says how one is read.
    A file ``attributes.csv`` in the root tells the classes' attributes, see ``read_attributes``.

    Args:
        seed: the run's; unused, so that all runs share one division into splits.
        root: the folder.
        channels: 1 (grey) or 3 (colour).
        size: height and width, pixels.
        invert: turn dark ink on light paper into ink = 1, paper = 0.
        val_fraction, test_fraction: share of the classes, at least one class unless 0, where the root is not divided already.
        split_seed: shuffles the class names before that division.
        min_images: fewest readable pictures of a class.

    Raises:
        UserError: the folder is not as described, or a class or split has too little in it.
    """

    def __init__(
        self,
        seed: int,
        *,
        root: str | None,
        channels: Literal[1, 3],
        size: Annotated[int, Ge(8), Le(1024)],
        invert: bool,
        val_fraction: Annotated[float, Ge(0), Le(1)],
        test_fraction: Annotated[float, Ge(0), Le(1)],
        split_seed: int,
        min_images: Annotated[int, Ge(2)],
    ) -> None:
        if root is None:
            raise UserError(f"data=folder needs data.root=FOLDER, where {LAYOUT}")
        base = Path(root).expanduser()
        if not base.is_dir():
            raise UserError(
                f"data.root={root} {'is not a folder' if base.exists() else 'does not exist'}; give data.root=FOLDER, where {LAYOUT}"
            )
        given = [split for split in SPLITS if split in subfolders(base)]
        if given and set(given) == set(subfolders(base)) and any(subfolders(base / split) for split in given):
            splits = {split: _classes(base / split) for split in given}
            _refuse_shared(splits)
        else:
            splits = _divide(_classes(base), val_fraction, test_fraction, split_seed)
        _refuse_small(((name, len(files)) for classes in splits.values() for name, files in classes.items()), min_images)

        files = [path for classes in splits.values() for paths in classes.values() for path in paths]
        key = {"name": "folder", "version": 1, "files": _digest(base, files), "channels": channels, "size": size, "invert": invert}
        images, broken = cached_images(key, lambda: _decode_all(base, files, channels, size, invert))
        if broken:
            more = ", …" if len(broken) > 3 else ""
            log.warning("%d of %d pictures cannot be read and are skipped: %s%s", len(broken), len(files), ", ".join(broken[:3]), more)
        bad = {base / name for name in broken}
        readable = {split: {name: sum(p not in bad for p in paths) for name, paths in classes.items()} for split, classes in splits.items()}
        _refuse_small(chain.from_iterable(counts.items() for counts in readable.values()), min_images)

        table = base / "attributes.csv"
        known = read_attributes(table, [name for counts in readable.values() for name in counts]) if table.is_file() else {}
        edges = np.cumsum([0, *(sum(counts.values()) for counts in readable.values())])
        result = {}
        for (split, counts), (first, last) in zip(readable.items(), pairwise(edges), strict=True):
            count = np.array(list(counts.values()), dtype=np.int64)
            attributes = torch.from_numpy(np.stack([known[name] for name in counts])) if known else torch.empty(0, 0)
            result[split] = Split(torch.from_numpy(images[first:last]), count.cumsum() - count, count, list(counts), attributes)
        super().__init__(result)

    @classmethod
    def pictures(cls, **values: Any) -> Pictures:
        """As the pictures of the folder are read, see ``decode``."""
        channels, size, invert = values["channels"], values["size"], values["invert"]
        return Pictures((channels, size, size), lambda path: decode(path, channels, size, invert))


def _classes(base: Path) -> Classes:
    found = class_folders(base)
    if not found:
        raise UserError(f"{base} has no class folders; give data.root=FOLDER, where {LAYOUT}")
    return found


def _divide(classes: Classes, val_fraction: float, test_fraction: float, split_seed: int) -> dict[str, Classes]:
    """Shuffled classes in three parts; a part of fraction 0 is left out, any other has a class at least."""
    rest = 1 - val_fraction - test_fraction
    if rest < -1e-9:
        raise UserError(f"data.val_fraction={val_fraction} + data.test_fraction={test_fraction} is above 1; leave a share for train")
    n = len(classes)
    sizes = {split: max(1, round(share * n)) for split, share in (("val", val_fraction), ("test", test_fraction)) if share > 0}
    left = n - sum(sizes.values())
    if left < (rest > 1e-9):
        raise UserError(
            f"{n} class folders are too few for the splits train, {', '.join(sizes)}; add classes or set the fraction of one to 0"
        )
    order = np.argsort(draws(episode_keys(split_seed, "folder", [0]), CLASSES, (n,))[0])
    names = iter([list(classes)[i] for i in order])
    sizes = {"train": left, **sizes} if left else sizes
    return {split: {name: classes[name] for name in sorted(next(names) for _ in range(size))} for split, size in sizes.items()}


def _refuse_shared(splits: dict[str, Classes]) -> None:
    """Tasks of val and test must be made of new classes, or the scores mean nothing."""
    seen: dict[str, str] = {}
    for split, classes in splits.items():
        for name in classes:
            if name in seen:
                raise UserError(
                    f"class '{name}' is in {seen[name]} and in {split}, but splits must not share classes; "
                    "rename one if they differ, else put all class folders directly under data.root"
                )
            seen[name] = split


def _refuse_small(counts: Iterable[tuple[str, int]], least: int) -> None:
    for name, count in counts:
        if count < least:
            raise UserError(f"class '{name}' has {count} readable pictures, but data.min_images={least}; add pictures or remove the folder")


def _digest(base: Path, files: list[Path]) -> str:
    """SHA-256 over the relative path, size and modification time of all files, in order."""
    digest = hashlib.sha256()
    for path in files:
        stat = path.stat() if path.exists() else path.lstat()  # a link to nowhere is reported as unreadable later
        digest.update(f"{path.relative_to(base)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _decode_all(base: Path, files: list[Path], channels: int, size: int, invert: bool) -> tuple[np.ndarray, list[str]]:
    """The readable pictures in order, [n, channels, size, size] uint8, and the names of the others."""
    images = np.empty((len(files), channels, size, size), np.uint8)
    broken: list[str] = []
    done = 0
    with ThreadPoolExecutor() as pool:
        for path, image in zip(files, pool.map(lambda path: decode(path, channels, size, invert), files), strict=True):
            if image is None:
                broken.append(path.relative_to(base).as_posix())
            else:
                images[done] = image
                done += 1
    return images[:done], broken


def decode(path: Path, channels: int, size: int, invert: bool) -> np.ndarray | None:
    """One picture [channels, size, size] uint8, or None if it cannot be read.

    It is turned as its EXIF tag says, laid on white if transparent, resized (Lanczos) until its shorter side is ``size``, cropped about its
    centre, and inverted if asked for.
    """
    try:
        plain = upright(path, size).convert("L" if channels == 1 else "RGB")
        square = np.asarray(ImageOps.fit(plain, (size, size), Image.Resampling.LANCZOS))
    except Exception:  # see upright
        return None
    image = square.reshape(size, size, channels).transpose(2, 0, 1)
    return 255 - image if invert else image
