"""The comparison as a table: rich for the terminal, Markdown, LaTeX, CSV and JSON records for everything else."""

from __future__ import annotations

import csv
import io
from typing import Any, NamedTuple

from metarun.comparison.groups import BLOCK, Group, short, text
from metarun.comparison.paired import Paired
from metarun.comparison.runs import EPISODES
from metarun.comparison.view import View, mean_of

LATEX = str.maketrans({
    "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "±": r"$\pm$", "–": "--", "−": "$-$", "Δ": r"$\Delta$",
})  # fmt: skip


DISPENSABLE = ("wall time", "parameters", "val ci95", "test ci95", "val", "Δ to best")  # on a narrow terminal, in this order


class Cell(NamedTuple):
    """One cell: what is read, what it is sorted by, and whether it is the best of its block."""

    text: str
    value: Any = None
    best: bool = False


class Column(NamedTuple):
    """A column's title and the line below it."""

    title: str
    note: str = ""
    numeric: bool = True


def title(view: View) -> str:
    """What all groups share."""
    values = [{member.block[i] for member in view.groups} for i in range(len(BLOCK))]
    forms = zip(("{}", "{}-way", "{}-shot", "{}"), values)
    shared = [form.format(*value) for form, value in forms if len(value) == 1 and value != {EPISODES}]
    return ": ".join(filter(None, [" and ".join(view.metrics()), " ".join(shared)]))


def caption(view: View) -> str:
    """How the numbers are to be read."""
    lines = [f"± std over {view.spread} (n-1); ci95 over episodes = 1.96 std/sqrt(n) of a run's episodes, mean over {view.spread}"]
    if view.versus:
        lines.append(
            "Δ to best: paired on identical test episodes, ± ci95 over episodes; * significant (no correction for many comparisons)"
        )
    for split in view.splits:
        if alike := sum(split in run.same_classes for run in view.runs):
            lines.append(f"{split} of {alike} run{'s' * (alike > 1)}: the same classes in every episode, ci95 does not say how others fare")
    if hidden := [short(name) for name in view.groups[0].key if name not in (*view.columns, "norm")]:
        lines.append(f"no column for what differs between data, way and shot alone (--csv has all): {', '.join(hidden)}")
    return "; ".join(lines)


def table(view: View) -> tuple[list[Column], list[list[Cell]]]:
    """Header and rows, as they are shown."""
    columns = [Column(short(name), "", numeric=False) for name in view.columns]
    several = len(view.metrics()) > 1
    columns += [Column("metric", "", numeric=False)] * several + [Column(view.spread)]
    for split in view.splits:
        columns += [Column(split, f"mean ± std over {view.spread}"), Column(f"{split} ci95", "over episodes")]
    columns += [Column("Δ to best", "± ci95 over episodes")] * bool(view.versus)
    columns += [Column("norm", "", numeric=False), Column("parameters"), Column("wall time")]
    rows = []
    for i, member in enumerate(view.groups):
        row = [Cell(text(member.key[name]), member.key[name]) for name in view.columns]
        row += [Cell(view.metric or member.metric)] * several
        row += [Cell(str(len(member.seeds if view.spread == "seeds" else member.runs)))]
        for split in view.splits:
            row += _numbers(view, member, split)
        if view.versus:
            row.append(_versus(view.versus.get(i), view.is_best(member, "test")))
        norms = ", ".join(sorted({run.summary["bn_mode"] for run in member.runs}))
        row += [Cell(norms), _parameters(member), Cell(duration(mean_of(member, "wall_s")), mean_of(member, "wall_s"))]
        rows.append(row)
    return columns, rows


def _numbers(view: View, member: Group, split: str) -> list[Cell]:
    statistic = member.statistic(split, view.metric)
    if statistic is None:
        return [Cell("–"), Cell("–")]
    if not statistic.known:
        return [Cell("nan"), Cell("–")]
    spread = "" if statistic.std is None else f" ± {number(statistic.std, statistic.mean)}"
    return [
        Cell(number(statistic.mean) + spread, statistic.mean, view.is_best(member, split)),
        # One episode says nothing of others.
        Cell("–") if statistic.episodes == statistic.runs else Cell(number(statistic.ci95, statistic.mean), statistic.ci95),
    ]


def _versus(paired: Paired | None, is_best: bool) -> Cell:
    if is_best:
        return Cell("best", 0.0)
    if paired is None:
        return Cell("–")
    return Cell(f"{signed(paired)}{' *' * paired.significant}", paired.difference)


def _parameters(member: Group) -> Cell:
    counts = sorted({run.summary["parameters"] for run in member.runs})
    return Cell("–".join(f"{count:,}" for count in dict.fromkeys([counts[0], counts[-1]])), counts[0])


def number(value: float, like: float | None = None) -> str:
    """Four decimals, or three significant digits where those say nothing; a spread takes the form of its mean (``like``)."""
    size = abs(value if like is None else like)
    return f"{value:.4f}" if size == 0 or 1e-3 <= size < 1e4 else f"{value:.3g}"


def signed(paired: Paired) -> str:
    """The difference with its sign, a real minus, and its interval."""
    like = max(abs(paired.difference), paired.ci95)
    return f"{'−' if paired.difference < 0 else '+'}{number(abs(paired.difference), like)} ± {number(paired.ci95, like)}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def cross_validations(view: View) -> list[str]:
    """For every group that is tested on several divisions of the classes, what they have in common, in one line."""
    lines = []
    for member in view.groups if view.spread == "divisions" else ():
        statistic = member.statistic(view.by, view.metric)
        if statistic is None or statistic.std is None:  # of one division, or of one that diverged
            continue
        name = view.metric or member.metric
        means = [run.statistics[view.by][name]["mean"] for run in member.runs if name in run.statistics[view.by]]
        others = [f"{short(key)} {text(member.key[key])}" for key in view.columns if key != "algo"]
        who = ", ".join([str(member.runs[0].values["algo"]), *others])
        lines.append(
            f"{who}: {view.by} {name} {number(statistic.mean)} over {statistic.runs} divisions of the classes, "
            f"std {number(statistic.std)}, from {number(min(means))} to {number(max(means))}"
        )
    return lines


def describe(paired: Paired, first: str, second: str) -> str:
    """A paired comparison in one line."""
    sense = "" if paired.higher_is_better else f" (lower {paired.metric} is better)"
    verdict = {"+": f"{first} is better", "-": f"{first} is worse", "=": "no significant difference"}[paired.sign]
    reason = "the interval excludes 0" if paired.significant else "the interval includes 0"
    return (f"{first} − {second}: {paired.metric} {signed(paired)} (ci95 over {paired.n} identical test "
            f"episodes); {verdict}{sense}, {reason}")  # fmt: skip


def print_rich(view: View) -> None:
    """The table on stdout; on a narrow terminal without its last columns, and it says so."""
    from rich.console import Console
    from rich.measure import Measurement

    out = Console(highlight=False)
    if not out.is_terminal:
        out.width = 1000  # a file or a pipe has no margin to fold at

    def drawn(dropped: list[str]) -> Any:
        return _rich(view, dropped, out.is_terminal)

    def fits(dropped: list[str]) -> bool:
        return Measurement.get(out, out.options.update(max_width=1000), drawn(dropped)).maximum <= out.width

    dropped: list[str] = []
    for name in DISPENSABLE:
        if fits(dropped):
            break
        if name != view.by:
            dropped.append(name)
    for name in dropped[::-1]:  # a narrow column that went before a wide one may have its place back
        if fits(fewer := [other for other in dropped if other != name]):
            dropped = fewer
    out.print(drawn(dropped))
    out.print(caption(view), markup=False, soft_wrap=True)
    for line in cross_validations(view):
        out.print(line, markup=False, soft_wrap=True)
    if dropped:
        out.print(f"too narrow a terminal for {', '.join(dropped)}: see them with --csv or --markdown", markup=False, soft_wrap=True)


def _rich(view: View, dropped: list[str], compact: bool) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    columns, rows = table(view)
    kept = [i for i, column in enumerate(columns) if column.title not in dropped]
    padding = (0, 1, 0, 0) if dropped else (0, 1)
    drawn = Table(title=Text(title(view), "bold"), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, padding=padding)
    for column in (columns[i] for i in kept):
        note = column.note.replace(" over ", "\nover ") if compact else column.note
        header = Text("\n".join(filter(None, [column.title, note])))
        drawn.add_column(
            header, justify="right" if column.numeric else "left", no_wrap=len(dropped) < len(DISPENSABLE) - 1, overflow="fold"
        )
    for i, row in enumerate(rows):
        drawn.add_row(*(Text(row[k].text, "bold green" if row[k].best else "") for k in kept))
        if i + 1 < len(rows) and view.groups[i].block != view.groups[i + 1].block and len(rows) > 2:
            drawn.add_section()
    return drawn


def markdown(view: View) -> str:
    """A Markdown table."""
    columns, rows = table(view)
    lines = [
        [_escape(" ".join(filter(None, [column.title, column.note]))) for column in columns],
        ["---:" if column.numeric else "---" for column in columns],
        *([f"**{_escape(cell.text)}**" if cell.best else _escape(cell.text) for cell in row] for row in rows),
    ]
    return "\n".join([*("| " + " | ".join(line) + " |" for line in lines), "", caption(view), ""])


def _escape(value: str) -> str:
    value = value.replace("&", "&amp;").replace("<", "&lt;")  # a name is no HTML
    return value.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("\n", " ")


def latex(view: View) -> str:
    """A booktabs tabular."""
    columns, rows = table(view)
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{tabular}{" + "".join("r" if column.numeric else "l" for column in columns) + "}",
        "\\toprule",
        " & ".join(column.title.translate(LATEX) for column in columns) + r" \\",
        " & ".join(rf"\scriptsize {column.note.translate(LATEX)}" if column.note else "" for column in columns) + r" \\",
        "\\midrule",
    ]
    for i, row in enumerate(rows):
        cells = [cell.text.translate(LATEX) for cell in row]
        if cells[0].startswith("["):  # booktabs would take it for a length
            cells[0] = "{}" + cells[0]
        lines.append(" & ".join(rf"\textbf{{{word}}}" if cell.best else word for word, cell in zip(cells, row)) + r" \\")
        if i + 1 < len(rows) and view.groups[i].block != view.groups[i + 1].block:
            lines.append("\\midrule")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", "% " + caption(view), ""])


def records(view: View) -> list[dict[str, Any]]:
    """One flat object a group, numbers in full precision."""
    found = []
    for i, member in enumerate(view.groups):
        record: dict[str, Any] = {**member.key, **{name: member.runs[0].values[name] for name in BLOCK}}
        record |= {"metric": view.metric or member.metric, "runs": len(member.runs), "seeds": " ".join(map(str, member.seeds))}
        for split in view.splits:
            statistic = member.statistic(split, view.metric)
            known = statistic if statistic and statistic.known else None
            record[f"{split}_mean"] = known and known.mean
            record[f"{split}_std_over_{view.spread}"] = known and known.std
            record[f"{split}_ci95_over_episodes"] = known and known.ci95
            record[f"{split}_best"] = view.is_best(member, split)
        if view.versus:
            paired = view.versus.get(i)
            record["difference_to_best"] = paired and paired.difference
            record["difference_to_best_ci95_over_episodes"] = paired and paired.ci95
            record["difference_to_best_significant"] = paired and paired.significant
        record["norm"] = ", ".join(sorted({run.summary["bn_mode"] for run in member.runs}))
        found.append(record | {"parameters": mean_of(member, "parameters"), "wall_s": mean_of(member, "wall_s")})
    return found


def comma_separated(view: View) -> str:
    """The records as CSV."""
    rows = records(view)
    handle = io.StringIO()
    writer = csv.DictWriter(handle, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return handle.getvalue()
