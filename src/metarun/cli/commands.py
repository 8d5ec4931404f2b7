"""The commands by name; each is the module of that name in this folder, imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping

from metarun.errors import UserError, nearest

COMMANDS = ("check", "show", "list", "eval", "resume", "compare", "predict", "classify", "serve", "export")
# What people try, and what it is here.
MEANT: Mapping[str, str] = {
    "help": "metarun --help",
    "version": "metarun --version",
    "test": "metarun eval RUN",
    "evaluate": "metarun eval RUN",
    "train": "metarun KEY=VALUE …",
    "run": "metarun KEY=VALUE …",
    "sweep": "metarun -m KEY=A,B …",
    "page": "metarun serve RUN",
    "web": "metarun serve RUN",
    "ls": "metarun list",
}


def module_of(command: str) -> str:
    """The module of a command; that of training where there is no command word."""
    return f"metarun.cli.{command or 'train'}"


def unknown(word: str, first: bool) -> UserError:
    """The error for a word that is neither a command nor KEY=VALUE; ``first``: it stands where a command would."""
    if word in COMMANDS and not first:
        return UserError(f"the command comes first: metarun {word} …")
    meant = f"; did you mean `{MEANT[word]}`?" if word in MEANT else nearest(word, COMMANDS)
    return UserError(f"there is no command '{word}'{meant} (commands: {', '.join(COMMANDS)}; or KEY=VALUE … to train)")
