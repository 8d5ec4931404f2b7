"""Your own pictures, in class folders or named by a table of labels.
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
from annotated_types import Ge, Le, Lt
from PIL import Image, ImageOps

from metarun.data.attributes import described
from metarun.data.base import ImageDataset
from metarun.data.cache import cached_images
from metarun.data.division import Share, divide
from metarun.data.episodes import Episodes, Split
from metarun.data.held_out import hold_out
from metarun.data.layout import LAYOUT, Classes, gather
from metarun.data.leakage import Origin, digest, refuse_copies, refuse_shared
from metarun.data.picture import Reader, Source, UnreadableError, tell, upright
from metarun.errors import UserError
from metarun.problem import EpisodeSpec

log = logging.getLogger(__name__)

NAMED = 5  # classes that a message names


class Folder(ImageDataset):
    """Any pictures with labels. A class is a folder with pictures in it, at any depth, and its name is its path below the root; or it is a
    label in a table, see ``layout``.

    What is passed over is named with the reason, see ``search``; ``decode`` says how a picture is read. Copies of a picture are refused
    between splits, see ``refuse_copies``. A file ``attributes.csv`` in the root tells the classes' attributes, unless another is named.

    Args:
        seed: the run's; unused, so that all runs share one division into splits.
        root: the folder, or a table of labels.
        channels: 1 (grey) or 3 (colour).
        size: height and width, pixels.
        invert: turn dark ink on light paper into ink = 1, paper = 0.
        val_fraction, test_fraction: share of the classes, at least one class unless 0, where the root is not divided already.
        split_seed, fold: shuffle the class names before that division, and turn them on, see ``divide``.
        min_images: fewest readable pictures of a class; classes with fewer are left out, and named.
        depth: how many folders name a class, the first ones of a path; None: all.
        attributes: a file that tells the classes' attributes, see ``attributes.described``.
        held_out: share of the pictures of every training class that training does not see, see ``hold_out``.

    Raises:
        UserError: the folder is not as described, or a split has no class that is large enough.
    """

    def __init__(
        self,
        seed: int,
        *,
        root: str | None,
        channels: Literal[1, 3],
        size: Annotated[int, Ge(8), Le(1024)],
        invert: bool,
        val_fraction: Share,
        test_fraction: Share,
        split_seed: int,
        min_images: Annotated[int, Ge(2)],
        fold: Annotated[int, Ge(0)] = 0,
        depth: Annotated[int, Ge(1)] | None = None,
        attributes: str | None = None,
        held_out: Annotated[float, Ge(0), Lt(1)] = 0.0,
    ) -> None:
        if root is None:
            raise UserError(f"data=folder needs data.root=FOLDER, where {LAYOUT}")
        base, given, whole, passed = gather(root, depth)
        self.divided = given is not None
        if given is not None:
            refuse_shared(given)
            splits = _large_enough(given, min_images)
        else:
            kept = _large_enough({"data.root": whole}, min_images)["data.root"]
            names = divide(list(kept), "classes", val_fraction, test_fraction, split_seed, fold)
            splits = {split: {name: kept[name] for name in part} for split, part in names.items()}
            refuse_shared(splits)
        passed.pop("attributes.csv", None)

        files = [path for classes in splits.values() for paths in classes.values() for path in paths]
        key = {"name": "folder", "version": 2, "files": _digest(base, files), "channels": channels, "size": size, "invert": invert}
        images, notes = cached_images(key, lambda: _decode_all(base, files, channels, size, invert))
        passed |= notes["passed"]
        tell(log, passed)
        readable = {
            split: {name: [path for path in paths if _name(base, path) not in notes["passed"]] for name, paths in part.items()}
            for split, part in splits.items()
        }
        splits = _large_enough(readable, min_images)
        if dropped := [name for split in splits for name in readable[split].keys() - splits[split].keys()]:
            rows = np.array([name not in dropped for part in readable.values() for name, paths in part.items() for _ in paths])
            images, notes["digests"] = images[rows], [mark for mark, row in zip(notes["digests"], rows) if row]
        origins = [
            Origin(split, name, _name(base, path)) for split, classes in splits.items() for name, paths in classes.items() for path in paths
        ]
        refuse_copies(origins, notes["digests"])

        named = [name for classes in (given or {"": whole}).values() for name in classes]  # those that are left out, too
        counts = {split: np.array([len(paths) for paths in classes.values()], np.int64) for split, classes in splits.items()}
        edges = np.cumsum([0, *(count.sum() for count in counts.values())])
        result = {}
        for (split, classes), (first, last) in zip(splits.items(), pairwise(edges), strict=True):
            starts = counts[split].cumsum() - counts[split]
            files_of = [_name(base, path) for paths in classes.values() for path in paths]
            result[split] = Split(torch.from_numpy(images[first:last]), starts, counts[split], list(classes), files=files_of)
        own = base / "attributes.csv"
        result = described(result, attributes if attributes or not own.is_file() else own, named)
        super().__init__(hold_out(result, held_out))

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


def _large_enough(splits: dict[str, Classes], least: int) -> dict[str, Classes]:
    """The classes that have so many pictures; the others are named.

    Raises:
        UserError: a split has none.
    """
    kept = {split: {name: paths for name, paths in classes.items() if len(paths) >= least} for split, classes in splits.items()}
    small = [f"{name} ({len(paths)})" for split, classes in splits.items() for name, paths in classes.items() if len(paths) < least]
    for split, classes in kept.items():
        if not classes:
            name, most = max(((name, len(paths)) for name, paths in splits[split].items()), key=lambda one: one[1])
            raise UserError(
                f"no class of {split} has data.min_images={least} readable pictures; the largest is '{name}' with {most}: add pictures"
            )
    if small:
        more = f" and {len(small) - NAMED} more" if len(small) > NAMED else ""
        log.warning("left out, as they have fewer than data.min_images=%d readable pictures: %s%s", least, ", ".join(small[:NAMED]), more)
    return kept


def _name(base: Path, path: Path) -> str:
    """A file's path below the folder; of a file that a table names elsewhere, its own."""
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.as_posix()


def _digest(base: Path, files: list[Path]) -> str:
    """SHA-256 over the relative path, size and times of all files, in order."""
    digest = hashlib.sha256()
    for path in files:
        stat = path.stat() if path.exists() else path.lstat()  # a link to nowhere is reported as unreadable later
        digest.update(f"{_name(base, path)}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\n".encode(errors="surrogateescape"))
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
                passed[_name(base, path)] = image
            else:
                images[len(digests)] = image
                digests.append(digest(image))
    return images[: len(digests)], {"digests": digests, "passed": passed}


def decode(file: Source, channels: int, size: int, invert: bool) -> np.ndarray:
    """One picture, [channels, size, size] uint8.

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
