"""``metarun classify``: pictures told apart by a few labelled ones without any training: features of a net that stays as it is, and the
head that does best on the labelled pictures, each left out in its turn. Queries are read and answered a block at a time."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console

from metarun.data.leakage import digest
from metarun.data.picture import Reader, UnreadableError, reasons, suffixes, tell
from metarun.errors import UserError
from metarun.predict import backbones, sources
from metarun.predict.backbones import Backbone
from metarun.predict.classifier import ONE_EACH, Classifier, directions, learn
from metarun.predict.confusion import Confusion
from metarun.predict.contact_sheet import ANSWERS, Answer, draw
from metarun.predict.prediction import Picture, as_csv, as_json, labelled, listed, of_no_class, separation, targets
from metarun.protocols.belonging import UNKNOWN
from metarun.storage.files import replace_file
from metarun.tracking.console import Display

log = logging.getLogger(__name__)
BLOCK = 64  # queries in memory at a time, and as many being read meanwhile
KEPT = Path("outputs/classify")  # has a folder for every call without --out
NOTHING = np.empty(0, np.uint8)  # in place of a picture that is not drawn
SHOWN = 12  # answers of which a line tells
File = tuple[str, Path, str]  # name, path and folder, as of a ``Picture``


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to classify, and what to write; ``metarun classify --help`` says what each means."""

    support: str
    query: Sequence[str]
    words: Sequence[str] = ()
    run: str | None = None
    checkpoint: Literal["best", "last"] = "best"
    reject: float = 0.05
    out: str | None = None
    format: Literal["csv", "json"] | None = None
    sheet: str | None = None


@dataclass
class Done:
    """What has been answered."""

    answers: list[Answer] = field(default_factory=list)
    passed: dict[str, str] = field(default_factory=dict)  # files passed over, and why
    copies: list[tuple[Path, Path]] = field(default_factory=list)  # of the support, among the queries


def classify(options: Options) -> dict[str, Any]:
    """Learn from the support, answer the queries, write, and tell on stdout; returns the result for ``--json``.

    Raises:
        UserError, RunError: whatever is wrong with folders or pictures; see also ``backbones``.
    """
    table, sheet = targets(options.out, options.format, options.sheet, KEPT)
    for place in (options.support, *options.query):
        if not Path(place).exists():
            raise UserError(f"{place} does not exist: --support takes a folder with one folder of pictures per class, --query any pictures")
    backbone = backbones.of(options.words, options.run, options.checkpoint)
    reader = backbone.reader
    support, shots, broken = labelled(options.support, reader)
    if len(shots) < 2:
        raise UserError(f"--support {options.support} has one class: telling classes apart needs two at least")
    if options.reject and UNKNOWN in shots:
        raise UserError(f"a class of {options.support} is called '{UNKNOWN}', as is the answer where none fits: rename it, or --reject 0")
    features = [backbone.features([picture.image for picture in support[i : i + BLOCK]]) for i in range(0, len(support), BLOCK)]
    learned = learn(directions(torch.cat(features)), [picture.folder for picture in support])
    limit = learned.threshold(options.reject)
    done = _answer(options.query, backbone, learned, support, limit[0] if limit else None)
    tell(log, broken | done.passed)
    if not done.answers:
        endings = ", ".join(sorted(reader.endings or suffixes()))
        why = reasons(done.passed) or f"a {reader.noun} is a file that ends in {endings}"
        raise UserError(f"{' '.join(options.query)} has no readable {reader.noun} ({why})")
    if done.copies:
        log.warning(
            "%d of %d %ss to be classified are in the support as well, such as %s and %s: that they are recognised says nothing",
            len(done.copies), len(done.answers), reader.noun, *done.copies[0],
        )  # fmt: skip
    told, result, confusion = _found(options, backbone, learned, limit, shots, done)
    text = as_csv(done.answers, learned.classes) if table.suffix == ".csv" else as_json(done.answers)
    replace_file(table, lambda handle: handle.write(text.encode(errors="surrogateescape")))
    told |= {"predictions": str(table), "sheet": str(sheet or "")}
    if sheet:
        lines = [
            f"classes: {told['classes']}; features: {backbone.name}",
            *(f"{key} {told[key]}" for key in ("head", "expected", "accuracy") if told[key]),
        ]
        draw(sheet, lines, [(picture.folder, picture.image) for picture in support], done.answers, reader.noun, reader.wording, named=True)
    if confusion and table.name.startswith("predictions."):  # a folder, which has room for more than was asked for
        confusion.save(table.parent, "metarun classify: answers by truth")
        told["confusion"] = str(table.with_name("confusion.csv"))
    for key, value in told.items():
        if value:
            print(f"{key:12} {value}")
    if confusion:
        Console(highlight=False, width=None if sys.stdout.isatty() else 100).print(confusion.table())
    return result | {"skipped": [*broken, *done.passed], "predictions": str(table), "sheet": sheet and str(sheet)}


def _answer(query: Sequence[str], backbone: Backbone, learned: Classifier, support: Sequence[Picture], least: float | None) -> Done:
    """All queries, a block at a time; with a threshold ``least``, ``UNKNOWN`` to what is below it."""
    known, done, seen = {digest(picture.image): picture.path for picture in support}, Done(), 0
    files, done.passed = listed([sources.query(Path(place), backbone.reader) for place in query])
    with closing(Display(enabled=True)) as display:
        for block in _blocks(backbone.reader, iter(files)):
            pictures = []
            for (name, path, folder), image in block:
                if isinstance(image, str):
                    done.passed[str(path)] = image
                else:
                    pictures.append(Picture(path, name, folder, image))
            done.copies += [(known[mark], p.path) for p in pictures if (mark := digest(p.image)) in known]
            if pictures:
                done.answers += _answers(backbone, learned, pictures, least, ANSWERS - len(done.answers))
            seen += len(block)
            display.show("classify", seen, len(files), {})
    return done


def _answers(backbone: Backbone, learned: Classifier, pictures: Sequence[Picture], least: float | None, drawn: int) -> list[Answer]:
    """Of one block; the first ``drawn`` keep their picture."""
    probabilities, scores = learned.answer(directions(backbone.features([picture.image for picture in pictures])))
    return [
        Answer(
            picture.name,
            picture.image if place < drawn else NOTHING,
            dict(zip(learned.classes, row)),
            picture.folder if picture.folder in learned.classes else None,
            picture.folder if picture.folder and picture.folder not in learned.classes else None,
            score,
            least is not None and score < least,
        )
        for place, (picture, row, score) in enumerate(zip(pictures, probabilities.tolist(), scores.tolist()))
    ]


def _blocks(reader: Reader, files: Iterator[File]) -> Iterator[list[tuple[File, np.ndarray | str]]]:
    """The files with what they hold, or why they cannot be read; a block is read while the one before is worked on."""

    def read(file: File) -> tuple[File, np.ndarray | str]:
        try:
            return file, reader.read(file[1])
        except UnreadableError as reason:
            return file, str(reason)

    with ThreadPoolExecutor() as pool:

        def begun() -> list[Future[tuple[File, np.ndarray | str]]]:
            return [pool.submit(read, file) for _, file in zip(range(BLOCK), files)]

        reading = begun()
        while reading:
            block = [reading.pop(0).result() for _ in range(len(reading))]  # a future would keep its picture
            reading = begun()
            yield block


def _found(
    options: Options, backbone: Backbone, learned: Classifier, limit: tuple[float, float] | None, shots: dict[str, int], done: Done
) -> tuple[dict[str, str], dict[str, Any], Confusion | None]:
    """What was found: in words by what they are about, as JSON has it, and the confusion table where there are truths."""
    noun, answers, classes = f"{backbone.reader.noun}s", done.answers, learned.classes
    expected, judged = learned.expected(), [answer.guess == answer.truth for answer in answers if answer.truth is not None]
    accuracy = sum(judged) / len(judged) if judged else None
    strays = Counter(answer.stray for answer in answers if answer.stray is not None)
    counts, confusion = Counter(answer.guess for answer in answers), Confusion.of(answers, classes)
    areas = {"belonging": separation(answers), "maximum_softmax": separation(answers, lambda answer: answer.confidence)}
    few, many = min(shots.values()), max(shots.values())
    told = {
        "features": backbone.name,
        "classes": f"{len(classes)} with {few if few == many else f'{few} to {many}'} {noun} each",
        "head": learned.chosen(),
        "expected": expected.said,
        noun[:12]: f"{len(answers)} classified" + (f", {len(done.passed)} passed over" if done.passed else ""),
        "answers": ", ".join(f"{name} {n}" for name, n in counts.most_common(SHOWN)) + ", …" * (len(counts) > SHOWN),
        "rejected": _rejected(options.reject, limit, counts[UNKNOWN], noun),
        "accuracy": f"{accuracy:.4f} on the {len(judged)} {noun} in folders named like a class" if judged else "",
        "of no class": of_no_class(strays, classes, noun),
        "told apart": _areas_told(areas, noun),
    }
    result = {
        "features": backbone.name,
        "classes": classes,
        "shots": shots,
        "head": learned.head.name,
        "expected": expected.record(),
        "temperature": learned.temperature,
        "pictures": len(answers),
        "in_support": len(done.copies),
        "answers": dict(counts),
        "rejected": counts[UNKNOWN] if limit else None,
        "threshold": limit and limit[0],
        "expected_rate": limit and limit[1],
        "accuracy": accuracy,
        "of_no_class": dict(strays),
        "auroc_unknown": areas["belonging"],
        "auroc_maximum_softmax": areas["maximum_softmax"],
        "confusion": confusion and confusion.record(),
    }
    return told, result, confusion


def _areas_told(areas: dict[str, float | None], noun: str) -> str:
    """How well two scores tell pictures of a class from those of none; empty where one of these is missing."""
    if areas["belonging"] is None:
        return ""
    by = f"{areas['belonging']:.4f} by belonging, {areas['maximum_softmax']:.4f} by the highest probability"
    return f"{noun} of a class from those of none with AUROC {by}"


def _rejected(rate: float, limit: tuple[float, float] | None, count: int, noun: str) -> str:
    """How often ``UNKNOWN`` is answered, and at what cost."""
    if not rate:
        return ""
    if limit is None:
        return f"none can be: {ONE_EACH} nothing is known of its spread"
    low = f" (the {noun} of the support allow no lower share)" * (limit[1] > max(1.5 * rate, rate + 0.01))
    return f"{count} answered '{UNKNOWN}', with {limit[1]:.3f} to be expected of {noun} that do belong{low}"
