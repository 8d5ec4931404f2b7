"""Operators of torch that follow each other as one function of TorchScript. Its interpreter holds no lock of Python's, for which
threads side by side would wait between two operators, and takes less time around a small one (``scripts/bench_script.py``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch

from metarun.runtime.operation import Operation, Slot
from metarun.runtime.private import TENSOR, WHOLE, Graph, Value, function_of, list_of, schema, tuple_of

LEAST = 2  # operators that are worth a call of the interpreter
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
        about, made = signature(operation.function), operation.outputs
        assert about is not None
        node = _node(graph, about, about.values(operation), known)
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
    about = signature(operation.function)
    return about is not None and _found(operation.function, tuple(map(_kind, about.values(operation))))


class Parameter(NamedTuple):
    """An argument that an operator takes."""

    name: str
    default: Any
    real: bool  # a number, or numbers, that are not whole
    optional: bool  # of a list of tensors: None may be among them
    sizes: bool  # whole numbers, of which there may be none, as the shape of a scalar


class Signature(NamedTuple):
    """An operator's name, and what it takes and returns."""

    name: str
    parameters: list[Parameter]
    returns: list[Any]  # types

    def values(self, operation: Operation) -> list[Any]:
        """Every value that the operator takes, in order."""
        given, named = operation.arguments, operation.named
        return [given[i] if i < len(given) else named.get(p.name, p.default) for i, p in enumerate(self.parameters)]


@cache
def signature(function: Any) -> Signature | None:
    """Of an operator of torch; None of any other function."""
    about = schema(function)
    if about is None:
        return None
    kinds = [(argument, str(argument.type)) for argument in about.arguments]
    parameters = [Parameter(a.name, a.default_value, "float" in kind, "Optional[Tensor]" in kind, "List[int]" in kind) for a, kind in kinds]
    return Signature(about.name, parameters, [returned.type for returned in about.returns])


def _kind(value: Any) -> Any:
    """What of a value decides which operator takes it: its type, of a list those of its parts."""
    return tuple(sorted({type(part) for part in value}, key=str)) if isinstance(value, (list, tuple)) else type(value)


EXAMPLES: dict[type, Any] = {
    Slot: Slot(0), type(None): None, bool: True, int: 1, float: 0.5, str: "", torch.dtype: torch.float32, torch.device: torch.device("cpu"),
    torch.layout: torch.strided, torch.memory_format: torch.preserve_format,
}  # fmt: skip


@cache
def _found(function: Any, kinds: tuple[Any, ...]) -> bool:
    """Whether there is an operator for values of these kinds."""
    if not all(EXAMPLES.keys() >= set(kind if isinstance(kind, tuple) else [kind]) for kind in kinds):
        return False
    values = [[EXAMPLES[part] for part in kind] if isinstance(kind, tuple) else EXAMPLES[kind] for kind in kinds]
    graph = Graph()
    known = {Slot(0): graph.addInput()}
    known[Slot(0)].setType(TENSOR)
    about = signature(function)
    assert about is not None
    try:
        found = _node(graph, about, values, known).schema()
    except (RuntimeError, TypeError):  # a value that is no constant of TorchScript's
        return False
    # A number in place of a tensor is by right another overload of the same operator.
    return found.partition("(")[0].partition(".")[0] == about.name


def _node(graph: Any, about: Signature, values: Sequence[Any], known: dict[Slot, Value]) -> Any:
    inputs = [_value(graph, value, parameter, known) for value, parameter in zip(values, about.parameters)]
    node = graph.insertNode(graph.create(about.name, inputs, len(about.returns)))
    for value, kind in zip(node.outputs(), about.returns):
        value.setType(kind)
    return node


def _value(graph: Any, value: Any, parameter: Parameter, known: dict[Slot, Value]) -> Value:
    if isinstance(value, Slot):
        return known[value]
    if isinstance(value, (list, tuple)):
        if any(isinstance(part, Slot) for part in value) or (parameter.sizes and not value):
            parts = [_value(graph, part, parameter, known) for part in value]
            made = graph.insertNode(graph.create("prim::ListConstruct", parts, 1)).output()
            made.setType(list_of(WHOLE if parameter.sizes else TENSOR, optional=parameter.optional))
            return made
        value = [float(part) for part in value] if parameter.real else list(value)
    elif parameter.real and type(value) is int:
        value = float(value)
    return graph.insertConstant(FORMATS.get(value, value) if isinstance(value, torch.memory_format) else value)
