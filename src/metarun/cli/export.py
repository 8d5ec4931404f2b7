"""``metarun export RUN WHAT --out FILE``: what a run has learned, for use elsewhere; ``predict.exports`` knows what there is."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from metarun.cli.parser import Parser, run_folder
from metarun.errors import UserError

WORDS = "run"


def parser() -> Parser:
    """Its options."""
    parser = Parser(
        "export",
        "RUN WHAT --out FILE",
        "Write what a run has learned to a file. WHAT is\n"
        "  weights   of a method that weighs its training data (l2rw, metaweight, datarater), after a run on data=folder with\n"
        "            episode=dataset: a CSV with a weight for every file of the folder, the most suspicious first\n"
        "  optimizer of a learned optimizer (lstm_optimizer, mlp_optimizer, symbolic_optimizer): a .pt file for Python, where\n"
        "            metarun.optimizer(FILE, params) is one of torch's optimizers",
    )
    parser.option("--out", metavar="FILE", required=True, help="where to")
    parser.option("--sheet", metavar="FILE.png", help="of weights: where to draw the most suspicious pictures")
    parser.option("--checkpoint", choices=("best", "last"), default="best", help="best on development tasks (default), or last")
    return parser


def run(options: Namespace) -> dict[str, Any]:
    """Export; prints what was written and returns it."""
    folder = run_folder(options.words, "export")
    if len(options.words) != 2:
        said = f"'{options.words[2]}' is one word too many" if options.words[2:] else "WHAT is missing, such as weights"
        raise UserError(f"{said}: metarun export RUN WHAT --out FILE")
    from metarun.config.stored import read_config
    from metarun.predict import exports
    from metarun.run import Run
    from metarun.storage import checkpoint
    from metarun.tracking.console import start_logging

    what = options.words[1]
    exports.chosen(what)
    start_logging()
    values = read_config(Path(folder))
    built = Run(values, checkpoint.load(Path(folder) / "checkpoints" / f"{options.checkpoint}.pt"))
    result = exports.export(built, what, Path(options.out), Path(options.sheet) if options.sheet else None)
    for name, value in result.items():
        if isinstance(value, (str, int)):
            print(f"{name:12} {value}")
    return {"run": folder, **result}
