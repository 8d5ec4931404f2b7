"""``metarun classify``: pictures told apart by a few labelled ones without any training: features of a net that stays as it is, and the
head that does best on the labelled pictures, each left out in its turn. Queries are read and answered a block at a time."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from metarun.data.picture import tell
from metarun.errors import UserError
from metarun.predict import backbones, report
from metarun.predict.backbones import Backbone
from metarun.predict.classifier import ONE_EACH, Classifier, directions, learn
from metarun.predict.contact_sheet import draw
from metarun.predict.destination import Destination, Format, destination
from metarun.predict.expectation import Expected
from metarun.predict.queries import BLOCK, answered, asked, labelled, none_readable, paths
from metarun.predict.report import Outcome, warn_of
from metarun.protocols.belonging import UNKNOWN

log = logging.getLogger(__name__)
KEPT = Path("outputs/classify")  # has a folder for every call without --out
SHOWN = 12  # answers of which a line tells


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
    format: Format | None = None
    sheet: str | None = None


def classify(options: Options) -> dict[str, Any]:
    """Learn from the support, answer the queries, write, and tell on stdout; returns the result for ``--json``.

    Raises:
        UserError, RunError: whatever is wrong with folders or pictures; see also ``backbones``.
    """
    given = (options.support, *options.query)
    with destination(options.out, options.format, options.sheet, KEPT, given) as to:
        return _classify(options, given, to)


def _classify(options: Options, given: Sequence[str], to: Destination) -> dict[str, Any]:
    for place in given:
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

    def ask(images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return learned.answer(directions(backbone.features(images)))

    files, passed = asked(options.query, reader)
    to.spare(paths(support, files))
    done = answered(files, reader, support, learned.classes, ask, limit and limit[0])
    passed |= done.passed
    tell(log, broken | passed)
    if not done.answers:
        raise none_readable(options.query, reader, passed)
    outcome = Outcome(done.answers, learned.classes, f"{reader.noun}s")
    warn_of(done.copies, len(done.answers), outcome.noun)
    told, result = _found(options, backbone, learned, limit, shots, outcome, len(passed))
    told |= {"predictions": str(to.table), "sheet": str(to.sheet or "")} | outcome.save(to, "metarun classify: answers by truth")
    if to.sheet:
        lines = [
            f"classes: {told['classes']}; features: {backbone.name}",
            *(f"{key} {told[key]}" for key in ("head", "expected", "accuracy") if told[key]),
        ]
        draw(
            to.sheet, lines, [(picture.folder, picture.image) for picture in support], done.answers, reader.noun, reader.wording, named=True
        )
    report.tell(told, outcome.confusion)
    skipped = [*broken, *passed]
    return result | {"in_support": len(done.copies), "skipped": skipped, "predictions": str(to.table), "sheet": to.sheet and str(to.sheet)}


def _found(
    options: Options,
    backbone: Backbone,
    learned: Classifier,
    limit: tuple[float, float] | None,
    shots: dict[str, int],
    outcome: Outcome,
    passed: int,
) -> tuple[dict[str, str], dict[str, Any]]:
    """What was found: in words by what they are about, and as JSON has it."""
    noun, answers, classes = outcome.noun, outcome.answers, learned.classes
    expected, counts = learned.expected(), Counter(answer.guess for answer in answers)
    areas = {"belonging": outcome.separation(), "maximum_softmax": outcome.separation(lambda answer: answer.confidence)}
    few, many = min(shots.values()), max(shots.values())
    told = {
        "features": backbone.name,
        "classes": f"{len(classes)} with {few if few == many else f'{few} to {many}'} {noun} each",
        "head": learned.chosen(),
        "expected": _expected(expected, learned),
        noun[:12]: f"{len(answers)} classified" + (f", {passed} passed over" if passed else ""),
        "answers": ", ".join(f"{name} {n}" for name, n in counts.most_common(SHOWN)) + ", …" * (len(counts) > SHOWN),
        "rejected": _rejected(options.reject, limit, counts[UNKNOWN], noun),
        **outcome.told(),
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
        "answers": dict(counts),
        "rejected": counts[UNKNOWN] if limit else None,
        "threshold": limit and limit[0],
        "expected_rate": limit and limit[1],
        "accuracy": outcome.accuracy,
        "of_no_class": dict(outcome.strays),
        "auroc_unknown": areas["belonging"],
        "auroc_maximum_softmax": areas["maximum_softmax"],
        "confusion": outcome.confusion and outcome.confusion.record(),
    }
    return told, result


def _expected(found: Expected, learned: Classifier) -> str:
    if found.accuracy is None:
        return f"no estimate: {ONE_EACH} there is none to try it on"
    alone = len(learned.y) - found.n
    few = f"; of {alone} classes there is one picture, which cannot be tried" * bool(alone)
    how = f"{found.right} of {found.n} by nested {learned.tried.how}, carried on to the whole support"
    return f"accuracy {found.accuracy:.2f}, 95 % interval {found.low:.2f} to {found.high:.2f}: {how}{few}"


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
