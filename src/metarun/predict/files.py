"""``metarun predict`` on files: pictures, recordings or texts are told apart by class folders of others, or by a table of labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from metarun.data.picture import tell
from metarun.predict import report
from metarun.predict.conclusion import conclude, limit
from metarun.predict.contact_sheet import draw
from metarun.predict.destination import Destination
from metarun.predict.options import Options
from metarun.predict.queries import answered, asked, labelled, none_readable, paths
from metarun.predict.report import Outcome
from metarun.predict.trained import Model, file_reader

log = logging.getLogger(__name__)


def predict(model: Model, options: Options, to: Destination) -> dict[str, Any]:
    """As ``prediction.predict``."""
    reader = file_reader(model, options.run)
    support, shots, broken = labelled(options.support, reader)
    files, passed = asked(options.query, reader)
    to.spare(paths(support, files))
    fitted = model.adapt(np.stack([picture.image for picture in support]), [picture.folder for picture in support], options.steps)
    least = limit(options, fitted)

    def ask(images: Sequence[np.ndarray]) -> tuple[Tensor, Tensor | None]:
        x = np.stack(images)
        return fitted.probabilities(x), fitted.belonging(x) if least else None

    done = answered(files, reader, support, fitted.classes, ask, least and least[0], together=fitted.transductive)
    passed |= done.passed
    tell(log, broken | passed)
    if not done.answers:
        raise none_readable(options.query, reader, passed)
    outcome = Outcome(done.answers, fitted.classes, f"{reader.noun}s")
    if options.export:
        fitted.export(options.export)
    told, result = conclude(options, fitted, least, shots, outcome, done.copies, ([*broken], [*passed]))
    told |= {"predictions": str(to.table), "sheet": str(to.sheet or "")} | outcome.save(to, f"{model.algo}: answers by truth")
    if to.sheet:
        lines = [told["learner"], *(f"{name} {told[name]}" for name in ("accuracy", "norm") if told[name])]
        draw(to.sheet, lines, [(picture.folder, picture.image) for picture in support], done.answers, reader.noun, reader.wording)
    report.tell(told, outcome.confusion)
    return result | {"pictures": len(done.answers), "predictions": str(to.table), "sheet": to.sheet and str(to.sheet)}
