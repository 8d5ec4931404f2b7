"""The processes that share a run under torchrun: each takes its share of the tasks, gradients and scores are joined.
One process is a world of its own, in which every operation does nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from metarun.errors import RunError


class World:
    """Rank and size of this process's world; ``World()`` is a process alone, ``World.join()`` what torchrun started.

    Every operation is collective: all ranks call it in the same order.

    Raises:
        RunError: another process of the run is gone.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @classmethod
    def join(cls) -> World:
        """The world that torchrun's environment variables describe; gloo on CPUs, nccl on GPUs."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    def share(self, indices: range) -> range:
        """This rank's contiguous part of ``indices``; the parts of all ranks in order are the whole."""
        n = len(indices)
        return indices[n * self.rank // self.size : n * (self.rank + 1) // self.size]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up ``.grad`` over ranks; afterwards all ranks hold the same, as one flat message."""
        if self.size == 1:
            return
        parameters = [p for p in parameters if p.requires_grad]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        self._call(dist.all_reduce, flat)
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters])):
            p.grad = part.view_as(p)

    def sum(self, values: dict[str, float]) -> dict[str, float]:
        """Add up named numbers over ranks; a rank without tasks may bring an empty dict."""
        if self.size == 1:
            return values
        everyone = self.gather(values)
        names = dict.fromkeys(name for part in everyone for name in part)
        return {name: sum(part.get(name, 0.0) for part in everyone) for name in names}

    def concatenate(self, array: np.ndarray) -> np.ndarray:
        """The ranks' arrays along the first axis, in rank order, on every rank."""
        return array if self.size == 1 else np.concatenate(self.gather(array))

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank."""
        return flag if self.size == 1 else any(self.gather(flag))

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        self._call(dist.all_gather_object, values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        self._call(dist.broadcast_object_list, box)
        return box[0]

    def _call(self, operation: Any, *arguments: Any) -> None:
        try:
            operation(*arguments)
        except RuntimeError as error:
            line = " ".join(str(error).split())[:120]
            raise RunError(f"another process of this run is gone ({line}); go on with: torchrun … -m metarun resume RUN") from None
