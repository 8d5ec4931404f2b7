"""Chunks of tasks side by side on the cores of a CPU: a thread for each, which shares its arithmetic with no other chunk.
The operations of a small net are too short to be worth sharing among cores; tasks are independent of each other."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from metarun.runtime.replica import replica

Module = TypeVar("Module", bound=nn.Module)
Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def alone() -> Iterator[None]:
    """Within, this thread shares its arithmetic with no other.

    A thread that has helped with an operation waits for the next one by spinning, for milliseconds and on a core that a chunk could have.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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

        with alone():
            yield from self.pool.map(work, items)
