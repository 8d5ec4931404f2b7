"""Leakage: what is in two splits at once makes the test of what was trained on. Refused between splits, warned of within one."""

from __future__ import annotations

import hashlib
import logging
import unicodedata
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from metarun.errors import UserError

log = logging.getLogger(__name__)


class Origin(NamedTuple):
    """Where a picture is from."""

    split: str
    label: str  # its class
    file: str


def digest(image: np.ndarray) -> str:
    """16 hexadecimal digits that tell one decoded picture from another."""
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8).hexdigest()


def refuse_copies(origins: Sequence[Origin], digests: Sequence[str]) -> None:
    """Compare all pictures with each other by ``digest``; copies within a split are counted and named in a warning.

    Raises:
        UserError: one picture is in two splits.
    """
    if across := [pair for pair in _pairs(origins, digests) if pair[0].split != pair[1].split]:
        raise UserError(
            f"{_count(across)} in two splits, such as {_such_as(across)}: learners would be tested on what they were trained on; remove "
            "one of each pair"
        )
    warn_of_copies(origins, digests, "a split", "support and query of an episode may be the same; remove one of each pair")


def warn_of_copies(origins: Sequence[Origin], digests: Sequence[str], where: str, twice: str, noun: str = "picture") -> None:
    """Count and name the pictures that are there twice, of one split; ``twice`` says what comes of those within a class."""
    if pairs := _pairs(origins, [(origin.label, found) for origin, found in zip(origins, digests, strict=True)]):
        log.warning("%s twice in a class, such as %s: %s", _count(pairs, noun), _such_as(pairs), twice)
    if pairs := [pair for pair in _pairs(origins, digests) if pair[0].label != pair[1].label]:
        one, other = (f"{origin.file} ({origin.label})" for origin in pairs[0])
        log.warning("%s in two classes of %s, such as %s and %s: remove the wrong one", _count(pairs, noun), where, one, other)


def refuse_shared(splits: Mapping[str, Iterable[str]], what: str = "class") -> None:
    """Tasks of val and test must be made of new classes; names that differ in capitals only are warned of within a split.

    Args:
        what: is in the splits by name, a ``class`` or a ``task``.

    Raises:
        UserError: a class, or one that differs from it in capitals only, is in two splits.
    """
    several = {"class": "classes", "task": "tasks"}[what]
    seen: dict[str, tuple[str, str]] = {}
    for split, name in ((split, name) for split, names in splits.items() for name in names):
        before, other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), (split, name))
        if before != split:
            again = "in" if other == name else f"'{name}', which differs in capitals only, in"
            raise UserError(
                f"{what} '{other}' is in {before} and {again} {split}, but splits must not share {several}; "
                f"rename one if they differ, else give all of it to one split, or put all {several} together to have them divided for you"
            )
        if other != name:
            log.warning("the %s '%s' and '%s' of %s differ in capitals only: merge them unless they are two", several, other, name, split)


def _pairs(origins: Iterable[Origin], keys: Iterable[Hashable]) -> list[tuple[Origin, Origin]]:
    """The first one of every key, with each that comes after it."""
    first: dict[Hashable, Origin] = {}
    pairs = [(first.setdefault(key, origin), origin) for origin, key in zip(origins, keys, strict=True)]
    return [(one, other) for one, other in pairs if one is not other]


def _count(pairs: list[tuple[Origin, Origin]], noun: str = "picture") -> str:
    return f"1 {noun} is" if len(pairs) == 1 else f"{len(pairs)} {noun}s are"


def _such_as(pairs: list[tuple[Origin, Origin]]) -> str:
    return " and ".join(origin.file for origin in pairs[0])
