"""``metarun predict``: answer after adapting a trained run to examples of anybody's, files in classes or rows of a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metarun.errors import UserError
from metarun.predict import files, rows
from metarun.predict.destination import destination
from metarun.predict.options import Options
from metarun.predict.trained import load
from metarun.storage.foreign import refuse_links


def predict(options: Options) -> dict[str, Any]:
    """Adapt, answer, write, and tell on stdout; returns the result for ``--json``.

    Raises:
        UserError, RunError: whatever is wrong with the support or the queries; see also ``trained.load`` and ``Model.adapt``.
    """
    model = load(options.run, options.checkpoint)
    refuse_links(Path(options.run))  # the table goes there
    if model.form and options.sheet:
        raise UserError(f"--sheet draws pictures, and {options.run} (data={model.data}) reads rows of numbers: leave it out")
    if options.target and not model.form:
        raise UserError(f"--target names a column of a table, and {options.run} (data={model.data}) reads none: leave it out")
    kept, given = Path(options.run) / "predict", (options.support, *options.query)
    with destination(options.out, options.format, options.sheet, kept, given) as to:
        return rows.predict(model, model.form, options, to) if model.form else files.predict(model, options, to)
