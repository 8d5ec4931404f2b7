"""``metarun -m KEY=A,B …``: all combinations, or a search, in other processes if a launcher is chosen."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from metarun.cli.parser import Parser
from metarun.errors import UserError
from metarun.runtime.environment import several


def add_options(parser: Parser) -> None:
    """The flag that makes a sweep of a training command."""
    parser.flag("-m", "--multirun", help="sweep over all combinations")


def run(options: Namespace) -> dict[str, Any]:
    """Run the sweep; prints its table and returns summaries, rows and failures."""
    if several():
        raise UserError("a sweep (-m) does not go with torchrun, which shares one run: leave one of them out")
    from metarun.sweeps.launch import sweep

    return sweep(options.words)
