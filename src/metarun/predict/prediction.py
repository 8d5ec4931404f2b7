"""``metarun predict``: classify pictures (recordings, texts) after adapting a trained run to class folders of others.
Tables, picture sheet and export of one call; what happens in between is trained.py's."""

from __future__ import annotations

import csv
import io
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from metarun.data.leakage import digest
from metarun.data.picture import Found, Reader, UnreadableError, reasons, suffixes, tell
from metarun.errors import UserError, nearest
from metarun.predict import sources
from metarun.predict.confusion import Confusion, said
from metarun.predict.contact_sheet import Answer, draw
from metarun.predict.trained import Fitted, load
from metarun.protocols.belonging import UNKNOWN
from metarun.protocols.verification import roc
from metarun.storage.files import replace_file
from metarun.storage.foreign import refuse_links

log = logging.getLogger(__name__)

STRAYS = 8  # folders that name no class, of which a line tells


@dataclass(frozen=True)
class Picture:
    """One readable file: a picture, or whatever the run was trained on."""

    path: Path
    name: str  # its path below what was given, or its own where several things were
    folder: str  # its folder below the one that was given, or its label in a table; "" where it has neither
    image: np.ndarray  # [channels, height, width] or another shape, uint8, as the net will see it


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to predict, and what to write; ``metarun predict --help`` says what each means."""

    run: str
    support: str
    query: Sequence[str]
    reject: float | None = None
    steps: int | None = None
    checkpoint: Literal["best", "last"] = "best"
    out: str | None = None
    format: Literal["csv", "json"] | None = None
    sheet: str | None = None
    export: str | None = None


def predict(options: Options) -> dict[str, Any]:
    """Adapt, classify, write, and tell on stdout; returns the result for ``--json``.

    Raises:
        UserError, RunError: whatever is wrong with folders or pictures; see also ``trained.load`` and ``Model.adapt``.
    """
    table, sheet = targets(options.out, options.format, options.sheet, Path(options.run) / "predict")
    model = load(options.run, options.checkpoint)
    refuse_links(Path(options.run))  # the table goes there
    reader = model.reader
    if reader is None:
        raise UserError(
            f"{options.run} was trained on data={model.data}, which does not say how pictures are read; use it from Python: "
            "metarun.load(RUN).adapt(x, y).predict(x)"
        )
    if model.algorithm.reads == "attributes":
        raise UserError(
            f"{options.run} is zero-shot: it knows classes by their attributes, not by pictures; use it from Python: "
            "metarun.load(RUN).adapt(attributes, names).predict(files)"
        )
    noun = f"{reader.noun}s"
    support, shots, broken = labelled(options.support, reader)
    query, broken_too = _read(reader, [sources.query(Path(place), reader) for place in options.query])
    tell(log, broken | broken_too)
    if options.reject is not None and UNKNOWN in shots:
        raise UserError(f"--reject answers '{UNKNOWN}', and a class of {options.support} has that name: give it another")
    if not query:
        endings = ", ".join(sorted(reader.endings or suffixes()))
        why = reasons(broken_too) or f"a {reader.noun} is a file that ends in {endings}"
        raise UserError(f"{' '.join(options.query)} has no readable {reader.noun} ({why})")
    known = {digest(picture.image): picture.path for picture in support}
    seen = [(known[mark], picture.path) for picture in query if (mark := digest(picture.image)) in known]
    if seen:
        log.warning(
            "%d of %d %s to be classified are in the support as well, such as %s and %s: that they are recognised says nothing",
            len(seen), len(query), noun, *seen[0],
        )  # fmt: skip

    fitted = model.adapt(np.stack([picture.image for picture in support]), [picture.folder for picture in support], options.steps)
    least, lost = (None, None) if options.reject is None else fitted.threshold(options.reject)
    answers = _answers(fitted, query, least)
    judged = [answer.guess == answer.truth for answer in answers if answer.truth is not None]
    accuracy = sum(judged) / len(judged) if judged else None
    strays = Counter(answer.stray for answer in answers if answer.stray is not None)
    confusion = Confusion.of(answers, fitted.classes)

    if options.export:
        fitted.export(options.export)
    text = as_csv(answers, fitted.classes) if table.suffix == ".csv" else as_json(answers)
    replace_file(table, lambda handle: handle.write(text.encode(errors="surrogateescape")))
    few, many = min(shots.values()), max(shots.values())
    each = f"{few if few == many else f'{few} to {many}'} {noun} each"
    told = {
        "learner": f"{model.algo} trained on {model.data}, adapted to {len(shots)} classes with {each}",
        noun: f"{len(answers)} classified" + (f", {len(broken_too)} passed over" if broken_too else ""),
        "temperature": f"{model.temperature:.3g}, fitted on development tasks" if model.temperature != 1 else "",
        "accuracy": f"{accuracy:.4f} on the {len(judged)} {noun} in folders named like a class" if judged else "",
        "of no class": of_no_class(strays, fitted.classes, noun),
        "norm": f"batch (transductive): {noun} are normalised together, so an answer depends on the others" if fitted.transductive else "",
        "predictions": str(table),
        "sheet": str(sheet or ""),
        "export": (options.export or "") + (" (normalises every batch by itself, too)" if options.export and fitted.transductive else ""),
    }
    result = {
        "run": options.run,
        "classes": fitted.classes,
        "shots": shots,
        "pictures": len(answers),
        "skipped": [*broken, *broken_too],
        "in_support": len(seen),
        "transductive": fitted.transductive,
        "temperature": model.temperature,
        "accuracy": accuracy,
        "of_no_class": dict(strays),
        "confusion": confusion and confusion.record(),
        "predictions": str(table),
        "sheet": sheet and str(sheet),
        "export": options.export,
    }
    if least is not None and lost is not None:
        rejected = sum(answer.unknown for answer in answers)
        auroc = separation(answers)
        apart = "" if auroc is None else f"; AUROC of those of a class against those of none {auroc:.4f}"
        told["rejected"] = f"{rejected} answered '{UNKNOWN}', with {lost:.3f} to be expected of {noun} that do belong{apart}"
        result |= {"rejected": rejected, "threshold": least, "expected_rate": lost, "auroc_unknown": auroc}
        if fitted.transductive:
            log.warning("net.norm=batch: --reject is calibrated on %s normalised with the support, and its rate will not hold", noun)
        elif lost > max(1.5 * (options.reject or 0), (options.reject or 0) + 0.01):
            log.warning("--reject %g needs more %s in the support: with these no rate below %.3f can be told", options.reject, noun, lost)
    if sheet:
        lines = [told["learner"], *(f"{name} {told[name]}" for name in ("accuracy", "norm") if told[name])]
        draw(sheet, lines, [(picture.folder, picture.image) for picture in support], answers, reader.noun, reader.wording)
    if confusion and table.name.startswith("predictions."):  # a folder, which has room for more than was asked for
        confusion.save(table.parent, f"{model.algo}: answers by truth")
        told["confusion"] = str(table.with_name("confusion.csv"))
    for key, value in told.items():
        if value:
            print(f"{key:12} {value}")
    if confusion:
        Console(highlight=False, width=None if sys.stdout.isatty() else 100).print(confusion.table())
    return result


def labelled(place: str, reader: Reader) -> tuple[list[Picture], dict[str, int], dict[str, str]]:
    """The readable pictures of the support, how many each class has, and why other files are passed over.

    Raises:
        UserError: a class has none; see also ``sources.support``.
    """
    folders = sources.support(Path(place), reader)
    pictures, broken = _read(reader, [folders])
    shots = dict.fromkeys(folders.classes, 0) | Counter(picture.folder for picture in pictures)
    for name, count in shots.items():
        if not count:
            own = {path: reason for path, reason in broken.items() if Path(path).parent == Path(place, name)}
            there = f" (passed over: {reasons(own)})" if own else ""
            raise UserError(f"class '{name}' of {place} has no readable {reader.noun}{there}: add some, or remove the folder")
    return pictures, shots, broken


def _answers(fitted: Fitted, query: list[Picture], least: float | None) -> list[Answer]:
    """The answers in order; with a threshold ``least``, ``UNKNOWN`` to what is below it."""
    images = np.stack([picture.image for picture in query])
    rows = fitted.probabilities(images).tolist()
    scores = [None] * len(rows) if least is None else fitted.belonging(images).tolist()
    return [
        Answer(
            picture.name,
            picture.image,
            dict(zip(fitted.classes, row)),
            picture.folder if picture.folder in fitted.classes else None,
            picture.folder if picture.folder and picture.folder not in fitted.classes else None,
            score,
            least is not None and score is not None and score < least,
        )
        for picture, row, score in zip(query, rows, scores)
    ]


def of_no_class(strays: Counter[str], classes: list[str], noun: str) -> str:
    """What lies in folders that name no class, and of which a class has nearly the name."""
    if not strays:
        return ""
    shown = [said(f"{name} ({count}{nearest(name, classes)})") for name, count in strays.most_common(STRAYS)]
    more = f" and {len(strays) - STRAYS} more" if len(strays) > STRAYS else ""
    return f"{strays.total()} {noun} in folders that name no class of the support: {', '.join(shown)}{more}"


def separation(answers: Sequence[Answer], score: Callable[[Answer], float | None] = lambda answer: answer.belonging) -> float | None:
    """How well a score, by default belonging, tells answers about classes from those about none: AUROC; None where either is missing."""
    known = np.array([score(answer) for answer in answers if answer.truth is not None])
    others = np.array([score(answer) for answer in answers if answer.stray is not None])
    return roc(known, others).auc if len(known) and len(others) else None


def targets(out: str | None, format: str | None, sheet: str | None, kept: Path) -> tuple[Path, Path | None]:
    """Where the table and the sheet go; no sheet beside a table that was asked for as a file.

    Args:
        out, format, sheet: as the options of these names say.
        kept: the folder that gets a folder for every call without ``out``.
    """
    drawn = Path(sheet) if sheet else None
    if drawn and drawn.suffix != ".png":
        raise UserError(f"--sheet {drawn} is not possible: give a file that ends in .png")
    if out is None:
        place = kept / str(1 + max((int(path.name) for path in kept.glob("*") if path.name.isdigit()), default=-1))
    else:
        place = Path(out)
        if place.suffix in (".csv", ".json") and not place.is_dir():
            if format and place.suffix != f".{format}":
                raise UserError(f"--out {out} and --format {format} contradict each other: leave one out")
            return place, drawn
        if place.suffix or place.is_file():
            raise UserError(f"--out {out} is not possible: give a folder, or a file that ends in .csv or .json")
    return place / f"predictions.{format or 'csv'}", drawn or place / "sheet.png"


def listed(places: Sequence[Found]) -> tuple[list[tuple[str, Path, str]], dict[str, str]]:
    """Name, path and folder of every file, as of ``Picture``, in order; and why others are passed over."""

    def name(found: Found, path: Path) -> str:
        return path.relative_to(found.base).as_posix() if len(places) == 1 and path.is_relative_to(found.base) else path.as_posix()

    files = [(name(found, path), path, folder) for found in places for folder, paths in found.folders.items() for path in paths]
    return files, {str(found.base / path): reason for found in places for path, reason in found.passed.items()}


def _read(reader: Reader, places: Sequence[Found]) -> tuple[list[Picture], dict[str, str]]:
    """The readable files in order, and why the other files are passed over."""

    def read(path: Path) -> np.ndarray | str:
        try:
            return reader.read(path)
        except UnreadableError as reason:
            return str(reason)

    files, passed = listed(places)
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(lambda file: read(file[1]), files))
    passed |= {str(path): image for (_, path, _), image in zip(files, images) if isinstance(image, str)}
    return [Picture(path, name, folder, image) for (name, path, folder), image in zip(files, images) if not isinstance(image, str)], passed


def as_csv(answers: list[Answer], classes: list[str]) -> str:
    """One line per picture: file, answer, probability of the likeliest class, then that of every class; ``truth`` where any is known, and
    ``belonging`` where it was asked for.
    """
    further = {
        "truth": any(answer.truth is not None for answer in answers),
        "belonging": any(answer.belonging is not None for answer in answers),
    }
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["file", "class", "probability", *(name for name, there in further.items() if there), *(f"p_{name}" for name in classes)]
    )
    for answer in answers:
        more = {"truth": answer.truth or "", "belonging": f"{answer.belonging:.6g}" if answer.belonging is not None else ""}
        numbers = [f"{p:.6f}" for p in (answer.confidence, *answer.probabilities.values())]
        writer.writerow([answer.file, answer.guess, numbers[0], *(more[name] for name, there in further.items() if there), *numbers[1:]])
    return out.getvalue()


def as_json(answers: list[Answer]) -> str:
    """A list with one object per picture; ``truth`` is null where it is not known, ``belonging`` there where it was asked for."""
    records = [
        {"file": a.file, "class": a.guess, "probability": a.confidence, "truth": a.truth, "probabilities": a.probabilities}
        | ({} if a.belonging is None else {"belonging": a.belonging})
        for a in answers
    ]
    return json.dumps(records, indent=1, ensure_ascii=False)
