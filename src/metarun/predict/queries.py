"""Files that are labelled, and those that are asked about: pictures, or whatever else a ``Reader`` reads.
The latter are read and answered a block at a time, so that memory does not grow with their number."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from metarun.data.leakage import Origin, digest, refuse_shared, warn_of_copies
from metarun.data.picture import Found, Reader, UnreadableError, reasons, suffixes
from metarun.errors import UserError
from metarun.predict import sources
from metarun.predict.contact_sheet import ANSWERS, Answer
from metarun.tracking.console import Display

BLOCK = 64  # queries in memory at a time, and as many being read meanwhile
NOTHING = np.empty(0, np.uint8)  # in place of a picture that is not drawn
File = tuple[str, Path, str]  # name, path and folder, as of a ``Picture``
Numbers = np.ndarray | Tensor
# Of n inputs: probabilities [n, way], and scores of ``belonging`` [n].
Ask = Callable[[Sequence[np.ndarray]], tuple[Numbers, Numbers | None]]


@dataclass(frozen=True)
class Picture:
    """One readable file: a picture, or whatever the run was trained on."""

    path: Path
    name: str  # its path below what was given, or its own where several things were
    folder: str  # its folder below the one that was given, or its label in a table; "" where it has neither
    image: np.ndarray  # [channels, height, width] or another shape, uint8, as the net will see it


@dataclass
class Done:
    """What has been answered."""

    answers: list[Answer] = field(default_factory=list)
    passed: dict[str, str] = field(default_factory=dict)  # files passed over, and why
    copies: list[tuple[str, str]] = field(default_factory=list)  # of the support, among the queries


def labelled(place: str, reader: Reader) -> tuple[list[Picture], dict[str, int], dict[str, str]]:
    """The readable pictures of the support, how many each class has, and why other files are passed over.

    Copies of a picture within a class count once: they teach nothing, and what is left out to judge a head would be known by its copy.

    Raises:
        UserError: a class has none; see also ``sources.support``.
    """
    folders = sources.support(Path(place), reader)
    files, broken = listed([folders])
    refuse_shared({place: folders.classes})
    pictures = _once(place, reader.noun, [picture for block in _blocks(reader, files, BLOCK) for picture in _readable(block, broken)])
    shots = dict.fromkeys(folders.classes, 0) | Counter(picture.folder for picture in pictures)
    for name, count in shots.items():
        if not count:
            own = {path: reason for path, reason in broken.items() if Path(path).parent == Path(place, name)}
            there = f" (passed over: {reasons(own)})" if own else ""
            raise UserError(f"class '{name}' of {place} has no readable {reader.noun}{there}: add some, or remove the folder")
    return pictures, shots, broken


def _once(place: str, noun: str, pictures: Sequence[Picture]) -> list[Picture]:
    """Without copies within a class, which are named, as are those in two classes."""
    marks = [digest(picture.image) for picture in pictures]
    warn_of_copies([Origin(place, picture.folder, str(picture.path)) for picture in pictures], marks, place, "each counts once", noun)
    kept: dict[tuple[str, str], Picture] = {}
    for picture, mark in zip(pictures, marks, strict=True):
        kept.setdefault((picture.folder, mark), picture)
    return list(kept.values())


def asked(places: Sequence[str], reader: Reader) -> tuple[list[File], dict[str, str]]:
    """The files of queries, and why others are passed over; none is opened.

    Raises:
        UserError: see ``sources.query``.
    """
    return listed([sources.query(Path(place), reader) for place in places])


def paths(support: Sequence[Picture], queries: Sequence[File]) -> list[Path]:
    """The files of both."""
    return [*(picture.path for picture in support), *(path for _, path, _ in queries)]


def listed(places: Sequence[Found]) -> tuple[list[File], dict[str, str]]:
    """All files in order, and why others are passed over."""

    def name(found: Found, path: Path) -> str:
        return path.relative_to(found.base).as_posix() if len(places) == 1 and path.is_relative_to(found.base) else path.as_posix()

    files = [(name(found, path), path, folder) for found in places for folder, paths in found.folders.items() for path in paths]
    return files, {str(found.base / path): reason for found in places for path, reason in found.passed.items()}


def answered(
    files: Sequence[File],
    reader: Reader,
    support: Sequence[Picture],
    classes: Sequence[str],
    ask: Ask,
    least: float | None,
    together: bool = False,
) -> Done:
    """All queries in order.

    Args:
        files: of ``asked``.
        support: what was learned from; copies of it among the queries are noted.
        ask: answers a block.
        least: the ``belonging`` below which the answer is ``UNKNOWN``; None: it never is.
        together: all in one block, since their answers depend on each other.
    """
    known, done, seen = {digest(picture.image): picture.path for picture in support}, Done(), 0
    with closing(Display(enabled=True)) as display:
        for block in _blocks(reader, files, len(files) if together else BLOCK):
            pictures = _readable(block, done.passed)
            done.copies += [(str(known[mark]), str(p.path)) for p in pictures if (mark := digest(p.image)) in known]
            if pictures:
                done.answers += _answers(pictures, classes, ask, least, ANSWERS - len(done.answers))
            seen += len(block)
            display.show("classify", seen, len(files), {})
    return done


def none_readable(places: Sequence[str], reader: Reader, passed: dict[str, str]) -> UserError:
    """What is said where no query can be answered."""
    endings = ", ".join(sorted(reader.endings or suffixes()))
    why = reasons(passed) or f"a {reader.noun} is a file that ends in {endings}"
    return UserError(f"{' '.join(places)} has no readable {reader.noun} ({why})")


def _answers(pictures: Sequence[Picture], classes: Sequence[str], ask: Ask, least: float | None, drawn: int) -> list[Answer]:
    """Of one block; the first ``drawn`` keep their picture."""
    probabilities, scores = ask([picture.image for picture in pictures])
    images = [picture.image if place < drawn else NOTHING for place, picture in enumerate(pictures)]
    return told(classes, [(picture.name, picture.folder) for picture in pictures], probabilities, scores, least, images)


def told(
    classes: Sequence[str],
    queries: Sequence[tuple[str, str]],
    probabilities: Numbers,
    scores: Numbers | None,
    least: float | None,
    images: Sequence[np.ndarray],
) -> list[Answer]:
    """Answers to n queries.

    Args:
        queries: the name of each, and what it is said to be, in any Unicode form; "": nothing.
        probabilities, scores: as of ``Ask``; ``least`` as of ``answered``.
        images: one for each.
    """
    forms = {unicodedata.normalize("NFC", name): name for name in classes} | {name: name for name in classes}
    rows = probabilities.tolist()
    truths = [forms.get(said, forms.get(unicodedata.normalize("NFC", said))) for _, said in queries]
    belongings: list[float | None] = [None] * len(rows) if scores is None else scores.tolist()
    return [
        Answer(
            name,
            image,
            dict(zip(classes, row)),
            truth,
            said if said and truth is None else None,
            score,
            least is not None and score is not None and score < least,
        )
        for (name, said), truth, image, row, score in zip(queries, truths, images, rows, belongings, strict=True)
    ]


def _readable(block: Sequence[tuple[File, np.ndarray | str]], passed: dict[str, str]) -> list[Picture]:
    """What of a block is readable; why the rest is not, is added to ``passed``."""
    passed |= {str(path): image for (_, path, _), image in block if isinstance(image, str)}
    return [Picture(path, name, folder, image) for (name, path, folder), image in block if not isinstance(image, str)]


def _blocks(reader: Reader, files: Sequence[File], size: int) -> Iterator[list[tuple[File, np.ndarray | str]]]:
    """The files with what they hold, or why they cannot be read; a block is read while the one before is worked on."""

    def read(file: File) -> tuple[File, np.ndarray | str]:
        try:
            return file, reader.read(file[1])
        except UnreadableError as reason:
            return file, str(reason)

    following = iter(files)
    with ThreadPoolExecutor() as pool:

        def begun() -> list[Future[tuple[File, np.ndarray | str]]]:
            return [pool.submit(read, file) for _, file in zip(range(size), following)]

        reading = begun()
        while reading:
            block = [reading.pop(0).result() for _ in range(len(reading))]  # a future would keep its picture
            reading = begun()
            yield block
