"""What a program is made of: calls, and the variables between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Slot:
    """A variable of a program: an input, or the result of an operation."""

    number: int


class Operation(NamedTuple):
    """A call in a program, with slots in place of tensors."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    outputs: list[Slot | None]  # None for a result that is no tensor
    single: bool  # returns a tensor, not a tuple of them
    effect: bool  # does more than to return something: writes to an argument, or draws random numbers


def slots(tree: Any) -> list[Slot]:
    """The slots in nested tuples, lists and dictionaries."""
    if isinstance(tree, Slot):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    return [slot for part in parts for slot in slots(part)]
