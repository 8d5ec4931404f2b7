"""``metarun predict``: answer after adapting a trained run to examples of anybody's, files in classes or rows of a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metarun.errors import UserError
from metarun.predict import files, rows
from metarun.predict.options import Options
from metarun.predict.report import targets
from metarun.predict.trained import load
from metarun.storage.foreign import refuse_links


def predict(options: Options) -> dict[str, Any]:
    """Adapt, answer, write, and tell on stdout; returns the result for ``--json``.

    Raises:
        UserError, RunError: whatever is wrong with the support or the queries; see also ``trained.load`` and ``Model.adapt``.
    """
    table, sheet = targets(options.out, options.format, options.sheet, Path(options.run) / "predict")
    model = load(options.run, options.checkpoint)
    refuse_links(Path(options.run))  # the table goes there
    if model.form:
        if options.sheet:
            raise UserError(f"--sheet draws pictures, and {options.run} (data={model.data}) reads rows of numbers: leave it out")
        return rows.predict(model, model.form, options, table)
    if options.target:
        raise UserError(f"--target names a column of a table, and {options.run} (data={model.data}) reads none: leave it out")
    return files.predict(model, options, table, sheet)
