"""``metarun eval RUN``: test a checkpoint again, under changed values or on development episodes; the run itself stays as it is."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from metarun.cli.parser import Parser, run_folder

WORDS = "run overrides"


def parser() -> Parser:
    """Its options."""
    parser = Parser(
        "eval",
        "RUN [KEY=VALUE ...]",
        "Meta-test a run again, perhaps on other data or episodes. way, shot and query mean those of the test.\n"
        "The result is in RUN/eval/<n>; the run's own files stay as they are.",
    )
    parser.option("--checkpoint", choices=("best", "last"), default="best", help="best on development tasks (default), or last")
    parser.option("--split", choices=("test", "val"), default="test", help="test (default), a look that is counted; or val")
    return parser


def run(options: Namespace) -> dict[str, Any]:
    """Evaluate; prints the table and returns the summary."""
    folder = Path(run_folder(options.words, "eval"))
    from metarun.cli import summary_table
    from metarun.session import runs

    summary, target = runs.evaluate(folder, options.words[1:], options.checkpoint, options.split)
    summary_table.show(summary, target, (options.split,))
    return summary
