"""The one parser of all commands: argparse, with words that stand anywhere between options, and errors of one line with the nearest name.
Every command is a module of this folder: ``parser()``, its options and help; ``run(options)``, its work; ``WORDS``, what completes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from metarun.errors import UserError, nearest


class Choice:
    """The type of an option's value: a text that is not empty, and one of ``names`` if there are any."""

    def __init__(self, option: str, names: Sequence[str] = ()) -> None:
        self.option, self.names = option, tuple(names)

    def __call__(self, text: str) -> str:
        """The text itself; ``~/x`` below the home folder, as a shell leaves it after ``--out=``.

        Raises:
            UserError: it is empty, or none of the names.
        """
        if not text or (self.names and text not in self.names):
            raise UserError(f"{self.option} takes {self.wanted}{nearest(text, self.names)}")
        return os.path.expanduser(text) if text.startswith("~/") else text

    @property
    def wanted(self) -> str:
        """What the option takes, in words."""
        return f"one of {', '.join(self.names)}" if self.names else "a value"


class Parser(argparse.ArgumentParser):
    """The options of a command. What is no option is a word, in ``options.words``, wherever it stands.

    Args:
        command: its name; empty for the commands without one.
        words: what the words are, as the usage line has it.
        description: what the command does, and whatever else its help page says above the options.
    """

    def __init__(self, command: str, words: str, description: str) -> None:
        name = f"metarun {command}".rstrip()
        super().__init__(
            prog=name, usage=f"{name} {words}", description=description, add_help=False, allow_abbrev=False, exit_on_error=False,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=120),
        )  # fmt: skip
        self.own = self.add_argument_group("options")
        anywhere = self.add_argument_group("with every command")
        anywhere.add_argument(
            "--with",
            dest="folders",
            metavar="FOLDER",
            type=Choice("--with"),
            action="append",
            default=[],
            help="code and options of your own: FOLDER/conf and the Python packages beside it",
        )
        anywhere.add_argument(
            "--config-dir",
            metavar="FOLDER",
            type=Choice("--config-dir"),
            action="append",
            default=[],
            help="options of your own without code: FOLDER has the folders algo/, experiment/, …",
        )
        anywhere.add_argument("--json", action="store_true", help="the last line of stdout is the result as one JSON object")
        anywhere.add_argument("-h", "--help", action="store_true", help="print this and stop")
        anywhere.add_argument("--version", action="store_true", help=argparse.SUPPRESS)

    def flag(self, *names: str, help: str) -> None:
        """An option without a value."""
        self.own.add_argument(*names, action="store_true", help=help)

    def option(
        self, *names: str, help: str, choices: Sequence[str] = (), two: bool = False, several: bool = False, **settings: Any
    ) -> None:
        """An option with a value, one of ``choices`` if there are any.

        Args:
            two: it takes two values.
            several: it may be given several times; the values are in a list.
            settings: as argparse has them.
        """
        settings = {"metavar": "|".join(choices) or None, **({"action": "append"} if several else {}), **settings}
        self.own.add_argument(*names, type=Choice(names[0], choices), nargs=2 if two else None, help=help, **settings)

    def names(self) -> list[str]:
        """Every option's names."""
        return [name for action in self._actions for name in action.option_strings]

    def choices(self, name: str) -> tuple[str, ...] | None:
        """The values that the option ``name`` takes, () for any; None if it takes no value, or is none."""
        action = self._option_string_actions.get(name)
        return action.type.names if action and isinstance(action.type, Choice) else None

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """The options among ``words``, and the other words as ``words``.

        Raises:
            UserError: an unknown option, or a value that is missing, too many or not among the choices.
        """
        options = self.known(words)
        for word in options.words:
            if word.startswith("-"):
                known = self.names()
                close = nearest(word.partition("=")[0], known) if word.startswith("--") else ""
                raise UserError(f"there is no option '{word}'{close} (`{self.prog} --help` shows all)")
        return options

    def known(self, words: Sequence[str]) -> argparse.Namespace:
        """As ``read``, but options of others stay among the words."""
        try:
            options, rest = self.parse_known_args(self._dashes(words))
        except argparse.ArgumentError as error:
            action = next((a for a in self._actions if "/".join(a.option_strings) == error.argument_name), None)
            if action is None:
                self.error(error.message)
            wanted = "no value" if not isinstance(action.type, Choice) else "two values" if action.nargs else action.type.wanted
            raise UserError(f"{action.option_strings[0]} takes {wanted} (`{self.prog} --help` says which)") from None
        options.words = rest
        return options

    def error(self, message: str) -> NoReturn:
        """What argparse has to say otherwise, as an error of ours."""
        raise UserError(f"{message} (`{self.prog} --help` says more)")

    def _dashes(self, words: Sequence[str]) -> list[str]:
        """A value may begin with a dash, as in ``--sort -val``, which argparse would take for an option."""
        joined: list[str] = []
        for word in words:
            before = joined[-1] if joined else ""
            if self.choices(before) is not None and word[:1] == "-" != word[1:2] and word not in self._option_string_actions:
                joined[-1] = f"{before}={word}"
            else:
                joined.append(word)
        return joined


def common(words: Sequence[str]) -> argparse.Namespace:
    """The options that every command has, and what else there is among the words of a command line, as ``words``.

    Raises:
        UserError: a value is missing or too many.
    """
    return Parser("", "", "").known(words)


def counted(text: str) -> int | None:
    """A whole number from 0 on, below 2^63, that an option gives; None: it is no such number."""
    return int(text) if text.isdecimal() and len(text) < 20 and int(text) < 2**63 else None


def is_folder(word: str) -> bool:
    """Whether a word names a folder, not KEY=VALUE; one that is there may be called anything."""
    return "=" not in word or Path(word).expanduser().is_dir()


def run_folder(words: Sequence[str], command: str) -> str:
    """The run's folder that the first word names.

    Raises:
        UserError: there is none.
    """
    if not words or not is_folder(words[0]):
        raise UserError(f"name the run's folder: metarun {command} RUN, for example outputs/2026-01-31/12-00-00_maml-omniglot-5w1s")
    return words[0]


def overrides(words: Sequence[str], command: str) -> list[str]:
    """The words of a command that takes KEY=VALUE and nothing else.

    Raises:
        UserError: a word that is none.
    """
    for word in words:
        if "=" not in word and not word.startswith("~"):
            raise UserError(f"{command} takes KEY=VALUE …, not '{word}'")
    return list(words)
