"""Calls that are recorded once and then repeated without the Python around their operations.
On a small net transforms, autograd and modules take longer than the arithmetic that they arrange."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from metarun.runtime.cuda_graph import Graph
from metarun.runtime.program import Program
from metarun.runtime.settings import kind, masked, settings, shape_of, tensors_of
from metarun.runtime.tracer import Tracer, recording_loops, tensors, without_hidden_inputs

Function = Callable[[Any, Any], Any]
EAGER = 2  # calls before one is recorded: recording costs as much as several calls, and pays when there are many
MOST = 32  # kinds of calls of one module that are remembered: settings may change with every call


def record(function: Function, module: nn.Module, item: Any) -> tuple[Program, Any]:
    """The program of a function, and what it returned.

    Raises:
        CannotRepeat: it does not do the same every time.
    """
    inputs, (item, numbers) = tensors_of(module, item), masked(item)
    with without_hidden_inputs(), Tracer(inputs, numbers) as tracer:
        result = function(module, item)
    return Program(tracer.operations, [tracer.slot(tensor) for tensor in inputs], tracer.slotted(result)), result


class Entry:
    """What is known of calls that differ in the values of their tensors alone."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.calls, self.why_not = 0, ""
        self.program: Program | Graph | None = None


class Recordings:
    """Calls functions of a module and tensors, and repeats what they did where they would do the same again.

    They would where the name, the module's settings (``settings``), and shapes, strides and types of all tensors are the same. A
    function is called as it is, every time, if the module has an attribute whose state cannot be compared, or if the function looks
    into the data, does more with a number than to pass it on, asks Python's or NumPy's global generator, or uses tensors that are
    neither the module's parameters and buffers nor in its argument (on a GPU it may use others, which are read where they lie).
    """

    def __init__(self, device: torch.device) -> None:
        self.entries: WeakKeyDictionary[nn.Module, dict[Hashable, Entry]] = WeakKeyDictionary()
        self.device, self.lock = device, threading.Lock()
        self.pool: Any = None

    def of(self, module: nn.Module, name: Hashable, function: Function) -> Function:
        """``function`` of ``module``, or of replicas of it, and nested tensors and numbers; ``name`` says all else that it depends on.

        It should have no effect beside what it returns: the call in which it is recorded may run it twice. The module's settings stay
        what they are while it is called.
        """
        state = settings(module)
        if state is None:
            return function
        entries = self.entries.setdefault(module, {})

        def call(module: nn.Module, item: Any) -> Any:
            def eagerly() -> Any:
                with recording_loops() if self.device.type == "cpu" else nullcontext():
                    return function(module, item)

            inputs = tensors_of(module, item)
            # A CUDA graph reads weights where they lie.
            places = [t.data_ptr() for t in inputs[len(tensors(item)) :]] if self.device.type == "cuda" else []
            key = (name, state, shape_of(item), tuple(map(kind, inputs)), tuple(places))
            with self.lock:
                entry = entries.setdefault(key, Entry())
                entry.calls += 1
                while len(entries) > MOST:
                    del entries[next(iter(entries))]  # the oldest
            if entry.why_not or entry.calls <= EAGER:
                return eagerly()
            with entry.lock:
                if entry.program is None and not entry.why_not:
                    try:
                        if self.device.type == "cuda":
                            self.pool = self.pool or torch.cuda.graph_pool_handle()
                            entry.program = Graph(function, module, item, self.pool)
                        else:
                            entry.program, result = record(function, module, item)
                            return result
                    except Exception as error:  # if it is the function's own, it will come again
                        entry.why_not = f"{type(error).__name__}: {error}"
            return entry.program(inputs) if entry.program else eagerly()

        return call
