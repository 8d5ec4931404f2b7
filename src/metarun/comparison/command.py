"""`metarun compare RUN…`: the table over seeds, paired comparisons, plots and a report, from run folders alone.
Reads config.yaml, summary.json and test_scores.npy (metrics.jsonl for plots); imports neither torch nor pydantic."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metarun.comparison import tables
from metarun.comparison.paired import Paired, UnpairedError, pair
from metarun.comparison.runs import Found, collect, shown
from metarun.comparison.view import View, view
from metarun.errors import UserError, nearest
from metarun.tracking.console import console

USAGE = """\
metarun compare RUN…      RUN: a run's folder, a folder of runs (outputs, a sweep; searched to the bottom) or a glob

  --metric NAME           accuracy, mse, loss, … (default: accuracy, or mse for regression)
  --split val|test        show and rank by this split alone
  --group-by KEY[,KEY]    average over everything but these keys (default: over seeds alone)
  --sort KEY              val, test, seeds, parameters, wall or any config key; -KEY turns the order round
  --paired A B            compare A with B episode by episode (each a run, a folder of runs or a glob)
  --markdown | --csv | --latex    the table in this form, on stdout
  --report                plots as PNG and a self-contained report.html, in the runs' common folder under compare/
  --out DIR               the same, in DIR
  --json                  the last line of stdout is the comparison as one JSON object"""
ARGUMENTS = {"--metric": 1, "--split": 1, "--group-by": 1, "--sort": 1, "--paired": 2, "--out": 1,
             "--markdown": 0, "--csv": 0, "--latex": 0, "--report": 0, "--help": 0}  # fmt: skip
FORMS = {"--markdown": tables.markdown, "--csv": tables.comma_separated, "--latex": tables.latex}


@dataclass
class Options:
    """The command line of compare, taken apart."""

    runs: list[str] = field(default_factory=list)
    given: dict[str, list[str]] = field(default_factory=dict)  # option -> its values

    def value(self, name: str) -> str | None:
        """The value of an option that takes one."""
        return self.given[name][0] if name in self.given else None


def command(words: list[str]) -> dict[str, Any]:
    """Compare runs; prints the table and returns it as a JSON-able object.

    Args:
        words: what follows ``metarun compare``; see ``USAGE``.

    Raises:
        UserError: a wrong option, metric or key, no valid run, or two runs that cannot be paired.
    """
    options = parse(words)
    if "--help" in options.given:
        print(USAGE)
        return {}
    pairing = [collect([word]) for word in options.given.get("--paired", [])]
    inputs = [*options.runs, *(word for word in options.given.get("--paired", []) if word not in options.runs)]
    found = collect(inputs)
    _tell(found)
    keys = (options.value("--group-by") or "").split(",")
    shape = view(found.runs, options.value("--metric"), options.value("--split"), [key for key in keys if key], options.value("--sort"))
    if len(shape.runs) < len(found.runs):
        _note(f"{len(found.runs) - len(shape.runs)} runs left out: repetitions of a config and seed, of which the latest counts")
    verdict, paired = _paired(pairing, found, shape, options)
    _print(shape, options)
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


def parse(words: list[str]) -> Options:
    """Split words into runs and options; ``--option value`` and ``--option=value`` mean the same.

    Raises:
        UserError: an unknown option, a missing value, a value too many.
    """
    options, rest = Options(), list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        name = "--help" if name == "-h" else name
        if not name.startswith("-"):
            options.runs.append(word)
            continue
        if name not in ARGUMENTS:
            raise UserError(f"compare has no option '{name}'{nearest(name, ARGUMENTS)} (metarun compare --help lists them)")
        values = [value] if equals else []
        while len(values) < ARGUMENTS[name] and rest:
            values.append(rest.pop(0))
        if len(values) != ARGUMENTS[name] or "" in values or any(value.startswith("--") for value in values):
            wanted = ("no value", "a value", "two runs")[ARGUMENTS[name]]
            raise UserError(f"{name} takes {wanted} (metarun compare --help says which)")
        options.given[name] = values
    forms = [name for name in FORMS if name in options.given]
    if len(forms) > 1:
        raise UserError(f"choose one of {' and '.join(forms)}")
    return options


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
        _note(f"{len(found.unfinished)} unfinished run{'s' * (len(found.unfinished) > 1)} left out (no summary.json): {names}")


def _print(shape: View, options: Options) -> None:
    form = next((name for name in FORMS if name in options.given), None)
    if form:
        print(FORMS[form](shape), end="")
    else:
        tables.print_rich(shape)


def _paired(pairing: list[Found], found: Found, shape: View, options: Options) -> tuple[str | None, dict[str, Any] | None]:
    """The paired comparison that --paired asks for, or that two runs call for by themselves."""
    if not pairing and (len(found.runs) != 2 or len(shape.groups) != 2):  # two seeds of one group are no rivals
        return None, None
    first, second = [side.runs for side in pairing] if pairing else [[run] for run in found.runs]
    words = options.given.get("--paired", ["", ""])
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
    chosen = options.value("--out")
    if chosen is None and "--report" not in options.given:
        return []
    from metarun.comparison import report

    folder = Path(chosen) if chosen else _common([run.folder for run in shape.runs]) / "compare"
    if not chosen and (links := [path for path in (folder, *folder.glob("*")) if path.is_symlink()]):
        raise UserError(f"{shown(links[0])} is a link, which metarun never makes: delete it, or name a folder with --out DIR")
    files = report.write(shape, found, verdict, folder)
    _note(f"report: {shown(files[0])} ({len(files) - 1} plots beside it)")
    return files
