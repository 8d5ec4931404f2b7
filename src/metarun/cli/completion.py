"""What the Tab key offers: commands, options and their values, groups; keys and options of the configuration by Hydra.
Where a folder or a file is wanted nothing is offered, and the shell completes paths."""

from __future__ import annotations

import contextlib
import io
import os
from importlib import import_module

from metarun.cli import ask_hydra
from metarun.cli.commands import COMMANDS, module_of
from metarun.cli.parser import Parser, common
from metarun.config import options as catalogue
from metarun.errors import UserError
from metarun.extensions.sources import given


def add_options(parser: Parser) -> None:
    """The option that shells are set up with, and that they ask with."""
    parser.flag("-sc", "--shell-completion", help="with install=SHELL: print what makes bash, zsh or fish complete metarun's words")


def run(words: list[str]) -> None:
    """Print what sets a shell up (``install=SHELL``), or what may stand in place of the last word of $COMP_LINE (``query=SHELL``).

    Raises:
        UserError: ``words`` are neither.
    """
    what, _, shell = words[0].partition("=") if len(words) == 1 else ("", "", "")
    # A query is the shell's own question: it says what has been typed in a variable.
    if what not in ("install", "uninstall", "query") or (what == "query" and "COMP_LINE" not in os.environ):
        raise UserError('-sc takes install=SHELL or uninstall=SHELL with bash, zsh or fish, as in: eval "$(metarun -sc install=bash)"')
    if what != "query":
        return ask_hydra.answer(["-sc", *words])
    line = os.environ["COMP_LINE"].split()[1:]
    last = line.pop() if line and not os.environ["COMP_LINE"][-1].isspace() else ""
    with contextlib.suppress(Exception):  # an error would stand in the user's prompt
        anywhere = common(line)
        with given(anywhere.folders, anywhere.config_dir):
            found = offers(line, last, shell)
        if found:
            print(("\n" if shell == "fish" else " ").join(sorted(found)))


def offers(words: list[str], last: str, shell: str) -> list[str]:
    """What may stand for ``last`` after ``words``."""
    rest = common(words).words
    command = rest[0] if rest and rest[0] in COMMANDS else ""
    module = import_module(module_of(command))
    parser: Parser = module.parser()
    values = parser.choices(words[-1]) if words else None
    if values is not None:
        found = list(values)
    elif last.startswith("-"):
        found = parser.names()
    elif module.WORDS == "groups":
        found = list(catalogue.groups())
    else:
        plain = parser.known(words).words[bool(command) :]
        found = [] if rest else [*COMMANDS]
        if "overrides" in module.WORDS and (plain or module.WORDS != "run overrides"):  # a RUN comes first
            found += _hydras([word for word in plain if "=" in word], last, shell)
            group = last.partition("=")[0]  # of options in folders Hydra offers none
            found += [f"{group}={option}" for option in catalogue.groups().get(group, []) if "/" in option]
    return [word for word in found if word.startswith(last)]


def _hydras(words: list[str], last: str, shell: str) -> list[str]:
    """Hydra's own offers after KEY=VALUE ``words``."""
    out, kept = io.StringIO(), os.environ["COMP_LINE"]
    os.environ["COMP_LINE"] = " ".join(["metarun", *words, last])
    try:
        with contextlib.redirect_stdout(out):
            ask_hydra.answer(["-sc", f"query={shell}"])
    finally:
        os.environ["COMP_LINE"] = kept
    return out.getvalue().split()
