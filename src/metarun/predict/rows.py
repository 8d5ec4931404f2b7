"""``metarun predict`` on tables: after the labelled rows of one table, the class of the rows of another is told, or numbers are.
Columns go by their names; which of them are read, and which are to be told, the run's data say (``TableForm``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metarun.data.base import TableForm
from metarun.data.leakage import digest, refuse_shared
from metarun.data.numbers import number, refuse_unnamed
from metarun.data.records import ENDINGS, records
from metarun.errors import UserError, nearest
from metarun.predict import report
from metarun.predict.conclusion import conclude, limit
from metarun.predict.destination import Destination
from metarun.predict.estimates import Estimates
from metarun.predict.options import Options
from metarun.predict.queries import NOTHING, told
from metarun.predict.report import LINE, Outcome, warn_of
from metarun.predict.trained import Model


class Rows(NamedTuple):
    """The lines of tables, in order."""

    names: list[str]  # the number of a line, from 1; of several tables after the file's name
    places: list[str]  # the same for messages
    x: np.ndarray  # [n, inputs] float64
    said: list[tuple[str, ...]]  # what stands in the columns that are to be told; "": nothing


def predict(model: Model, form: TableForm, options: Options, to: Destination) -> dict[str, Any]:
    """As ``prediction.predict``; answers go to ``to``.

    Raises:
        UserError: a file or a column is missing, a cell is no number, or there are more columns or classes than the run takes.
    """
    targets = form.targets if options.target is None else (options.target,)
    if len(targets) != len(form.targets):
        raise UserError(f"--target {options.target} is not possible: {options.run} tells {', '.join(form.targets)}; leave it out")
    if form.inputs and options.target in form.inputs:
        raise UserError(f"--target {options.target} is not possible: {options.run} reads that column; name another, or leave it out")
    support, query = _read_both(model, form, options, targets)
    known = {digest(row): place for row, place in zip(support.x, support.places)}
    copies = [(known[mark], place) for row, place in zip(query.x, query.places) if (mark := digest(row)) in known]
    answer = _classify if model.algorithm.problem.kind.labelled else _estimate
    return answer(model, options, targets, support, query, copies, to)


def _classify(
    model: Model, options: Options, targets: Sequence[str], support: Rows, query: Rows, copies: Sequence[tuple[str, str]], to: Destination
) -> dict[str, Any]:
    labels = [label for (label,) in support.said]
    refuse_shared({options.support: Counter(labels)})
    fitted = model.adapt(support.x, labels, options.steps)
    least = limit(options, fitted)
    probabilities, scores = fitted.probabilities(query.x), fitted.belonging(query.x) if least else None
    queries = [(name, label) for name, (label,) in zip(query.names, query.said)]
    answers = told(fitted.classes, queries, probabilities, scores, least and least[0], [NOTHING] * len(queries))
    outcome = Outcome(answers, fitted.classes, "rows", "whose class is known", f"whose {targets[0]} is no class of the support", LINE)
    if options.export:
        fitted.export(options.export)
    words, result = conclude(options, fitted, least, dict(Counter(labels)), outcome, copies)
    words |= {"predictions": str(to.table)} | outcome.save(to, f"{model.algo}: answers by truth")
    report.tell(words, outcome.confusion)
    return result | {"rows": len(answers), "predictions": str(to.table)}


def _estimate(
    model: Model, options: Options, targets: Sequence[str], support: Rows, query: Rows, copies: Sequence[tuple[str, str]], to: Destination
) -> dict[str, Any]:
    if options.reject is not None:
        raise UserError(f"--reject is for classes, and {options.run} (data={model.data}) tells numbers: leave it out")
    y, truth = _numbers(support, targets), _numbers(query, targets)
    fitted = model.adapt(support.x, y, options.steps)
    found, deviations = fitted.regress(query.x)
    made = Estimates(
        query.names, targets, found.double().numpy(), None if deviations is None else deviations.double().numpy(), truth, y.mean(0)
    )
    if options.export:
        fitted.export(options.export)
    to.write(made.csv() if to.table.suffix == ".csv" else made.json())
    warn_of(copies, len(query.names), "rows")
    rmse, trivial, inside = made.rmse(made.found), made.rmse(made.trivial), made.inside()
    words = {
        "learner": f"{model.algo} trained on {model.data}, adapted to {len(y)} rows",
        "rows": f"{len(query.names)} answered",
        **{
            f"rmse {name}": f"{rmse[name]:.4g} on {count} rows; of the support's mean {trivial[name]:.4g}"
            for name, count in made.known().items()
        },
        "intervals": _intervals(model, deviations is not None, inside),
        "norm": "batch (transductive): rows are normalised together, so an answer depends on the others" if fitted.transductive else "",
        "predictions": str(to.table),
        "export": options.export or "",
    }
    report.tell(words)
    result = {"run": options.run, "targets": list(targets), "support": len(y), "rows": len(query.names), "in_support": len(copies)}
    result |= {"transductive": fitted.transductive, "rmse": rmse, "rmse_of_mean": trivial, "inside": inside}
    return result | {"predictions": str(to.table), "export": options.export}


def _intervals(model: Model, there: bool, inside: float | None) -> str:
    if not there:
        return f"none: algo={model.algo} does not know how sure it is; a method such as algo=alpaca does"
    return "95 %" if inside is None else f"95 %; they hold {inside:.4f} of the known numbers"


def _read_both(model: Model, form: TableForm, options: Options, targets: Sequence[str]) -> tuple[Rows, Rows]:
    """The rows of the support and of the queries, as wide as the learner's input."""
    lines, width = _lines("--support", [options.support]), model.algorithm.problem.input_shape[0]
    _, _, first = lines[0]
    for target in targets:
        if target not in first:
            raise UserError(f"{options.support} has no column {target}{nearest(target, first)}: name the one to be told by --target COLUMN")
    inputs = form.inputs or tuple(column for column in first if column not in targets)
    refuse_unnamed(options.support, inputs)
    if not inputs:
        raise UserError(f"{options.support} has no column of numbers beside {' and '.join(targets)}")
    if len(inputs) > width:
        raise UserError(
            f"{options.support} has {len(inputs)} columns beside {targets[0]}, and {options.run} reads {width} at most: "
            f"leave some out, or train with data.columns={len(inputs)}"
        )
    support = _rows(lines, inputs, targets, width, f"{options.run} was trained with it")
    for place, said in zip(support.places, support.said):
        for target, cell in zip(targets, said):
            if not cell:
                raise UserError(f"{place} has nothing in the column {target}: fill it in, or remove the line")
    return support, _rows(_lines("--query", options.query), inputs, targets, width, f"{options.support} has it")


Line = tuple[str, str, dict[str, Any]]  # its name, where it is, for messages, and its cells by column


def _lines(option: str, places: Sequence[str]) -> list[Line]:
    """Of one or several tables."""
    found: list[Line] = []
    for place in places:
        path = Path(place)
        if not path.is_file() or path.suffix.lower() not in ENDINGS:
            wrong = "is no table by its name" if path.is_file() else "is a folder" if path.is_dir() else "does not exist"
            raise UserError(f"{option} {place} {wrong}: this run reads rows of numbers; give a table ({', '.join(ENDINGS)})")
        before, start = f"{place}:" if len(places) > 1 else "", len(found)
        for line, record in records(place, path.read_bytes(), (), '{"x1": 0.5, "label": "…"}'):
            where = f"{place} line {line}"
            if not isinstance(record, dict):
                raise UserError(f'{where} is no object; write it as {{"x1": 0.5}}')
            found.append((f"{before}{line}", where, record))
        if len(found) == start:
            raise UserError(f"{place} has no rows below the line that names the columns")
    return found


def _rows(lines: Sequence[Line], inputs: Sequence[str], targets: Sequence[str], width: int, why: str) -> Rows:
    """Numbers of the columns ``inputs``, zeros beyond them up to ``width``; ``why`` these have to be there."""
    x = np.zeros((len(lines), width))
    for row, (_, where, record) in zip(x, lines):
        for i, column in enumerate(inputs):
            if column not in record:
                raise UserError(f"{where} has no column {column}{nearest(column, record)}: it has to, since {why}")
            row[i] = number(record, column, where)
    said = [tuple("" if (cell := record.get(target)) is None else str(cell).strip() for target in targets) for _, _, record in lines]
    return Rows([name for name, _, _ in lines], [where for _, where, _ in lines], x, said)


def _numbers(rows: Rows, targets: Sequence[str]) -> np.ndarray:
    """What is said of rows, [n, targets] float64; NaN where nothing is."""
    return np.array(
        [
            [number({target: cell}, target, place) if cell else np.nan for target, cell in zip(targets, said)]
            for place, said in zip(rows.places, rows.said)
        ]
    )
