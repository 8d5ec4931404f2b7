"""What the answers of an adapted run come to, whether it was asked about files or about rows of a table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from metarun.errors import UserError
from metarun.predict.options import Options
from metarun.predict.report import Outcome, warn_of
from metarun.predict.trained import Fitted
from metarun.protocols.belonging import UNKNOWN

log = logging.getLogger(__name__)
Limit = tuple[float, float] | None  # the least belonging, and the share of members that is lost with it; None: nothing is rejected


def limit(options: Options, fitted: Fitted) -> Limit:
    """What ``--reject`` comes to.

    Raises:
        UserError: a class is called like the answer where none fits; see also ``Fitted.threshold``.
    """
    if options.reject is None:
        return None
    if UNKNOWN in fitted.classes:
        raise UserError(f"--reject answers '{UNKNOWN}', and a class of {options.support} has that name: give it another")
    return fitted.threshold(options.reject)


def conclude(
    options: Options,
    fitted: Fitted,
    least: Limit,
    shots: dict[str, int],
    outcome: Outcome,
    copies: Sequence[tuple[str, str]],
    skipped: tuple[Sequence[str], Sequence[str]] = ((), ()),
) -> tuple[dict[str, str], dict[str, Any]]:
    """In words by what they are about, and as JSON has it; ``skipped`` of the support and of the queries."""
    model, noun, few, many = fitted.model, outcome.noun, min(shots.values()), max(shots.values())
    each, of_queries = f"{few if few == many else f'{few} to {many}'} {noun} each", len(skipped[1])
    warn_of(copies, len(outcome.answers), noun)
    told = {
        "learner": f"{model.algo} trained on {model.data}, adapted to {len(shots)} classes with {each}",
        noun: f"{len(outcome.answers)} classified" + (f", {of_queries} passed over" if of_queries else ""),
        "temperature": f"{model.temperature:.3g}, fitted on development tasks" if model.temperature != 1 else "",
        **outcome.told(),
        "norm": f"batch (transductive): {noun} are normalised together, so an answer depends on the others" if fitted.transductive else "",
        "export": (options.export or "") + (" (normalises every batch by itself, too)" if options.export and fitted.transductive else ""),
    }
    result: dict[str, Any] = {
        "run": options.run,
        "classes": fitted.classes,
        "shots": shots,
        "skipped": [*skipped[0], *skipped[1]],
        "in_support": len(copies),
        "transductive": fitted.transductive,
        "temperature": model.temperature,
        "accuracy": outcome.accuracy,
        "of_no_class": dict(outcome.strays),
        "confusion": outcome.confusion and outcome.confusion.record(),
        "export": options.export,
    }
    if least is not None:
        rejected, lost, auroc = sum(answer.unknown for answer in outcome.answers), least[1], outcome.separation()
        apart = "" if auroc is None else f"; AUROC of those of a class against those of none {auroc:.4f}"
        told["rejected"] = f"{rejected} answered '{UNKNOWN}', with {lost:.3f} to be expected of {noun} that do belong{apart}"
        result |= {"rejected": rejected, "threshold": least[0], "expected_rate": lost, "auroc_unknown": auroc}
        rate = options.reject or 0
        if fitted.transductive:
            log.warning("net.norm=batch: --reject is calibrated on %s normalised with the support, and its rate will not hold", noun)
        elif lost > max(1.5 * rate, rate + 0.01):
            log.warning("--reject %g needs more %s in the support: with these no rate below %.3f can be told", rate, noun, lost)
    return told, result
