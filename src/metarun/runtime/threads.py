"""Chunks of tasks side by side on the cores of a CPU: a thread for each, which shares its arithmetic with no other chunk.
The operations of a small net are too short to be worth sharing among cores; tasks are independent of each other."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import nn

from metarun.runtime.private import MODULE_ATTRIBUTES, tree_leaves, tree_map
from metarun.runtime.settings import NUMBERS

Module = TypeVar("Module", bound=nn.Module)
Item = TypeVar("Item")
Result = TypeVar("Result")


def replica(module: Module, known: dict[int, nn.Module] | None = None) -> Module:
    """A module of the same parameters and buffers, in which ``functional_call`` can put others without the first one noticing."""
    known = {} if known is None else known
    if id(module) not in known:
        other = known[id(module)] = object.__new__(type(module))
        other.__dict__.update(module.__dict__)  # what copy.copy does, but it refuses parametrized modules
        other._parameters, other._buffers = dict(module._parameters), dict(module._buffers)
        other._modules = {name: child and replica(child, known) for name, child in module._modules.items()}
        # Modules may also be held in lists, or through a bound method. Numbers are skipped: replicas are made in every step.
        more = {name: value for name, value in module.__dict__.items() if not isinstance(value, NUMBERS) and name not in MODULE_ATTRIBUTES}
        held = {name: value for name, value in more.items() if any(map(owner, tree_leaves(value)))}
        if held:
            other.__dict__.update(tree_map(lambda leaf: _own(leaf, known), held))
    return known[id(module)]  # type: ignore[return-value]


def owner(value: Any) -> nn.Module | None:
    """The module that a value is, or is a method of."""
    value = value.__self__ if isinstance(value, MethodType) else value
    return value if isinstance(value, nn.Module) else None


def _own(value: Any, known: dict[int, nn.Module]) -> Any:
    """The same of the replicas."""
    module = owner(value)
    if module is None:
        return value
    other = replica(module, known)
    return MethodType(value.__func__, other) if isinstance(value, MethodType) else other


class Threads:
    """As many threads as torch has for an operation, started when they are first needed."""

    def __init__(self) -> None:
        self.pool: ThreadPoolExecutor | None = None

    def map(self, function: Callable[[Module, Item], Result], module: Module, items: Sequence[Item]) -> Iterator[Result]:
        """``function(module, item)`` for every item, in order; each thread has a replica of the module."""
        threads = torch.get_num_threads()
        if min(threads, len(items)) == 1:
            yield from (function(module, item) for item in items)
            return
        self.pool = self.pool or ThreadPoolExecutor(threads)
        replicas: queue.SimpleQueue[Module] = queue.SimpleQueue()
        for _ in range(threads):
            replicas.put(replica(module))
        derive, each = torch.is_grad_enabled(), max(1, threads // len(items))

        def work(item: Item) -> Result:
            mine = replicas.get()
            torch.set_num_threads(each)  # of this thread, which may have had more or fewer, and of the libraries below torch
            try:
                with torch.set_grad_enabled(derive):  # every thread has a switch of its own
                    return function(mine, item)
            finally:
                replicas.put(mine)

        try:
            yield from self.pool.map(work, items)
        finally:
            torch.set_num_threads(threads)
