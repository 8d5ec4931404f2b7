"""What a function of a module and an item depends on: the tensors that are its inputs, and the settings that are not."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Hashable
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metarun.runtime.private import MODULE_ATTRIBUTES, call_hooks, has_global_hook, tree_flatten, tree_map, weight_hooks
from metarun.runtime.tracer import tensors

NUMBERS = (int, float, str, type(None))  # the plain values that modules have most of
# The values and functions that hold no others.
ATOMS = (
    *NUMBERS, complex, bytes, range, slice, enum.Enum, torch.dtype, torch.device, torch.layout, torch.memory_format,
    type, ModuleType, CodeType,
)  # fmt: skip


class Unseen(Exception):
    """A value whose state cannot be compared: it may change from call to call."""


def tensors_of(module: nn.Module, item: Any) -> list[Tensor]:
    """All tensors that a function of these may use."""
    return [*tensors(item), *module.parameters(), *module.buffers()]


def kind(tensor: Tensor) -> Hashable:
    """All of a tensor but its values and its place in memory."""
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.requires_grad


def shape_of(item: Any) -> Hashable:
    """How nested tensors and numbers are nested."""
    leaves, form = tree_flatten(item)
    return str(form), tuple(isinstance(leaf, Tensor) for leaf in leaves)


def masked(item: Any) -> tuple[Any, list[Tensor]]:
    """The item with tensors in place of numbers, and those tensors."""
    numbers: list[Tensor] = []

    def mask(leaf: Any) -> Tensor:
        if not isinstance(leaf, Tensor):
            leaf = torch.tensor(leaf)
            numbers.append(leaf)
        return leaf

    return tree_map(mask, item), numbers


def settings(module: nn.Module) -> Hashable:
    """Whatever a module's calls depend on beside its parameters and buffers, as a value to compare.

    None where they may depend on more: an attribute is ``Unseen``, or hooks from outside the module's own file want to see every call.
    """
    if has_global_hook() or any(weight_hooks(parameter) for parameter in module.parameters()):
        return None
    for part in module.modules():
        for hooks in call_hooks(part):
            if any(getattr(hook, "__module__", None) != type(module).__module__ for hook in hooks.values()):
                return None
    try:
        return Comparison().of(module)
    except Unseen:
        return None


class Comparison:
    """Makes values comparable: equal results mean that a computation with either value is the same."""

    def __init__(self) -> None:
        self.seen: dict[int, tuple[int, Any]] = {}  # by id: how many had been seen before it, as objects may refer to each other

    def of(self, value: Any) -> Hashable:
        """A tensor by its place, an array by its content, a function by its code and what it closes over, others by what they hold.

        Raises:
            Unseen: an object of another class, which may have a state of its own, as a generator of random numbers or an iterator has.
        """
        if isinstance(value, NUMBERS):
            return value
        if isinstance(value, ATOMS):
            return type(value), repr(value) if isinstance(value, (range, slice)) else value
        if isinstance(value, Tensor):
            return value.data_ptr(), kind(value)
        if isinstance(value, (np.ndarray, np.generic)):
            return value.shape, value.dtype.str, value.tobytes()
        if id(value) in self.seen:
            return "seen", self.seen[id(value)][0]
        self.seen[id(value)] = len(self.seen), value  # kept, so that no other object gets its id
        return type(value), *map(self.of, self.held(value))

    def held(self, value: Any) -> list[Any]:
        """All that a value which is none of the above is made of."""
        if isinstance(value, (list, tuple)):
            return list(value)
        if isinstance(value, dict):
            return [*value.keys(), *value.values()]
        if isinstance(value, (set, frozenset)):
            return sorted(value, key=repr)
        if isinstance(value, nn.Module):
            parts = {name: part for name, part in value.__dict__.items() if name not in MODULE_ATTRIBUTES}
            return [parts, *value.children(), *(hook for hooks in call_hooks(value) for hook in hooks.values())]
        if isinstance(value, FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or ()]
            return [value.__code__, *cells, value.__defaults__, value.__kwdefaults__, value.__dict__]
        if isinstance(value, MethodType):
            return [value.__func__, value.__self__]
        if isinstance(value, partial):
            return [value.func, value.args, value.keywords]
        if isinstance(value, BuiltinFunctionType):
            return [value.__name__, value.__self__]  # a method of an object has that object, a function its module
        if dataclasses.is_dataclass(value) and value.__dataclass_params__.frozen:  # type: ignore[union-attr]
            return [getattr(value, field.name) for field in dataclasses.fields(value)]
        raise Unseen(f"{type(value).__name__} may have a state of its own")
