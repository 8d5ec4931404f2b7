"""``metarun predict``: classify a folder of pictures (recordings, texts) after adapting a trained run to class folders of others.
Tables, picture sheet and export of one call; what happens in between is trained.py's."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from metarun.data.leakage import digest
from metarun.data.picture import Found, Reader, UnreadableError, reasons, search, suffixes, tell
from metarun.errors import UserError
from metarun.predict.contact_sheet import Answer, draw
from metarun.predict.trained import load
from metarun.storage.files import replace_file
from metarun.storage.foreign import refuse_links

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """One readable file: a picture, or whatever the run was trained on."""

    path: Path
    folder: str  # its folder below the one that was given; "" for that one itself
    image: np.ndarray  # [channels, height, width] or another shape, uint8, as the net will see it


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to predict, and what to write; ``metarun predict --help`` says what each means."""

    run: str
    support: str
    query: str
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
    table, sheet = _targets(options)
    model = load(options.run, options.checkpoint)
    refuse_links(Path(options.run))  # the table goes there
    reader = model.reader
    if reader is None:
        raise UserError(
            f"{options.run} was trained on data={model.data}, which does not say how pictures are read; use it from Python: "
            "metarun.load(RUN).adapt(x, y).predict(x)"
        )
    if model.algorithm.zero_shot:
        raise UserError(
            f"{options.run} is zero-shot: it knows classes by their attributes, not by pictures; use it from Python: "
            "metarun.load(RUN).adapt(attributes, names).predict(files)"
        )
    noun = f"{reader.noun}s"
    folders = _support(Path(options.support), reader)
    support, broken = _read(reader, folders)
    query, broken_too = _read(reader, _query(Path(options.query), reader))
    tell(log, broken | broken_too)
    shots = dict.fromkeys(folders.classes, 0) | Counter(picture.folder for picture in support)
    for name, count in shots.items():
        if not count:
            own = {path: reason for path, reason in broken.items() if Path(path).parent == Path(options.support, name)}
            there = f" (passed over: {reasons(own)})" if own else ""
            raise UserError(f"class '{name}' of {options.support} has no readable {reader.noun}{there}: add some, or remove the folder")
    if not query:
        endings = ", ".join(sorted(reader.endings or suffixes()))
        why = reasons(broken_too) or f"a {reader.noun} is a file that ends in {endings}"
        raise UserError(f"{options.query} has no readable {reader.noun} ({why})")
    known = {digest(picture.image): picture.path for picture in support}
    seen = [(known[mark], picture.path) for picture in query if (mark := digest(picture.image)) in known]
    if seen:
        log.warning(
            "%d of %d %s to be classified are in the support as well, such as %s and %s: that they are recognised says nothing",
            len(seen), len(query), noun, *seen[0],
        )  # fmt: skip

    fitted = model.adapt(np.stack([picture.image for picture in support]), [picture.folder for picture in support], options.steps)
    rows = fitted.probabilities(np.stack([picture.image for picture in query])).tolist()
    answers = [
        Answer(
            picture.path.relative_to(options.query).as_posix(),
            picture.image,
            dict(zip(fitted.classes, row)),
            picture.folder if picture.folder in shots else None,
        )
        for picture, row in zip(query, rows)
    ]
    judged = [answer.guess == answer.truth for answer in answers if answer.truth is not None]
    accuracy = sum(judged) / len(judged) if judged else None

    if options.export:
        fitted.export(options.export)
    text = _csv(answers, fitted.classes) if table.suffix == ".csv" else _json(answers)
    replace_file(table, lambda handle: handle.write(text.encode(errors="surrogateescape")))
    few, many = min(shots.values()), max(shots.values())
    each = f"{few if few == many else f'{few} to {many}'} {noun} each"
    told = {
        "learner": f"{model.algo} trained on {model.data}, adapted to {len(shots)} classes with {each}",
        noun: f"{len(answers)} classified" + (f", {len(broken_too)} passed over" if broken_too else ""),
        "temperature": f"{model.temperature:.3g}, fitted on development tasks" if model.temperature != 1 else "",
        "accuracy": f"{accuracy:.4f} on the {len(judged)} {noun} in folders named like a class" if judged else "",
        "norm": f"batch (transductive): {noun} are normalised together, so an answer depends on the others" if fitted.transductive else "",
        "predictions": str(table),
        "sheet": str(sheet or ""),
        "export": (options.export or "") + (" (normalises every batch by itself, too)" if options.export and fitted.transductive else ""),
    }
    if sheet:
        lines = [told["learner"], *(f"{name} {told[name]}" for name in ("accuracy", "norm") if told[name])]
        draw(sheet, lines, [(picture.folder, picture.image) for picture in support], answers, reader.noun, reader.wording)
    for key, value in told.items():
        if value:
            print(f"{key:12} {value}")
    return {
        "run": options.run,
        "classes": fitted.classes,
        "shots": shots,
        "pictures": len(answers),
        "skipped": [*broken, *broken_too],
        "in_support": len(seen),
        "transductive": fitted.transductive,
        "temperature": model.temperature,
        "accuracy": accuracy,
        "predictions": str(table),
        "sheet": sheet and str(sheet),
        "export": options.export,
    }


def _targets(options: Options) -> tuple[Path, Path | None]:
    """Where the table and the sheet go; no sheet beside a table that was asked for as a file."""
    sheet = Path(options.sheet) if options.sheet else None
    if sheet and sheet.suffix != ".png":
        raise UserError(f"--sheet {sheet} is not possible: give a file that ends in .png")
    if options.out:
        out = Path(options.out)
        if out.suffix in (".csv", ".json") and not out.is_dir():
            if options.format and out.suffix != f".{options.format}":
                raise UserError(f"--out {out} and --format {options.format} contradict each other: leave one out")
            return out, sheet
        if out.suffix or out.is_file():
            raise UserError(f"--out {out} is not possible: give a folder, or a file that ends in .csv or .json")
    else:
        kept = Path(options.run) / "predict"
        out = kept / str(1 + max((int(path.name) for path in kept.glob("*") if path.name.isdigit()), default=-1))
    return out / f"predictions.{options.format or 'csv'}", sheet or out / "sheet.png"


def _support(base: Path, reader: Reader) -> Found:
    """The pictures by class.

    Raises:
        UserError: not a folder of class folders.
    """
    wanted = f"one folder of {reader.noun}s per class"
    if not base.is_dir():
        raise UserError(f"--support {base} {'is not a folder' if base.exists() else 'does not exist'}: give a folder with {wanted}")
    found = search(base, reader.endings)
    if not found.classes:
        raise UserError(f"--support {base} has no class folders: it should hold {wanted}")
    if loose := found.folders.get(""):
        raise UserError(f"--support {base} has {reader.noun}s outside its class folders, such as {loose[0].name}: move them into one")
    return found


def _query(base: Path, reader: Reader) -> Found:
    """The pictures by the folder they lie in, those in ``base`` itself first."""
    if not base.is_dir():
        raise UserError(f"--query {base} {'is not a folder' if base.exists() else 'does not exist'}: give a folder of {reader.noun}s")
    return search(base, reader.endings)


def _read(reader: Reader, found: Found) -> tuple[list[Picture], dict[str, str]]:
    """The readable files in order, and why the other files are passed over."""

    def read(path: Path) -> np.ndarray | str:
        try:
            return reader.read(path)
        except UnreadableError as reason:
            return str(reason)

    files = [(path, folder) for folder, paths in found.folders.items() for path in paths]
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(lambda file: read(file[0]), files))
    passed = {str(found.base / path): reason for path, reason in found.passed.items()}
    passed |= {str(path): image for (path, _), image in zip(files, images) if isinstance(image, str)}
    return [Picture(path, folder, image) for (path, folder), image in zip(files, images) if not isinstance(image, str)], passed


def _csv(answers: list[Answer], classes: list[str]) -> str:
    """One line per picture: file, class, its probability, then the probability of every class; ``truth`` where any is known."""
    truth = any(answer.truth is not None for answer in answers)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["file", "class", "probability", *["truth"] * truth, *(f"p_{name}" for name in classes)])
    for answer in answers:
        numbers = [f"{p:.6f}" for p in (answer.confidence, *answer.probabilities.values())]
        writer.writerow([answer.file, answer.guess, numbers[0], *[answer.truth or ""] * truth, *numbers[1:]])
    return out.getvalue()


def _json(answers: list[Answer]) -> str:
    """A list with one object per picture; ``truth`` is null where it is not known."""
    records = [
        {"file": a.file, "class": a.guess, "probability": a.confidence, "truth": a.truth, "probabilities": a.probabilities} for a in answers
    ]
    return json.dumps(records, indent=1, ensure_ascii=False)
