"""``metarun classify --support DIR --query DIR``: the options of a classification without any run, which ``predict.classify`` makes."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from metarun.cli.parser import Parser
from metarun.errors import UserError

WORDS = "overrides"
SETTING = ("net=", "net.", "device=")  # how words begin that are no files


def parser() -> Parser:
    """Its options."""
    parser = Parser(
        "classify",
        "--support DIR --query DIR|FILE ... [net=NAME net.model=MODEL ...]",
        "Tell your own pictures apart by a few labelled ones; nothing is trained. Features come from a pretrained backbone (net=package,\n"
        "net=timm, net=torchvision), or from a run; the head is the one that does best on the support, each picture left out in its turn.",
    )
    parser.option("--support", metavar="DIR", required=True, help="one folder of pictures per class, any number in each; or labels.csv")
    parser.option(
        "--query", metavar="DIR|FILE", required=True, several=True,
        help="pictures to classify; in folders named like the classes: accuracy; more may follow",
    )  # fmt: skip
    parser.option("--run", metavar="RUN", help="take the net of a trained run in place of a backbone")
    parser.option("--checkpoint", choices=("best", "last"), default="best", help="of the run: best on development tasks (default), or last")
    parser.option(
        "--reject", metavar="RATE", default="0.05",
        help="answer 'unknown' so that this share of pictures that do belong to a class is refused (default 0.05; 0: never)",
    )  # fmt: skip
    parser.option("--out", metavar="DIR|FILE", help="folder for table, sheet and confusion, or a .csv or .json file (outputs/classify/<n>)")
    parser.option("--format", choices=("csv", "json"), help="of the table (default: csv, or as FILE ends)")
    parser.option("--sheet", metavar="FILE.png", help="where to draw the pictures with their answers (default: in the folder)")
    return parser


def run(options: Namespace) -> dict[str, Any]:
    """Classify; prints a summary and returns it."""
    try:
        rate = float(options.reject)
    except ValueError:
        rate = -1
    if not 0 <= rate < 1:
        raise UserError(f"--reject {options.reject} is not possible: it is a share between 0 and 1, such as 0.05; 0 for never")
    words = [word for word in options.words if word.startswith(SETTING)]
    files = [word for word in options.words if not word.startswith(SETTING)]
    from metarun.predict.classify import Options, classify

    return classify(
        Options(
            support=options.support,
            query=[*options.query, *files],
            words=words,
            run=options.run,
            checkpoint=options.checkpoint,
            reject=rate,
            out=options.out,
            format=options.format,
            sheet=options.sheet,
        )
    )
