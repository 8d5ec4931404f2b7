"""What a finished run says on stdout: a table for people.
Accuracies are fractions, and every ± is 1.96 standard errors over episodes, as the table says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from metarun.comparison.runs import OVER
from metarun.protocols import active, calibration, continual, generalized, presentations, readings, retrieval, rivals, unknown, weights
from metarun.protocols.verification import MEASURES
from metarun.storage.foreign import printable
from metarun.storage.run_folder import outputs_root, relative

# Further tables of a run: what is said above one, and the scores in it; the summary has them all.
BESIDE = {
    "same class or not, over the pairs of query and class of all episodes": MEASURES,
    "how sure, over the answers of all episodes": calibration.SHOWN,
    "what training examples were worth: are the corrupt ones told by their weight?": weights.MEASURES,
    "from a class to images: mean average precision, and precision among the first": retrieval.OF_IMAGES,
    "from an image to classes": retrieval.OF_CLASSES,
    "classes seen and unseen in training together: harmonic mean, accuracies": generalized.MEASURES[:3],
    "and for all penalties of the seen ones": generalized.MEASURES[5:],
    "one task after the other": continual.MEASURES,
    "several readings of the same examples: how far samples are from the truth": (
        readings.BEST,
        readings.ONE,
        readings.MEAN,
        readings.FARTHER,
    ),
    "with labels that the learner asked for, and with labels at random": (active.CHOSEN, active.AT_RANDOM, active.GAIN),
    "of no class? queries of classes that are not in the support": unknown.MEASURES,
}


def show(summary: dict[str, Any], folder: Path, splits: tuple[str, ...] = ("val", "test")) -> None:
    """One run's summary: results on ``splits``, adaptation curve, how they came about, and where everything lies."""
    out = _console()
    out.print(f"\n [bold]{summary['algo']}[/] on [bold]{summary['data']}[/], {summary['task']}, seed {summary['seed']}")
    found = {**(summary["val"] or {}), **(summary["test"] or {})}
    presented = [name for name in found if name.startswith(presentations.AT)]
    at_once = [name for name in found if name.startswith(continual.AT_ONCE)]
    beaten = [name for name in found if name.startswith(rivals.OF)]
    beside = {name for names in BESIDE.values() for name in names}
    elsewhere = beside | {*calibration.NAMES, *generalized.MEASURES, *presented, *at_once, *beaten, "curve"}
    first = [name for name in found if name not in elsewhere]
    if first or summary["metric"] not in beside:
        out.print(_results(summary, splits, first or [summary["metric"]]), end="")
    for words, names in BESIDE.items():
        if measured := [name for name in names if name in found]:
            out.print(f" {words}")
            out.print(_results(summary, splits, measured), end="")
    if presented:
        out.print(_presentations(summary["test"] or summary["val"], presented), end="")
    if beaten:
        out.print(" rivals, each with the best of its rates on development tasks; and how far it is from the first row, episode by episode")
        out.print(_rivals(summary["test"] or summary["val"], beaten), end="")
    out.print(" mean ± 95 % (1.96 standard errors) over episodes", style="dim")
    for split in (name for name in splits if name in summary["same_classes"]):
        out.print(f" {split}: the same {summary['way']} classes in every episode; ± does not say how others would fare", style="dim")
    out.print()
    curve = (summary["test"] or {}).get("curve", [])
    if len(curve) > 1:
        over = next((OVER[name][0] for name in summary.get("protocol", []) if name in OVER), "inner step")
        out.print(Padding(_curve(curve, over), (0, 0, 0, 1)))
        out.print()
    if suspects := summary.get("suspects"):
        out.print(_suspects(suspects), end="")
        out.print(f" all files: {relative(folder / 'weights.csv')}, pictures: {relative(folder / 'suspects.png')}\n", soft_wrap=True)
    norm = {"batch": "norm batch (transductive)", "none": "no norm (inductive)"}
    show_found(summary.get("found", {}))
    facts = [
        norm.get(summary["bn_mode"], f"norm {summary['bn_mode']} (inductive)"),
        f"best at iteration {summary['best_step']:,} of {summary['iterations']:,}",
        f"{summary['parameters']:,} parameters",
        f"{summary['wall_s']:.0f} s"
        + (f", {summary['tasks_per_s']:,.0f} training tasks/s" if summary["tasks_per_s"] else "")
        + f", {summary['peak_memory_mb']:,.0f} MB at most",
    ]
    out.print(f" {facts[0]}   {facts[1]}\n {facts[2]}   {facts[3]}", style="dim")
    out.print(f"\n run folder   {relative(folder)}", soft_wrap=True)
    if (folder / "tb").is_dir():
        out.print(f" TensorBoard  tensorboard --logdir {relative(outputs_root(folder))}", soft_wrap=True)
    out.print()


def show_found(found: dict[str, Any]) -> None:
    """What a method has found that people can read, see ``Algorithm.found``."""
    out, plain = _console(), []
    for name, value in found.items():
        if isinstance(value, dict):
            out.print(_rows(name, value), end="")
            out.print()
        elif isinstance(value, list):
            out.print(*(f" {escape(line)}" for line in value), sep="\n", soft_wrap=True)
            out.print()
        else:
            plain.append(f"{name} {value}")
    if plain:
        out.print(f" found: {', '.join(plain)}\n", soft_wrap=True)


def _rows(name: str, rows: dict[str, dict[str, float]]) -> Table:
    """A table with a row for each name, and a column for each of its numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column(name)
    for column in next(iter(rows.values()), {}):
        table.add_column(column, justify="right")
    for row, numbers in rows.items():
        table.add_row(row, *(f"{number:.3g}" for number in numbers.values()))
    return table


def _console() -> Console:
    """stdout as wide as the terminal; off one, wide enough for every table."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 100)


def _results(summary: dict[str, Any], splits: tuple[str, ...], metrics: list[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("split")
    for metric in metrics:
        table.add_column(metric, justify="right")
    table.add_column("episodes", justify="right")
    for split in splits:
        result = summary[split]
        if result:
            style = "bold" if split == "test" else ""
            table.add_row(split, *(_mean_ci(result.get(metric)) for metric in metrics), str(next(iter(result.values()))["n"]), style=style)
    score = summary["metric"]
    bounds = summary["bounds"] if "test" in splits and score in metrics else {}
    for name, found in bounds.items():
        table.add_row(name, *(_mean_ci(found if metric == score else None) for metric in metrics), str(found["n"]), style="dim")
    return table


def _presentations(result: dict[str, Any], names: list[str]) -> Table:
    """How often the answer is right at the 1st, 2nd … presentation of a class."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("presentation", justify="right")
    table.add_column("accuracy", justify="right")
    for name in names:
        table.add_row(name.removeprefix(presentations.AT), _mean_ci(result[name]))
    return table


def _rivals(result: dict[str, Any], names: list[str]) -> Table:
    """Methods of old on the same episodes."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for column in ("rival", "rate", "score", "difference"):
        table.add_column(column, justify="left" if column == "rival" else "right")
    for name in names:
        apart = {"mean": result[name]["difference"], "ci95": result[name]["difference_ci95"]}
        table.add_row(name.removeprefix(rivals.OF), f"{result[name]['rate']:g}", _mean_ci(result[name]), _mean_ci(apart))
    return table


def _suspects(suspects: list[dict[str, Any]]) -> Table:
    """The files of the user's folder that fit their class the least, which may be mislabelled."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in ("most suspicious file", "class", "looks like"):
        table.add_column(name, overflow="fold")
    for name in ("fits", "weight"):
        table.add_column(name, justify="right")
    for one in suspects:
        told = (escape(printable(one[name])) for name in ("file", "class", "looks_like"))
        table.add_row(*told, *(_number(one[name]) for name in ("fits", "weight")))
    return table


def _curve(curve: list[dict[str, Any]], over: str) -> Table:
    """The adaptation curve, over inner steps or what else; a long one is thinned to about seven points, which fit 80 columns."""
    stride = -(-(len(curve) - 1) // 6)
    shown = [point for i, point in enumerate(curve) if i % stride == 0 or point is curve[-1]]
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column(over, style="bold")
    for point in shown:
        table.add_column(str(point["step"]), justify="right")
    table.add_row("test mean", *(_number(point["mean"]) for point in shown))
    for name in curve[0].get("rivals", {}):
        table.add_row(name, *(_number(point["rivals"][name]["mean"]) for point in shown))
    return table


def _mean_ci(value: dict[str, Any] | None) -> str:
    if not value:
        return "–"
    spread = "" if value.get("n") == 1 else f" ± {_number(value['ci95'])}"  # one episode says nothing of others
    return f"{_number(value['mean'])}{spread}"


def _number(value: float | None) -> str:
    """Four decimals; null is what a summary has for a loss that diverged."""
    return "nan" if value is None else f"{value:.4f}"
