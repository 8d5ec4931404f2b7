"""A recorded computation as a flat list of operations, compiled to one Python function without branches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from metarun.runtime.operation import Operation, Slot, slots
from metarun.runtime.private import below_autograd, overload, tree_flatten, tree_unflatten, without_optimisation
from metarun.runtime.script import LEAST, scriptable, scripted


class Program:
    """A function from a list of tensors to a nested result.

    Args:
        operations: what it does, in order. Those without an effect whose results are not needed are left out, others that follow each
            other are one call of ``script``.
        inputs: the slots of its arguments.
        result: nested values, with slots in place of tensors.
        script: whether to; otherwise Python calls every operator.
    """

    def __init__(self, operations: Sequence[Operation], inputs: Sequence[Slot], result: Any, *, script: bool = True) -> None:
        self.inputs, self.result = inputs, result
        outcome, self.form = tree_flatten(result)
        needed, self.operations = set(slots(outcome)), list[Operation]()
        for operation in reversed(operations):
            if operation.effect or needed.intersection(operation.outputs):
                needed.update(slots((operation.arguments, operation.named)))
                self.operations.append(operation)
        self.operations.reverse()
        calls, self.known = [], dict[str, Any]()
        for together, group in groupby(self.operations, scriptable if script else lambda _: False):
            run = list(group)
            calls += [run] if together and len(run) >= LEAST else [[operation] for operation in run]
        alive, lines = {*slots(outcome), *inputs}, list[str]()
        for call in reversed(calls):
            given, made = _ends(call)
            kept = [slot for slot in made if slot in alive]
            last = {*given, *(made if len(call) == 1 else ())} - alive  # no later call reads these
            line = self._line(call[0]) if len(call) == 1 else self._call(call, given, kept)
            lines.append(line + "".join(f"; del t{slot.number}" for slot in sorted(last, key=lambda slot: slot.number)))
            alive.update(given)
        arguments = "".join(f"t{slot.number}, " for slot in inputs)
        self.lines = [f"{arguments} = inputs" if inputs else "pass", *reversed(lines), f"return {self._text(outcome)}"]
        body = "\n    ".join(self.lines)
        exec(compile(f"def run(inputs):\n    {body}", "<recorded>", "exec"), self.known)
        self.run = self.known.pop("run")

    def __call__(self, inputs: Sequence[Tensor]) -> Any:
        with torch.no_grad(), below_autograd(), without_optimisation():
            try:
                made = self.run(inputs)
            except RuntimeError:  # to TorchScript all errors are of this class: Python raises the operator's own
                made = Program(self.operations, self.inputs, self.result, script=False).run(inputs)
        return tree_unflatten(made, self.form)

    def _line(self, operation: Operation) -> str:
        names = [f"t{slot.number}" if slot else "_" for slot in operation.outputs]
        target = names[0] if operation.single else "".join(f"{name}, " for name in names)
        named = [f"{name}={self._text(value)}" for name, value in operation.named.items()]
        call = f"{self._constant(overload(operation.function))}({', '.join([*map(self._text, operation.arguments), *named])})"
        return f"{target} = {call}" if names else call

    def _call(self, operations: Sequence[Operation], given: Sequence[Slot], kept: Sequence[Slot]) -> str:
        """A line for many operators."""
        target = ", ".join(f"t{slot.number}" for slot in kept)
        call = f"{self._constant(scripted(operations, given, kept))}({', '.join(f't{slot.number}' for slot in given)})"
        return f"{target} = {call}" if kept else call

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


def _ends(operations: Sequence[Operation]) -> tuple[list[Slot], list[Slot]]:
    """What operations read that they have not made, and all that they make; one in place makes what it has read."""
    given, made = dict[Slot, None](), dict[Slot, None]()
    for operation in operations:
        given.update((slot, None) for slot in slots((operation.arguments, operation.named)) if slot not in made)
        made.update(dict.fromkeys(slots(operation.outputs)))
    return [*given], [*made]
