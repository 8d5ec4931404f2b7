"""`metarun compare RUN…`: the table over seeds, paired comparisons, plots and a report, from run folders alone.
Reads config.yaml, summary.json and test_scores.npy (metrics.jsonl for plots); imports neither torch nor pydantic."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from metarun.comparison import tables
from metarun.comparison.keys import where
from metarun.comparison.paired import Paired, UnpairedError, pair
from metarun.comparison.runs import Found, collect, shown
from metarun.comparison.view import View, view
from metarun.errors import UserError
from metarun.tracking.console import console


class TableFormat(NamedTuple):
    """A form of the table for other programs."""

    title: str
    write: Callable[[View], str]


FORMS = {
    "markdown": TableFormat("Markdown", tables.markdown),
    "csv": TableFormat("comma-separated values", tables.comma_separated),
    "latex": TableFormat("LaTeX", tables.latex),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to compare, and how; ``metarun compare --help`` says what each means."""

    runs: list[str]
    metric: str | None = None
    split: str | None = None
    group_by: list[str] = field(default_factory=list)
    sort: str | None = None
    paired: list[str] = field(default_factory=list)  # two, or none
    where: list[str] = field(default_factory=list)  # KEY=VALUE or KEY!=VALUE, all of which hold
    form: str | None = None  # one of FORMS; None: the table for people
    report: bool = False
    out: str | None = None


def compare(options: Options) -> dict[str, Any]:
    """Compare runs; prints the table and returns it as a JSON-able object.

    Raises:
        UserError: a wrong metric or key, no valid run, or two runs that cannot be paired.
    """
    pairing = [collect([word]) for word in options.paired]
    found = collect([*options.runs, *(word for word in options.paired if word not in options.runs)])
    _tell(found)
    wanted = where(options.where, found.runs)
    for side in (found, *pairing):
        side.runs = [run for run in side.runs if wanted(run)]
    if empty := [word for word, side in zip(options.paired, pairing) if not side.runs]:
        raise UserError(f"--where leaves no run of {empty[0]}")
    shape = view(found.runs, options.metric, options.split, options.group_by, options.sort)
    if shape.repeated:
        _note(f"{_runs(shape.repeated)} left out: repetitions of a config and seed, of which the latest counts")
    if shape.unmeasured:
        _note(f"{_runs(shape.unmeasured)} left out: no {options.metric or 'result'} on {' or '.join(shape.splits)}")
    verdict, paired = _paired(pairing, found, shape, options)
    if options.form:
        print(FORMS[options.form].write(shape), end="")
    else:
        tables.print_rich(shape)
    if verdict:
        print(f"\n{verdict}")
    files = _report(shape, found, verdict, options)
    return {
        "metric": shape.metrics(),
        "spread": shape.spread,
        "runs": len(shape.runs),
        "groups": tables.records(shape),
        "paired": paired,
        "unfinished": [shown(path) for path in found.unfinished],
        "damaged": [{"run": shown(path), "reason": reason} for path, reason in found.damaged],
        "files": [str(path) for path in files],
    }


def _runs(n: int) -> str:
    return f"{n} run{'s' * (n > 1)}"


def _note(line: str) -> None:
    console.print(f"metarun: {line}", markup=False, soft_wrap=True)


def _tell(found: Found) -> None:
    """Name on stderr what could not be used, one line for each damaged run."""
    for line in found.notes:
        _note(line)
    for folder, reason in found.damaged:
        _note(f"damaged run left out: {shown(folder)}: {reason}")
    if found.unfinished:
        names = ", ".join(map(shown, found.unfinished))
        _note(f"{_runs(len(found.unfinished)).replace(' ', ' unfinished ')} left out (no summary.json): {names}")


def _paired(pairing: list[Found], found: Found, shape: View, options: Options) -> tuple[str | None, dict[str, Any] | None]:
    """The paired comparison that --paired asks for, or that two runs call for by themselves."""
    if not pairing and (len(found.runs) != 2 or len(shape.groups) != 2):  # two seeds of one group are no rivals
        return None, None
    first, second = [side.runs for side in pairing] if pairing else [[run] for run in found.runs]
    words = options.paired or ["", ""]
    names = [
        side[0].folder.resolve().name if len(side) == 1 else f"{word} ({len(side)} runs)" for side, word in zip((first, second), words)
    ]
    if names[0] == names[1]:
        names = [shown(side[0].folder) for side in (first, second)]
    try:
        result = pair(first, second)
    except UnpairedError as error:
        if pairing:
            raise UserError(f"{names[0]} and {names[1]} cannot be paired: {error}") from None
        _note(f"no paired comparison: {error}")
        return None, None
    return tables.describe(result, *names), _as_json(result, names)


def _common(folders: list[Path]) -> Path:
    return Path(os.path.commonpath([folder.resolve() for folder in folders]))


def _as_json(paired: Paired, names: list[str]) -> dict[str, Any]:
    return {"first": names[0], "second": names[1], **paired._asdict(), "significant": paired.significant, "sign": paired.sign}


def _report(shape: View, found: Found, verdict: str | None, options: Options) -> list[Path]:
    chosen = options.out
    if not (chosen or options.report):
        return []
    from metarun.comparison import report

    folder = Path(chosen) if chosen else _common([run.folder for run in shape.runs]) / "compare"
    if not chosen and (links := [path for path in (folder, *folder.glob("*")) if path.is_symlink()]):
        raise UserError(f"{shown(links[0])} is a link, which metarun never makes: delete it, or name a folder with --out DIR")
    files = report.write(shape, found, verdict, folder)
    _note(f"report: {shown(files[0])} ({len(files) - 1} plots beside it)")
    return files
