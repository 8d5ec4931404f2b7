"""``metarun check``: is there anything wrong with a configuration or its data? Trains and writes nothing."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from metarun.cli.parser import Parser, overrides

WORDS = "overrides"


def parser() -> Parser:
    """Its options."""
    return Parser(
        "check", "[KEY=VALUE ...]", "Validate a configuration and its data, and adapt to one task of each split; nothing is trained."
    )


def run(options: Namespace) -> dict[str, Any]:
    """Build everything, try it, and say what there is."""
    from metarun.config import compose

    values = compose.resolve(compose.compose(overrides(options.words, "check")))
    from metarun import experiment  # imports torch, for which a typo need not wait
    from metarun.tracking.console import start_logging

    start_logging()
    report = experiment.check(values)
    for key, value in report.items():
        print(f"{key:12} {value}")
    print("all is well")
    return report
