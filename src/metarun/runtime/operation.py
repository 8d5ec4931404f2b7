"""What a program is made of: calls, and the variables between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from metarun.runtime.private import tree_leaves


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
    """The slots in nested arguments."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Slot)]
