"""Config keys as people write them, in full or short, and conditions on them: ``--where KEY=VALUE``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from metarun.comparison.groups import short
from metarun.comparison.runs import FinishedRun
from metarun.errors import UserError, nearest

SHOWN = 8  # values that an error lists


def full(name: str, runs: Sequence[FinishedRun], option: str, extra: Sequence[str] = ()) -> str:
    """A full or short key as the full one.

    Args:
        option: that it was given to, for the error.
        extra: names that are no keys, but taken as well.

    Raises:
        UserError: no run has such a key, or it may be several.
    """
    known = list(dict.fromkeys(key for run in runs for key in run.values))
    if name in known or name in extra:
        return name
    matches = [key for key in known if short(key) == name] or [key for key in known if key.rpartition(".")[2] == name]
    if len(matches) > 1:
        raise UserError(f"{option} {name} may be {' or '.join(matches)}; write one of them")
    if not matches:
        raise UserError(f"no run has the key '{name}'{nearest(name, [*extra, *known, *map(short, known)])} ({option} takes a config key)")
    return matches[0]


class Condition(NamedTuple):
    """What a run's value of a key has to be, or must not be."""

    key: str
    equal: bool
    pattern: str  # the value as YAML has it, or a glob

    def holds(self, run: FinishedRun) -> bool:
        """Whether it does; a run without the key has the value null."""
        return _matches(run.values.get(self.key), self.pattern) is self.equal


def conditions(words: Sequence[str], runs: Sequence[FinishedRun]) -> list[Condition]:
    """``KEY=VALUE`` and ``KEY!=VALUE``, taken apart.

    Raises:
        UserError: a word is neither, or its key is no run's.
    """
    found = []
    for word in words:
        parts = re.fullmatch(r"([^=!]+)(!?=)(.*)", word)
        if not parts:
            raise UserError(f"--where takes KEY=VALUE or KEY!=VALUE, not '{word}'")
        found.append(Condition(full(parts[1], runs, "--where"), parts[2] == "=", parts[3]))
    return found


def where(words: Sequence[str], runs: Sequence[FinishedRun]) -> Callable[[FinishedRun], bool]:
    """Whether all of ``words`` hold of a run.

    Raises:
        UserError: see ``conditions``; or they hold of none of ``runs``.
    """
    asked = conditions(words, runs)
    for i, condition in enumerate(asked):
        left = [run for run in runs if all(other.holds(run) for other in asked[:i])]
        if not any(condition.holds(run) for run in left):
            values = list(dict.fromkeys(_written(run.values.get(condition.key)) for run in left))
            more = ", …" * (len(values) > SHOWN)
            raise UserError(f"--where {words[i]} leaves no run ({condition.key} is {', '.join(values[:SHOWN])}{more})")
    return lambda run: all(condition.holds(run) for condition in asked)


def _matches(value: Any, pattern: str) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(pattern) == value  # 1e-3 is 0.001
        except ValueError:
            pass
    return fnmatchcase(_written(value), pattern)


def _written(value: Any) -> str:
    """A value as YAML has it."""
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)
