"""``metarun list``: what there is to choose from, every group's options with the comment that opens their YAML."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from metarun.cli.parser import Parser
from metarun.config import options as catalogue
from metarun.errors import UserError, nearest

WORDS = "groups"


def parser() -> Parser:
    """Its options."""
    return Parser("list", "[GROUP ...]", "What there is to choose from: the options of every group, or of some, in one line each.")


def run(options: Namespace) -> dict[str, Any]:
    """Print the groups that the words name, or all."""
    found = catalogue.descriptions()
    for word in options.words:
        if word not in found:
            raise UserError(f"there is no group '{word}'{nearest(word, found)} (groups: {', '.join(found)})")
    chosen = {group: described for group, described in found.items() if not options.words or group in options.words}
    for group, described in chosen.items():
        print(f"{group}=")
        for option, text in described.items():
            print(f"  {option:28} {text}")
    return chosen
