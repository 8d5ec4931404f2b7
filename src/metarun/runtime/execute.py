"""The one door to how work is done: a function of a module over many items, recorded and repeated, in threads side by side."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import nn

from metarun.runtime.recording import Recordings
from metarun.runtime.threads import Threads


class Executor:
    """Maps functions over items.

    Args:
        device: where the tensors lie; threads are for CPUs, a GPU has its own parallelism.
        record: record what a function does and repeat it without Python in between, to the same bits (see ``recording``).
        threads: ``auto``, as many as torch uses, or 1.
    """

    def __init__(self, device: torch.device, *, record: bool, threads: Literal["auto", 1]) -> None:
        self.recordings = Recordings(device) if record else None
        self.threads = Threads() if device.type == "cpu" and threads == "auto" else None

    def map(
        self, function: Callable[[Any, Any], Any], module: nn.Module, items: Sequence[Any], name: Hashable | None = None
    ) -> Iterator[Any]:
        """``function(module, item)`` of every item, in order.

        Args:
            function: of the module, or a replica of it, and an item of nested tensors and numbers; without effects beside what it returns.
            name: says all that the function depends on beside these; None: it is not recorded.
        """
        if self.recordings and name is not None:
            function = self.recordings.of(module, name, function)
        if self.threads:
            return self.threads.map(function, module, items)
        return (function(module, item) for item in items)
