"""``metarun classify``: pictures told apart by a few labelled ones without any training: features of a net that stays as it is, and the head
that does best on the labelled pictures, each left out in its turn. Queries are read and answered a block at a time."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from metarun.data.leakage import digest
from metarun.data.picture import Reader, UnreadableError, reasons, search, suffixes, tell
from metarun.errors import UserError
from metarun.predict import sources
from metarun.predict.belonging import UNKNOWN
from metarun.predict.classifier import Classifier, directions, learn
from metarun.predict.confusion import Confusion
from metarun.predict.contact_sheet import ANSWERS, Answer, draw
from metarun.predict.prediction import Picture, as_csv, as_json, labelled, targets
from metarun.predict.sources import Source
from metarun.protocols.verification import roc
from metarun.storage.files import replace_file
from metarun.tracking.console import Display

log = logging.getLogger(__name__)
BLOCK = 64  # queries in memory at a time, and as many being read meanwhile
KEPT = Path("outputs/classify")  # a folder in it for every call without --out
NOTHING = np.empty(0, np.uint8)  # in place of a picture that is not drawn


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to classify, and what to write; ``metarun classify --help`` says what each means."""

    support: str
    queries: Sequence[str]
    words: Sequence[str] = ()
    run: str | None = None
    checkpoint: Literal["best", "last"] = "best"
    reject: float = 0.05
    out: str | None = None
    format: Literal["csv", "json"] | None = None
    sheet: str | None = None


@dataclass
class Answers:
    """What has been answered so far."""

    answers: list[Answer] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)  # of each answer: that it lies in, below its query
    passed: dict[str, str] = field(default_factory=dict)  # files passed over, and why
    copies: list[tuple[Path, Path]] = field(default_factory=list)  # of the support, among the queries


def classify(options: Options) -> dict[str, Any]:
    """Learn from the support, answer the queries, write, and tell on stdout; returns the result for ``--json``.

    Raises:
        UserError, RunError: whatever is wrong with folders or pictures; see also ``sources``.
    """
    table, sheet = targets(options.out, options.format, options.sheet, KEPT)
    for query in options.queries:
        if not Path(query).exists():
            raise UserError(f"--query {query} does not exist: give folders of pictures, or pictures")
    source = sources.of(options.words, options.run, options.checkpoint)
    noun = f"{source.reader.noun}s"
    support, shots, broken = labelled(Path(options.support), source.reader)
    if len(shots) < 2:
        raise UserError(f"--support {options.support} has one class: telling classes apart needs two at least")
    features = torch.cat([source.features([p.image for p in support[i : i + BLOCK]]) for i in range(0, len(support), BLOCK)])
    learned = learn(directions(features), [picture.folder for picture in support], options.reject)
    done = _answer(options, source, learned, support)
    tell(log, broken | done.passed)
    if not done.answers:
        endings = ", ".join(sorted(source.reader.endings or suffixes()))
        raise UserError(
            f"--query has no readable {source.reader.noun} ({reasons(done.passed) or f'a {source.reader.noun} ends in {endings}'})"
        )
    if done.copies:
        log.warning(
            "%d of %d %s to be classified are in the support as well, such as %s and %s: that they are recognised says nothing",
            len(done.copies), len(done.answers), noun, *done.copies[0],
        )  # fmt: skip
    return _report(options, source, learned, shots, support, done, broken, table, sheet)


def _answer(options: Options, source: Source, learned: Classifier, support: Sequence[Picture]) -> Answers:
    """All queries, a block at a time."""
    known = {digest(picture.image): picture.path for picture in support}
    classes, done, seen = set(learned.classes), Answers(), 0
    files = list(_queries(options.queries, source.reader, done.passed))
    with closing(Display(enabled=True)) as display:
        for block in _blocks(source.reader, iter(files)):
            seen += len(block)
            pictures = []
            for name, path, folder, image in block:
                if isinstance(image, str):
                    done.passed[str(path)] = image
                    continue
                pictures.append((name, folder, image))
                if (mark := digest(image)) in known:
                    done.copies.append((known[mark], path))
            if pictures:
                _note(done, classes, learned, source, pictures)
            display.show("classify", seen, len(files), {})
    return done


def _note(
    done: Answers, classes: set[str], learned: Classifier, source: Source, pictures: Sequence[tuple[str, str, np.ndarray]]
) -> None:
    """Answer pictures, each behind its name and its folder; the first ones of all are kept for the sheet."""
    probabilities, scores = learned.answer(directions(source.features([image for _, _, image in pictures])))
    for (name, folder, image), row, score in zip(pictures, probabilities.tolist(), scores.tolist()):
        shown = image if len(done.answers) < ANSWERS else NOTHING
        refused = UNKNOWN if score < learned.belonging.threshold else ""
        truth = folder if folder in classes else None
        done.answers.append(Answer(name, shown, dict(zip(learned.classes, row)), truth, score, refused))
        done.folders.append(folder)


def _queries(queries: Sequence[str], reader: Reader, passed: dict[str, str]) -> Iterator[tuple[str, Path, str]]:
    """Of every file its name in the table, its path, and the folder that it lies in below its query, which may name a class."""
    for query in map(Path, queries):
        if not query.is_dir():
            yield query.as_posix(), query, ""
            continue
        found = search(query, reader.endings)
        passed |= {str(found.base / path): reason for path, reason in found.passed.items()}
        for folder, paths in found.folders.items():
            for path in paths:
                name = path.relative_to(query).as_posix()
                yield name if len(queries) == 1 else path.as_posix(), path, folder


def _blocks(
    reader: Reader, files: Iterator[tuple[str, Path, str]]
) -> Iterator[list[tuple[str, Path, str, np.ndarray | str]]]:
    """The files with what they hold, or why they cannot be read; a block is read while the one before is worked on."""

    def read(file: tuple[str, Path, str]) -> tuple[str, Path, str, np.ndarray | str]:
        try:
            return *file, reader.read(file[1])
        except UnreadableError as reason:
            return *file, str(reason)

    with ThreadPoolExecutor() as pool:

        def begun() -> list[Future[tuple[str, Path, str, np.ndarray | str]]]:
            return [pool.submit(read, file) for _, file in zip(range(BLOCK), files)]

        reading = begun()
        while reading:
            block = [future.result() for future in reading]
            reading = begun()
            yield block


def _report(
    options: Options, source: Source, learned: Classifier, shots: dict[str, int], support: Sequence[Picture], done: Answers,
    broken: dict[str, str], table: Path, sheet: Path | None,
) -> dict[str, Any]:  # fmt: skip
    """Write table, sheet and confusion, tell what was found, and return it."""
    noun, answers, classes = f"{source.reader.noun}s", done.answers, learned.classes
    text = as_csv(answers, classes) if table.suffix == ".csv" else as_json(answers)
    replace_file(table, lambda handle: handle.write(text.encode(errors="surrogateescape")))
    expected, judged = learned.expected(), [answer for answer in answers if answer.truth is not None]
    accuracy = sum(answer.guess == answer.truth for answer in judged) / len(judged) if judged else None
    foreign = [(answer, folder) for answer, folder in zip(answers, done.folders) if folder and answer.truth is None]
    outside = dict(sorted(Counter(folder for _, folder in foreign).items()))
    refused = sum(bool(answer.refused) for answer, _ in foreign)
    areas = _areas(judged, [answer for answer, _ in foreign])
    few, many = min(shots.values()), max(shots.values())
    counts = Counter(answer.guess for answer in answers)
    told = {
        "features": source.name,
        "classes": f"{len(classes)} with {few if few == many else f'{few} to {many}'} {noun} each",
        "head": learned.chosen(),
        "expected": expected.said,
        "unknown": learned.rejection(options.reject),
        noun[:12]: f"{len(answers)} classified" + (f", {len(done.passed)} passed over" if done.passed else ""),
        "answers": ", ".join(f"{name} {n}" for name, n in counts.most_common(12)) + (", …" if len(counts) > 12 else ""),
        "accuracy": f"{accuracy:.4f} on the {len(judged)} {noun} in folders named like a class" if judged else "",
        "no class": ", ".join(f"{folder} ({n})" for folder, n in list(outside.items())[:6]) + ", …" * (len(outside) > 6)
        + f": folders that name none of the classes; {refused} of {len(foreign)} {noun} answered {UNKNOWN}" if outside else "",
        "open set": f"AUROC {areas['belonging']:.4f} of belonging, {areas['maximum_softmax']:.4f} of the highest probability" if areas else "",
        "predictions": str(table),
        "sheet": str(sheet or ""),
    }  # fmt: skip
    confusion = Confusion.of(
        [answer.truth or folder for answer, folder in zip(answers, done.folders) if answer.truth or folder],
        [answer.guess for answer, folder in zip(answers, done.folders) if answer.truth or folder],
        classes,
    )
    beside = table.with_name("confusion.csv") if judged and sheet and sheet.parent == table.parent else None
    if beside:
        title = f"{len(judged)} {noun} in folders named like a class, {accuracy:.4f} right"
        confusion.save(beside, beside.with_suffix(".png"), title)
        told["confusion"] = f"{beside}, {beside.with_suffix('.png').name}"
    if sheet:
        lines = [f"{told['classes']}, by {source.name}", *(f"{key} {told[key]}" for key in ("head", "expected", "accuracy") if told[key])]
        draw(sheet, lines, [(p.folder, p.image) for p in support], answers, source.reader.noun, source.reader.wording)
    for key, value in told.items():
        if value:
            print(f"{key:12} {value}")
            if key == "accuracy":
                print("\n".join(f"{'':12} {line}" for line in confusion.lines()))
    return {
        "features": source.name,
        "classes": classes,
        "shots": shots,
        "head": learned.head.name,
        "expected": expected.json(),
        "temperature": learned.temperature,
        "reject": options.reject,
        "threshold": learned.belonging.threshold if np.isfinite(learned.belonging.threshold) else None,
        "pictures": len(answers),
        "answers": dict(counts),
        "skipped": [*broken, *done.passed],
        "in_support": len(done.copies),
        "accuracy": accuracy,
        "no_class": outside,
        "auroc": areas or None,
        "confusion": confusion.json() if judged or foreign else None,
        "predictions": str(table),
        "sheet": sheet and str(sheet),
    }


def _areas(judged: Sequence[Answer], foreign: Sequence[Answer]) -> dict[str, float]:
    """How well scores tell pictures of the classes from those in other folders; nothing where one of them is missing."""
    if not judged or not foreign:
        return {}

    def area(score: Any) -> float:
        return roc(np.array([score(a) for a in judged]), np.array([score(a) for a in foreign])).auc

    return {"belonging": area(lambda a: a.belonging), "maximum_softmax": area(lambda a: a.confidence)}
