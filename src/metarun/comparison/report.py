"""Writes a comparison into a folder: the plots as PNG, and report.html, one file that needs nothing else and follows light and dark.
The plots go into the page as inline SVG whose colours are the page's own variables."""

from __future__ import annotations

import io
import re
import time
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from metarun.comparison.groups import differences, labels, text
from metarun.comparison.runs import Found, shown
from metarun.comparison.tables import Cell, Column, caption, number, table, title
from metarun.comparison.view import View
from metarun.errors import UserError
from metarun.runtime.version import __version__

if TYPE_CHECKING:
    from metarun.comparison.figures import Plot  # at run time only when there is something to draw

DPI = 150
SIDE_BY_SIDE = 8  # groups whose settings still fit beside each other


def write(view: View, found: Found, verdict: str | None, folder: Path) -> list[Path]:
    """Write the PNG files and report.html; returns their paths.

    Args:
        view: the comparison.
        found: for the runs that had to be left out.
        verdict: a line on a paired comparison.
        folder: made when it does not exist; files of an earlier report are replaced.

    Raises:
        UserError: the folder cannot be written.
    """
    from matplotlib import rc_context

    from metarun.comparison.figures import STYLE
    from metarun.comparison.plots import pictures

    files, figures = [], []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with rc_context(STYLE):
            for picture in pictures(view):
                path = folder / f"{picture.name}.png"
                picture.figure.savefig(path, dpi=DPI, facecolor="white")
                files.append(path)
                drawing = io.StringIO()
                picture.figure.savefig(drawing, format="svg", transparent=True, metadata={"Date": None})
                figures.append((picture, _inline(drawing.getvalue(), picture)))
        path = folder / "report.html"
        path.write_text(_page(view, found, verdict, figures), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {error.filename or folder}: {error.strerror}; choose another folder with --out DIR") from None
    return [path, *files]


def _inline(svg: str, picture: Plot) -> str:
    """An SVG file as an element of the page: no prolog, ids of its own, colours from the page's variables, text of one size in all."""
    from metarun.comparison.figures import FAINT, INK, PALETTE

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|="#|url\(#)', rf"\g<1>{picture.name}-", svg)
    replaced = {INK: "var(--ink)", FAINT: "var(--line)", "#ffffff": "var(--page)"} | {
        color: f"var(--c{i})" for i, color in enumerate(PALETTE)
    }
    for color, variable in replaced.items():
        svg = svg.replace(f": {color}", f": {variable}")
    width = f"max-width: {100 * picture.figure.get_figwidth():.0f}px"
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(picture.title)}" style="{width}"', 1)


def _page(view: View, found: Found, verdict: str | None, figures: list[tuple[Plot, str]]) -> str:
    parts = []
    if verdict:
        parts.append(f'<h2>Paired comparison</h2><p class="verdict">{escape(verdict)}</p>')
    parts.append(f"<h2>Results</h2>{_table(*table(view), sortable=True)}<p class='soft'>{escape(caption(view))}</p>")
    for picture, svg in figures:
        parts.append(f"<h2>{escape(picture.title)}</h2><figure>{svg}<figcaption>{escape(picture.caption)}</figcaption></figure>")
    parts += [_differences(view), _runs(view), _left_out(found)]
    runs, groups = len(view.runs), len(view.groups)
    page = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    return page.substitute(
        title=escape(title(view)),
        subtitle=f"{runs} run{'s' * (runs > 1)} in {groups} group{'s' * (groups > 1)}; numbers are shown with the norm that made them",
        body="\n".join(filter(None, parts)),
        footer=f"made by metarun {__version__} compare, {time.strftime('%Y-%m-%d %H:%M')}",
    )


def _table(columns: list[Column], rows: list[list[Cell]], sortable: bool = False) -> str:
    head = []
    for column in columns:
        words = f"<span>{escape(column.title)}</span>" + (f"<small>{escape(column.note)}</small>" if column.note else "")
        head.append(f'<th scope="col"{_side(column)}>' + (f'<button type="button">{words}</button>' if sortable else words) + "</th>")
    lines = []
    for row in rows:
        cells = []
        for column, cell in zip(columns, row):
            classes = " ".join(["n"] * column.numeric + ["best"] * cell.best)
            value = "" if cell.text == "–" else cell.text if cell.value is None else cell.value
            cells.append(f'<td class="{classes}" data-value="{escape(str(value))}">{escape(cell.text)}</td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table><thead><tr>{"".join(head)}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _side(column: Column) -> str:
    return ' class="n"' if column.numeric else ""


def _differences(view: View) -> str:
    """Every config key that differs: a column a group for a few groups, else the values with their counts."""
    keys = differences(view.runs)
    if not keys:
        return ""
    few = len(view.groups) <= SIDE_BY_SIDE
    names_of: dict[tuple[str, ...], list[str]] = {}  # keys that always go together share a row
    for key in keys:
        values = [", ".join(dict.fromkeys(text(run.values.get(key)) for run in member.runs)) for member in view.groups]
        names_of.setdefault(tuple(values), []).append(key)
    rows = []
    for combined, together in names_of.items():
        counted = [", ".join(f"{value} ({combined.count(value)})" for value in dict.fromkeys(combined))]
        rows.append([Cell(", ".join(together)), *map(Cell, combined if few else counted)])
    names = list(labels(view.groups).values())
    notes = [f"{block[0]} {block[1]}w{block[2]}s" for block in (member.block for member in view.groups)]
    columns = (
        [Column(name, note, numeric=False) for name, note in zip(names, notes)] if few else [Column("values (groups)", "", numeric=False)]
    )
    table_html = _table([Column("key", "", numeric=False), *columns], rows)
    note = "<p class='soft'>Everything else is the same, but for seed, name and logging.</p>"
    return f"<h2>What differs between the configs</h2>{table_html}{note}"


def _runs(view: View) -> str:
    columns = [Column("run", "", numeric=False), Column("group", "", numeric=False), Column("seed"), Column("val"), Column("test")]
    rows = []
    for member, label in labels(view.groups).items():
        for run in member.runs:
            values = [run.statistics[split].get(view.metric or run.metric) for split in ("val", "test")]
            cells = [Cell(f"{number(v['mean'])} ± {number(v['ci95'], v['mean'])}", v["mean"]) if v else Cell("–") for v in values]
            rows.append([Cell(shown(run.folder)), Cell(label), Cell(str(run.values["seed"])), *cells])
    table_html = _table(columns, rows, sortable=True)
    return f"<h2>Runs</h2><details><summary>All {len(rows)} runs, ± ci95 over episodes</summary>{table_html}</details>"


def _left_out(found: Found) -> str:
    """Runs that could not be used, each with its reason."""
    rows = [[Cell(shown(path)), Cell(reason)] for path, reason in found.damaged]
    rows += [[Cell(shown(path)), Cell("unfinished: no summary.json yet")] for path in found.unfinished]
    if not rows:
        return ""
    table_html = _table([Column("run", "", numeric=False), Column("reason", "", numeric=False)], rows)
    return f"<h2>Left out</h2><details open><summary>{len(rows)} runs</summary>{table_html}</details>"
