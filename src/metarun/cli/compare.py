"""``metarun compare RUN…``: the options of the comparison, which ``comparison.comparison`` makes."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from metarun.cli.parser import Parser
from metarun.comparison.comparison import FORMS, Options, compare
from metarun.errors import UserError

WORDS = "runs"


def parser() -> Parser:
    """Its options."""
    parser = Parser(
        "compare",
        "RUN [RUN ...]",
        "Compare runs. RUN is a run's folder, a folder of runs (outputs, a sweep; searched to the bottom) or a glob.",
    )
    parser.option("--metric", metavar="NAME", help="accuracy, mse, loss, … (default: accuracy, or mse for regression)")
    parser.option("--split", choices=("val", "test"), help="show and rank by this split alone")
    parser.option("--where", metavar="KEY=VALUE", several=True, help="only such runs; also KEY!=VALUE, * and ? in VALUE, several times")
    parser.option("--group-by", metavar="KEY[,KEY]", help="average over all but these keys, data, way and shot (default: over seeds alone)")
    parser.option("--sort", metavar="KEY", help="val, test, seeds, parameters, wall or any config key; -KEY turns the order round")
    parser.option("--paired", two=True, metavar=("A", "B"), help="compare A with B episode by episode (each a RUN as above)")
    for form in FORMS:
        parser.flag(f"--{form}", help=f"the table as {FORMS[form].title}, on stdout")
    parser.flag("--report", help="plots as PNG and a self-contained report.html, in the runs' common folder under compare/")
    parser.option("--out", metavar="DIR", help="the same, in DIR")
    return parser


def parse(given: Namespace) -> Options:
    """The comparison that the options ask for.

    Raises:
        UserError: two forms of the table.
    """
    forms = [form for form in FORMS if getattr(given, form)]
    if len(forms) > 1:
        raise UserError(f"choose one of {' and '.join(f'--{form}' for form in forms)}")
    return Options(
        runs=given.words,
        metric=given.metric,
        split=given.split,
        group_by=[key for key in (given.group_by or "").split(",") if key],
        sort=given.sort,
        paired=given.paired or [],
        where=given.where or [],
        form=forms[0] if forms else None,
        report=given.report,
        out=given.out,
    )


def run(options: Namespace) -> dict[str, Any]:
    """Compare; prints the table and returns it."""
    return compare(parse(options))
