"""A recorded computation as a flat list of operations, compiled to one Python function without branches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun.runtime.private import below_autograd, tree_flatten, tree_leaves, tree_unflatten


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


class Program:
    """A function from a list of tensors to a nested result.

    Args:
        operations: what it does, in order. Those without an effect whose results are not needed are left out.
        inputs: the slots of its arguments.
        result: nested values, with slots in place of tensors.
    """

    def __init__(self, operations: Sequence[Operation], inputs: Sequence[Slot], result: Any) -> None:
        outcome, self.form = tree_flatten(result)
        needed, given = set(slots(outcome)), set(inputs)
        lines, self.known = [], dict[str, Any]()
        for operation in reversed(operations):
            if not (operation.effect or needed.intersection(operation.outputs)):
                continue
            read = slots((operation.arguments, operation.named))
            last = {*read, *slots(operation.outputs)} - needed - given  # no later operation reads these
            needed.update(read)
            lines.append(self._line(operation) + "".join(f"; del t{slot.number}" for slot in sorted(last, key=lambda slot: slot.number)))
        arguments = "".join(f"t{slot.number}, " for slot in inputs)
        self.lines = [f"{arguments} = inputs" if inputs else "pass", *reversed(lines), f"return {self._text(outcome)}"]
        body = "\n    ".join(self.lines)
        exec(compile(f"def run(inputs):\n    {body}", "<recorded>", "exec"), self.known)
        self.run = self.known.pop("run")

    def __call__(self, inputs: Sequence[Tensor]) -> Any:
        with torch.no_grad(), below_autograd():
            return tree_unflatten(self.run(inputs), self.form)

    def _line(self, operation: Operation) -> str:
        names = [f"t{slot.number}" if slot else "_" for slot in operation.outputs]
        target = names[0] if operation.single else "".join(f"{name}, " for name in names)
        named = [f"{name}={self._text(value)}" for name, value in operation.named.items()]
        call = f"{self._constant(operation.function)}({', '.join([*map(self._text, operation.arguments), *named])})"
        return f"{target} = {call}" if names else call

    def _text(self, value: Any) -> str:
        """Source text of an argument."""
        if isinstance(value, Slot):
            return f"t{value.number}"
        if type(value) in (list, tuple):
            inside = "".join(f"{self._text(item)}, " for item in value)
            return f"[{inside}]" if isinstance(value, list) else f"({inside})"
        return repr(value) if value is None or type(value) in (int, bool, str) else self._constant(value)

    def _constant(self, value: Any) -> str:
        name = f"c{id(value)}"
        self.known[name] = value
        return name
