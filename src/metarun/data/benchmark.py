"""Benchmarks with a published split of their classes: images in class folders, or in an archive of such, whatever folders lie around them.
A benchmark is one file that lists its classes and says which class a file belongs to."""

from __future__ import annotations

import hashlib
import os
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Ge, Le

from metarun.data.archive import Archive, contents, damaged, fetch, places
from metarun.data.attributes import described
from metarun.data.base import ImageDataset
from metarun.data.cache import cached_images, fingerprint, room
from metarun.data.episodes import Split
from metarun.data.folder import decode
from metarun.data.held_out import hold_out
from metarun.data.picture import Reader, UnreadableError, search, suffixes
from metarun.errors import UserError

Size = Annotated[int, Ge(8), Le(1024)]
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
BATCH = 512  # files read before they are decoded side by side

Pool = tuple[np.ndarray, dict[str, int], dict[str, str]]  # images grouped by class; how many of each class; what each is called


class Benchmark(ImageDataset):
    """Colour images [3, size, size] of ``lists``'s classes, in that order.

    What lies in ``root``, ``$METARUN_DATA`` or the user's cache (each also in a folder named like the benchmark) is taken: an archive of
    the customary name, or else class folders. Where images are missing, ``note`` and with it every report says how many there are.

    Args:
        root: the folder.
        size: height and width, pixels: the shorter side is resized to it, the longer one cropped about the centre.
        download: fetch ``source`` into the user's cache when nothing is there.
        attributes, held_out: as of ``Folder``.

    Raises:
        UserError: nothing there, a class missing or in two places, or a file that cannot be read.
    """

    name: ClassVar[str]
    lists: ClassVar[dict[str, tuple[str, ...]]]  # the classes of train, val and test
    published: ClassVar[int]  # images of all classes together
    archives: ClassVar[tuple[str, ...]]  # names of archives, without suffix, in small letters and digits only
    wants: ClassVar[str]  # which files to put where, for a message
    source: ClassVar[Archive | None] = None
    folders: ClassVar[tuple[str, ...]] = ()  # where files lie in $METARUN_DATA and the cache, if not in one named like the benchmark

    def __init__(self, root: str | None, size: int, download: bool = False, attributes: str | None = None, held_out: float = 0.0) -> None:
        place, files = self._locate(root, download)
        images, counts, shown = self.pool(place, files, size)
        if missing := [label for label in self.rank() if not counts.get(label)]:
            raise UserError(
                f"{place} lacks {len(missing)} of the {len(self.rank())} classes of data={self.name}, such as {missing[0]}; {self.wants}"
            )
        if len(images) != self.published:
            each = set(counts.values())
            self.note = f"{each.pop()} a class" if len(each) == 1 else f"{len(images):,} of {self.published:,} images"
        splits, row = {}, 0
        for split, labels in self.lists.items():
            count = np.array([counts[label] for label in labels], np.int64)
            part = torch.from_numpy(images[row : row + count.sum()])
            splits[split] = Split(part, count.cumsum() - count, count, [shown[label] for label in labels])
            row += count.sum()
        super().__init__(hold_out(described(splits, attributes), held_out))

    @classmethod
    @cache
    def rank(cls) -> dict[str, int]:
        """All classes in the order of ``lists``, and the place of each."""
        return {label: i for i, label in enumerate(label for labels in cls.lists.values() for label in labels)}

    @classmethod
    def reader(cls, **values: Any) -> Reader:
        size = values["size"]
        return Reader((3, size, size), lambda path: decode(path, 3, size, False))

    @abstractmethod
    def label(self, file: str) -> str | None:
        """The class of a picture file by its path below the folder or in the archive; None: it is of none of ``lists``."""

    def pool(self, place: Path, files: dict[str, Path], size: int) -> Pool:
        """All images [n, 3, size, size] uint8 of an archive or of ``files``, by class in the order of ``lists`` and then by file."""

        def build() -> tuple[np.ndarray, Any]:
            names = list(files) if files else [name for name, _ in contents(place, self._is_picture)]
            order = self._ordered(place, names)
            images = room((len(order), 3, size, size))
            found = ((name, files[name].read_bytes()) for name in order) if files else contents(place, order.__contains__)
            for name, image in _decoded(place, found, size):
                images[order[name]] = image
            labels = [str(self.label(name)) for name in order]
            parents = {label: Path(name).parent.name for label, name in zip(labels, order) if label in Path(name).parent.name}
            return images, {"counts": Counter(labels), "shown": {label: parents.get(label, label) for label in labels}}

        mark = _mark(files) if files else fingerprint(place)
        images, notes = cached_images({"name": self.name, "version": 1, "size": size, "source": mark}, build)
        return images, notes["counts"], notes["shown"]

    def files(self, folder: Path) -> dict[str, Path]:
        """The pictures of this benchmark's classes below a folder, by their path below it."""
        found = (path for paths in search(folder).folders.values() for path in paths)
        names = {path.relative_to(folder).as_posix(): path for path in found}
        return {name: path for name, path in names.items() if self.label(name)}

    def _is_picture(self, name: str) -> bool:
        path = Path(name)
        return path.suffix.lower() in suffixes() and not path.name.startswith(".") and self.label(name) is not None

    def _ordered(self, place: Path, names: Iterable[str]) -> dict[str, int]:
        """Every file's row, in the order of classes.

        Raises:
            UserError: the pictures of a class lie in two folders.
        """
        where: dict[str, str] = {}
        for name in names:
            label, parent = str(self.label(name)), name.rpartition("/")[0]
            if where.setdefault(label, parent) != parent:
                raise UserError(
                    f"{place} has pictures of the class {label} in {where[label]} and in {parent}; name the right one with data.root=FOLDER"
                )
        return {name: i for i, name in enumerate(sorted(names, key=lambda name: (self.rank()[str(self.label(name))], name)))}

    def _locate(self, root: str | None, download: bool) -> tuple[Path, dict[str, Path]]:
        """An archive, or a folder and its ``files``."""
        own = self.folders or (self.name,)
        candidates = [folder for folder in dict.fromkeys(place for name in own for place in places(root, name)) if folder.is_dir()]
        for i, folder in enumerate(candidates):
            for path in sorted(folder.iterdir()):
                if self._plain(path) in self.archives:
                    return path, {}
            # A folder that nobody named for these data may hold everybody's: it is not searched through.
            if (folder.name in own or (root and i == 0)) and (files := self.files(folder)):
                return folder, files
        if self.source:
            try:
                return fetch(self.source, root, own[0], download), {}
            except UserError as error:
                raise UserError(f"{str(error).partition(';')[0]}; {self.wants}, or use data=glyphs, which needs no files") from None
        pickles = sorted(path.name for folder in candidates for path in folder.iterdir() if path.suffix in (".pkl", ".pickle"))
        why = f" ({pickles[0]} is a pickle, which may run any program when it is read, so it is not)" if pickles else ""
        where = f"in {root}" if root else "on this machine"
        raise UserError(f"the images of data={self.name} are not {where}{why}; {self.wants}, or use data=glyphs, which needs no files")

    @staticmethod
    def _plain(path: Path) -> str:
        """The name of an archive as ``archives`` has it; ``""`` for anything else."""
        suffix = next((suffix for suffix in ARCHIVES if path.name.lower().endswith(suffix)), "")
        return re.sub(r"[^a-z0-9]", "", path.name.lower().removesuffix(suffix)) if suffix and path.is_file() else ""


def words(text: str) -> tuple[str, ...]:
    """A list of classes as a file writes it."""
    return tuple(text.split())


def _decoded(place: Path, files: Iterator[tuple[str, bytes]], size: int) -> Iterator[tuple[str, np.ndarray]]:
    """The pictures, decoded side by side, a batch of files in memory at a time."""

    def read(file: tuple[str, bytes]) -> np.ndarray:
        try:
            return decode(file[1], 3, size, False)
        except UnreadableError as reason:
            raise damaged(place, f"{file[0]}: {reason}") from None

    with ThreadPoolExecutor() as pool:
        while batch := list(islice(files, BATCH)):
            yield from zip((name for name, _ in batch), pool.map(read, batch))


def _mark(files: dict[str, Path]) -> str:
    """SHA-256 over path, size and times of all files."""
    digest = hashlib.sha256()
    for name, path in files.items():
        stat = os.stat(path) if path.exists() else os.lstat(path)
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
