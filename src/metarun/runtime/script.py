"""Operators of torch that follow each other as one function of TorchScript. Its interpreter holds no lock of Python's, for which
threads side by side would wait between two operators, and takes a quarter of Python's time for a small one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from metarun.runtime.operation import Operation, Slot, slots
from metarun.runtime.private import TENSOR, Graph, Value, function_of, list_of, schema, tuple_of

LEAST = 2  # operators that are worth a call of the interpreter, which takes as long as two of Python's but lets go of the lock once
PLAIN = (Slot, type(None), bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format)
FORMATS = {torch.contiguous_format: 0, torch.preserve_format: 1, torch.channels_last: 2, torch.channels_last_3d: 3}  # TorchScript's numbers


def scripted(operations: Sequence[Operation], inputs: Sequence[Slot], outputs: Sequence[Slot]) -> Callable[..., Any]:
    """The operations as a function of the tensors of ``inputs``, which returns that of the only output, or a tuple.

    All are ``scriptable``. What they do is done as it is written: nothing is fused, left out or shared.
    """
    graph = Graph()
    known = {slot: graph.addInput() for slot in inputs}
    for value in known.values():
        value.setType(TENSOR)
    for operation in operations:
        node, made = _node(graph, operation, known), operation.outputs
        if not operation.single and len(made) and node.outputsSize() == 1:  # a list of tensors
            node = graph.insertNode(graph.create("prim::ListUnpack", list(node.outputs()), len(made)))
        for value, slot in zip(node.outputs(), made):
            value.setType(TENSOR)
            if slot:
                known[slot] = value
    results = [known[slot] for slot in outputs]
    if len(results) != 1:
        together = graph.insertNode(graph.create("prim::TupleConstruct", results, 1))
        together.output().setType(tuple_of(len(results)))
        results = [together.output()]
    graph.registerOutput(*results)
    return function_of(graph)


def scriptable(operation: Operation) -> bool:
    """Whether TorchScript's interpreter does the same: with an operator that it finds for these arguments."""
    about = schema(operation.function)
    if about is None or not all(map(_fits, _arguments(operation, about))):
        return False
    graph = Graph()
    known = {slot: graph.addInput() for slot in slots((operation.arguments, operation.named))}
    for value in known.values():
        value.setType(TENSOR)
    try:
        found = _node(graph, operation, known).schema()
    except (RuntimeError, TypeError):  # a value that is no constant of TorchScript's
        return False
    # A number in place of a tensor is by right another overload of the same operator.
    return found.partition("(")[0].partition(".")[0] == about.name


def _fits(argument: Any) -> bool:
    value = argument[0]
    return all(isinstance(part, PLAIN) for part in (value if isinstance(value, (list, tuple)) else [value]))


def _arguments(operation: Operation, about: Any) -> list[tuple[Any, str]]:
    """Every value that the operator takes, in order, with the type that it is to have."""
    given, found = operation.arguments, []
    for i, argument in enumerate(about.arguments):
        value = given[i] if i < len(given) else operation.named.get(argument.name, argument.default_value)
        found.append((value, str(argument.type)))
    return found


def _node(graph: Any, operation: Operation, known: dict[Slot, Value]) -> Any:
    about = schema(operation.function)
    values = [_value(graph, value, kind, known) for value, kind in _arguments(operation, about)]
    node = graph.insertNode(graph.create(about.name, values, len(about.returns)))
    for value, returned in zip(node.outputs(), about.returns):
        value.setType(returned.type)
    return node


def _value(graph: Any, value: Any, kind: str, known: dict[Slot, Value]) -> Value:
    if isinstance(value, Slot):
        return known[value]
    if isinstance(value, (list, tuple)):
        if any(isinstance(part, Slot) for part in value):
            parts = [_value(graph, part, "", known) for part in value]
            made = graph.insertNode(graph.create("prim::ListConstruct", parts, 1)).output()
            made.setType(list_of(optional="Optional[Tensor]" in kind))
            return made
        value = [float(part) for part in value] if "float" in kind else list(value)
    elif "float" in kind and type(value) is int:
        value = float(value)
    return graph.insertConstant(FORMATS.get(value, value) if isinstance(value, torch.memory_format) else value)
