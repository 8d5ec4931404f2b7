"""Copies of modules and functions that share or replace their tensors, so that they can be changed without the original noticing."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from types import BuiltinFunctionType, CellType, FunctionType, MethodType
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

from metarun.runtime.private import MODULE_ATTRIBUTES, as_parameter, is_way_back
from metarun.runtime.settings import ATOMS, NUMBERS, Unseen

Module = TypeVar("Module", bound=nn.Module)


class Copier:
    """Copies whatever holds a module or a tensor; all else is shared.

    Args:
        tensor: what to put in place of a tensor.
        strict: raise ``Unseen`` at an object that may hold tensors out of sight; otherwise such an object is shared.
    """

    def __init__(self, tensor: Callable[[Tensor], Tensor], *, strict: bool) -> None:
        self.tensor, self.strict = tensor, strict
        self.done: dict[int, Any] = {}  # by id of the original

    def of(self, value: Any) -> Any:
        """The copy: modules, functions with what they close over, partials, bound methods, containers, frozen dataclasses."""
        if isinstance(value, Tensor):
            return self.tensor(value)
        if isinstance(value, (*ATOMS, np.ndarray, np.generic)):
            return value
        if id(value) in self.done:
            return self.done[id(value)]
        if isinstance(value, nn.Module):
            return self.module(value)
        if isinstance(value, FunctionType):
            return self.function(value)
        made = self.done[id(value)] = self.held(value)
        return made

    def module(self, module: Module) -> Module:
        """A module of the same class."""
        other = self.done[id(module)] = object.__new__(type(module))
        other.__dict__.update(module.__dict__)  # as copy.copy does, which refuses parametrized modules
        parameters: Any = {name: p if p is None else as_parameter(p, self.tensor(p)) for name, p in module._parameters.items()}
        other._parameters = parameters
        other._buffers = {name: b if b is None else self.tensor(b) for name, b in module._buffers.items()}
        other._modules = {name: self.of(child) for name, child in module._modules.items()}
        # Modules may also be held in lists, or through a bound method. Numbers are skipped: replicas are made in every step.
        for name, value in module.__dict__.items():
            if not isinstance(value, NUMBERS) and name not in MODULE_ATTRIBUTES:
                other.__dict__[name] = self.of(value)
        return other

    def function(self, function: FunctionType) -> FunctionType:
        """A function with copies of what it closes over; itself if it closes over nothing."""
        if not (function.__closure__ or function.__defaults__ or function.__kwdefaults__):
            return function
        if self.strict and is_way_back(function):
            raise Unseen("the way back of torch.func.vjp goes through a graph, which other tensors are no part of")
        cells = tuple(CellType() for _ in function.__closure__ or ())
        other = FunctionType(function.__code__, function.__globals__, function.__name__, None, cells)
        self.done[id(function)] = other  # before its cells, one of which may hold the function itself
        for cell, original in zip(cells, function.__closure__ or ()):
            cell.cell_contents = self.of(original.cell_contents)
        other.__defaults__, other.__kwdefaults__ = self.of(function.__defaults__), self.of(function.__kwdefaults__)
        other.__dict__.update(function.__dict__)
        return other

    def held(self, value: Any) -> Any:
        """A copy of what holds others; the same object where nothing in it had to be copied."""
        if type(value) in (dict, OrderedDict):
            made = type(value)((name, self.of(inner)) for name, inner in value.items())
            return made if any(made[name] is not inner for name, inner in value.items()) else value
        if isinstance(value, (list, tuple)):
            parts = [self.of(inner) for inner in value]
            if all(a is b for a, b in zip(parts, value)):
                return value
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        if isinstance(value, MethodType):
            return MethodType(value.__func__, self.of(value.__self__))
        if isinstance(value, partial):
            return partial(self.of(value.func), *self.of(value.args), **self.of(value.keywords))
        if dataclasses.is_dataclass(value) and value.__dataclass_params__.frozen:  # type: ignore[union-attr]
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
            others = {name: self.of(inner) for name, inner in fields.items()}
            same = all(others[name] is inner for name, inner in fields.items())
            return value if same else dataclasses.replace(value, **others)  # type: ignore[type-var]
        if isinstance(value, BuiltinFunctionType):
            self.of(value.__self__)
        elif self.strict and not isinstance(value, (set, frozenset)):
            raise Unseen(f"{type(value).__name__} may hold tensors out of sight")
        return value


def replica(module: Module) -> Module:
    """A module of the same parameters and buffers, in which ``functional_call`` can put others without the first one noticing."""
    return Copier(lambda tensor: tensor, strict=False).of(module)


def lifted(function: Any) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
    """All tensors that a function, or nested functions, close over, and how to make the same function of others in their place.

    Parameters and buffers of modules are among them, and the tensors in attributes of modules.

    Raises:
        Unseen: it closes over an object that may hold tensors out of sight.
    """
    found: dict[int, Tensor] = {}
    Copier(lambda tensor: found.setdefault(id(tensor), tensor), strict=True).of(function)

    def of(others: Sequence[Tensor]) -> Any:
        by_id = dict(zip(found, others))
        return Copier(lambda tensor: by_id[id(tensor)], strict=True).of(function)

    return list(found.values()), of


class Caller(nn.Module):
    """A method as a module that calls what it is given with it: ``functional_call`` then puts other weights into the method meanwhile."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.method, *arguments)
