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
    return Parser("list", "[GROUP[/FOLDER] ...]", "What there is to choose from: the options of every group, or of some, in one line each.")


def run(options: Namespace) -> dict[str, Any]:
    """Print the groups that the words name, or all."""
    found = catalogue.descriptions()
    chosen: dict[str, dict[str, str]] = {}
    for word in options.words or found:
        group, slash, folder = word.rstrip("/").partition("/")
        if group not in found:
            raise UserError(f"there is no group '{group}'{nearest(group, found)} (groups: {', '.join(found)})")
        inside = {option: text for option, text in found[group].items() if option.startswith(folder + slash)}
        if not inside:
            raise UserError(f"{group} has no options in a folder '{folder}'")
        chosen[group] = chosen.get(group, {}) | inside
        print(f"{group}=")
        for option in catalogue.folded(inside, folder + slash):
            more = f"{sum(other.startswith(option) for other in inside)} more: metarun list {group}/{option.rstrip('/')}"
            print(f"  {option:28} {inside.get(option, more)}")
    return chosen
