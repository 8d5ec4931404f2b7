"""The two exceptions that are shown as a single line: the user's mistake (exit status 2) and a run that failed (1).
Raise them with what is wrong and how to mend it; anything else that escapes is a failure of ours."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """The user's input is wrong; the message is one line that says what and how to mend it."""


class UnknownKeys(UserError):
    """The configuration has keys that nothing here takes, ``keys``; the message is about the first."""

    def __init__(self, message: str, keys: list[str]) -> None:
        super().__init__(message)
        self.keys = keys


class MissingLibrary(UserError):
    """An optional library is not installed; the message says how to get it."""


class RunError(Exception):
    """The run failed through no fault of the input (a damaged checkpoint, diverged loss); one line, exit status 1."""


def nearest(name: str, names: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the closest of ``names``, or ``""`` when none is close."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


def install(extra: str) -> str:
    """How to install what an extra of this package brings; the package is on no index, so from its checkout."""
    return f"pip install -e '.[{extra}]' in metarun's checkout"
