"""``metarun KEY=VALUE …``: meta-train, validate, test. With ``-m`` the same words are a sweep, and some options only ask Hydra."""

from __future__ import annotations

import re
from argparse import Namespace
from typing import Any

from metarun.cli import ask_hydra, completion, sweep
from metarun.cli.parser import Parser
from metarun.errors import UserError

WORDS = "overrides"


def parser() -> Parser:
    """The options of what has no command word; ``metarun --help`` is their page."""
    parser = Parser("", "[KEY=VALUE ...]", "Meta-train, validate, meta-test.")
    sweep.add_options(parser)
    ask_hydra.add_options(parser)
    completion.add_options(parser)
    return parser


def run(options: Namespace) -> dict[str, Any] | None:
    """Train, sweep, or let Hydra answer."""
    if options.shell_completion:
        completion.run(options.words)
        return None
    if ask_hydra.wanted(options):
        ask_hydra.run(options)
        return None
    if options.multirun:
        return sweep.run(options)
    if spaces := [word for word in options.words if re.match(r"\+?sweep=(?!null$)", word)]:
        raise UserError(f"{spaces[0]} is for a sweep: add -m")
    return _train(options.words)


def _train(words: list[str]) -> dict[str, Any]:
    from metarun.config import compose
    from metarun.storage.run_folder import alternatives, new_folder

    cfg = compose.compose(words)
    values, wanted = compose.resolve(cfg), compose.folder(cfg, "run")

    from metarun.config import schema  # imports torch, for which a typo need not wait

    schema.validate(values)
    given = any(word.startswith("hydra.run.dir=") for word in words)
    from metarun.cli import summary_table
    from metarun.session import runs

    with new_folder([wanted] if given else alternatives(wanted)) as folder:
        summary = runs.run(values, folder)
    summary_table.show(summary, folder)
    return summary
