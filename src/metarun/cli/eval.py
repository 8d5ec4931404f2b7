"""``metarun eval RUN``: meta-test a run's checkpoint again, under changed values; the run's own files stay as they are."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from metarun.cli.parser import Parser, run_folder
from metarun.runtime import torchrun

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
    return parser


def run(options: Namespace) -> dict[str, Any]:
    """Evaluate; prints the table and returns the summary."""
    folder = Path(run_folder(options.words, "eval"))
    from metarun import experiment
    from metarun.cli import summary_table
    from metarun.config import compose
    from metarun.run import read_config
    from metarun.storage.run_folder import new_folder
    from metarun.tracking.console import start_logging

    values = compose.override(read_config(folder), options.words[1:])
    start_logging()
    numbers = (folder / "eval" / str(n) for n in range(10**6))
    with new_folder(numbers) as target:
        summary = torchrun.call(experiment.evaluate, values, folder, options.checkpoint, target)
    summary_table.show(summary, target, ("test",))
    return summary
