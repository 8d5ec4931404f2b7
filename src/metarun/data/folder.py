"""Your own pictures: a folder of class folders, or train/, val/ and test/ with class folders in each.
Decoded once into the cache; classes, never pictures, are divided between the splits."""

from __future__ import annotations

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Le
from PIL import Image, ImageOps

from metarun.data.attributes import read_attributes
from metarun.data.base import ImageDataset
from metarun.data.cache import cached_images
from metarun.data.episodes import CLASSES, Episodes, Split, draws, episode_keys
from metarun.data.leakage import Origin, digest, refuse_copies, refuse_shared
from metarun.data.picture import Reader, UnreadableError, reasons, search, subfolders, tell, upright
from metarun.errors import UserError
from metarun.problem import EpisodeSpec

log = logging.getLogger(__name__)

LAYOUT = "FOLDER holds one folder of pictures per class, or train/, val/ and test/ with such class folders in each"
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
Classes = dict[str, list[Path]]  # pictures by class name


class Folder(ImageDataset):
    """Any pictures sorted into folders. A class is a folder with pictures in it, at any depth; its name is its path below the root.

    What is passed over is named with the reason, see ``search``; ``decode`` says how a picture is read. Copies of a picture are refused
    between splits, see ``refuse_copies``. A file ``attributes.csv`` in the root tells the classes' attributes, see ``read_attributes``.

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
        passed: dict[str, str] = {}
        tops = _given_splits(base)
        self.divided = tops is not None
        if tops:
            splits = {split: _classes(base, folder, passed) for split, folder in tops.items()}
        else:
            splits = _divide(_classes(base, base, passed), val_fraction, test_fraction, split_seed)
            tops = dict.fromkeys(splits, base)
        passed.pop("attributes.csv", None)
        refuse_shared(splits)
        _refuse_small(base, tops, splits, passed, min_images)

        files = [path for classes in splits.values() for paths in classes.values() for path in paths]
        key = {"name": "folder", "version": 2, "files": _digest(base, files), "channels": channels, "size": size, "invert": invert}
        images, notes = cached_images(key, lambda: _decode_all(base, files, channels, size, invert))
        passed |= notes["passed"]
        tell(log, passed)
        bad = {base / name for name in notes["passed"]}
        readable = {split: {name: [p for p in paths if p not in bad] for name, paths in part.items()} for split, part in splits.items()}
        _refuse_small(base, tops, readable, passed, min_images)
        origins = (
            Origin(split, name, path.relative_to(base).as_posix())
            for split, classes in readable.items()
            for name, paths in classes.items()
            for path in paths
        )
        refuse_copies(origins, notes["digests"])

        table = base / "attributes.csv"
        known = read_attributes(table, [name for classes in readable.values() for name in classes]) if table.is_file() else {}
        counts = {split: np.array([len(paths) for paths in classes.values()], np.int64) for split, classes in readable.items()}
        edges = np.cumsum([0, *(count.sum() for count in counts.values())])
        result = {}
        for (split, classes), (first, last) in zip(readable.items(), pairwise(edges), strict=True):
            attributes = torch.from_numpy(np.stack([known[name] for name in classes])) if known else torch.empty(0, 0)
            starts = counts[split].cumsum() - counts[split]
            names = [path.relative_to(base).as_posix() for paths in classes.values() for path in paths]
            result[split] = Split(torch.from_numpy(images[first:last]), starts, counts[split], list(classes), attributes, files=names)
        super().__init__(result)

    def episodes(self, split: str, spec: EpisodeSpec, seed: int, device: str | torch.device = "cpu") -> Episodes:
        if split in ("train", "val", "test") and split not in self.splits:
            share = "make data.val_fraction + data.test_fraction less than 1" if split == "train" else f"set data.{split}_fraction above 0"
            mend = f"put {split}/ with classes of its own into data.root" if self.divided else share
            raise UserError(f"these data have no {split} split, only {', '.join(self.splits)}; {mend}")
        return super().episodes(split, spec, seed, device)

    @classmethod
    def reader(cls, **values: Any) -> Reader:
        """As the pictures of the folder are read, see ``decode``."""
        channels, size, invert = values["channels"], values["size"], values["invert"]
        return Reader((channels, size, size), lambda path: decode(path, channels, size, invert))


def _given_splits(base: Path) -> dict[str, Path] | None:
    """The folders of the splits by name, if ``base`` is divided into such; ``train`` may also be the name of a class.

    Raises:
        UserError: two folders for one split, or others beside them.
    """
    names = subfolders(base)
    known = [name for name in names if name.lower() in SPLITS]
    # A folder of pictures is a class, whatever its name; an empty one beside a true split is a split that lacks its classes.
    if not any(subfolders(base / name) for name in known):
        return None
    if others := [name for name in names if name not in known]:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise UserError(
            f"{base} has {', '.join(f'{name}/' for name in known)} and beside them {others[0]}/{more}, which fits no split: move it out of "
            "data.root, or into one of them if it is a class"
        )
    found: dict[str, Path] = {}
    for name in known:
        split = SPLITS[name.lower()]
        if split in found:
            raise UserError(f"{base} has {found[split].name}/ and {name}/, both for the split {split}: keep one")
        found[split] = base / name
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def _classes(base: Path, folder: Path, passed: dict[str, str]) -> Classes:
    """The classes below ``folder``; what is passed over is added by its path below ``base``."""
    found = search(folder)
    if not found.classes:
        raise UserError(f"{folder} has no class folders; give data.root=FOLDER, where {LAYOUT}")
    below = {(folder / name).relative_to(base).as_posix(): reason for name, reason in found.passed.items()}
    loose_ones = {path.relative_to(base).as_posix(): "outside of the class folders" for path in found.folders.get("", [])}
    passed |= below | loose_ones
    return found.classes


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


def _refuse_small(base: Path, tops: dict[str, Path], splits: dict[str, Classes], passed: dict[str, str], least: int) -> None:
    for split, classes in splits.items():
        for name, paths in classes.items():
            if len(paths) < least:
                own = {path: reason for path, reason in passed.items() if (base / path).parent == tops[split] / name}
                there = f" (passed over there: {reasons(own)})" if own else ""
                raise UserError(
                    f"class '{name}' has {len(paths)} readable pictures{there}, but data.min_images={least}; "
                    "add pictures or remove the folder"
                )


def _digest(base: Path, files: list[Path]) -> str:
    """SHA-256 over the relative path, size and times of all files, in order."""
    digest = hashlib.sha256()
    for path in files:
        stat = path.stat() if path.exists() else path.lstat()  # a link to nowhere is reported as unreadable later
        digest.update(
            f"{path.relative_to(base)}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\n".encode(errors="surrogateescape")
        )
    return digest.hexdigest()


def _decode_all(base: Path, files: list[Path], channels: int, size: int, invert: bool) -> tuple[np.ndarray, dict[str, Any]]:
    """The readable pictures in order, [n, channels, size, size] uint8; notes: the ``digests`` of these, and why others are ``passed``."""
    images = np.empty((len(files), channels, size, size), np.uint8)
    passed: dict[str, str] = {}
    digests: list[str] = []

    def read(path: Path) -> np.ndarray | str:
        try:
            return decode(path, channels, size, invert)
        except UnreadableError as reason:
            return str(reason)

    with ThreadPoolExecutor() as pool:
        for path, image in zip(files, pool.map(read, files), strict=True):
            if isinstance(image, str):
                passed[path.relative_to(base).as_posix()] = image
            else:
                images[len(digests)] = image
                digests.append(digest(image))
    return images[: len(digests)], {"digests": digests, "passed": passed}


def decode(file: Path | bytes, channels: int, size: int, invert: bool) -> np.ndarray:
    """One picture, by its path or content, [channels, size, size] uint8.

    It is turned as its EXIF tag says, laid on white if transparent, resized (Lanczos) until its shorter side is ``size``, cropped about its
    centre, and inverted if asked for.

    Raises:
        UnreadableError: see ``upright``.
    """
    with upright(file, size) as picture:
        mode = "L" if channels == 1 else "RGB"
        plain = picture if picture.mode == mode else picture.convert(mode)
        square = np.asarray(ImageOps.fit(plain, (size, size), Image.Resampling.LANCZOS))
    image = square.reshape(size, size, channels).transpose(2, 0, 1)
    return 255 - image if invert else image
