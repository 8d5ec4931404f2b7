"""The processes that share a run under torchrun: each takes its share of the tasks, gradients and scores are joined.
One process is a world of its own, in which every operation does nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from metarun.errors import RunError, UserError
from metarun.runtime.environment import several

T = TypeVar("T")


class Alone(RunError):
    """Another process of the run is gone, so the rest cannot go on."""


class World:
    """Rank and size of this process's world; ``World()`` is a process alone, ``World.join()`` what torchrun started.

    Every operation is collective: all ranks call it in the same order.

    Raises:
        Alone: another process of the run is gone.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @classmethod
    def join(cls) -> World:
        """The world that torchrun's environment variables describe; gloo on CPUs, nccl on GPUs."""
        if not several():
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    def share(self, indices: range) -> range:
        """This rank's contiguous part of ``indices``; the parts of all ranks in order are the whole."""
        n = len(indices)
        return indices[n * self.rank // self.size : n * (self.rank + 1) // self.size]

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up ``.grad`` over ranks, as one flat message; afterwards all ranks hold the same.

        A gradient that no rank has stays None: an optimizer leaves such a parameter alone, weight decay included.
        """
        if self.size == 1:
            return
        parameters = [p for p in parameters if p.requires_grad]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        present = grads[0].new_tensor([p.grad is not None for p in parameters])
        flat = torch.cat([*(grad.reshape(-1) for grad in grads), present])
        self._call(dist.all_reduce, flat)
        *parts, present = flat.split([*(p.numel() for p in parameters), len(parameters)])
        for p, part, ranks in zip(parameters, parts, present.tolist()):
            p.grad = part.view_as(p) if ranks else None

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
        if self.size == 1:
            return flag
        up = torch.tensor(int(flag))
        self._call(dist.all_reduce, up)  # one message, where objects take two: it is asked in every iteration
        return bool(up)

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

    def together(self, build: Callable[[], T]) -> T:
        """``build()``, if it works on all ranks; otherwise the first failure, on every rank, so that none waits for the others."""
        if self.size == 1:
            return build()
        result, failure = None, None
        try:
            result = build()
        except (UserError, RunError) as error:
            failure = error
        except Exception as error:
            failure = RunError(f"rank {self.rank} failed: {type(error).__name__}: {' '.join(str(error).split())}")
        for first in self.gather(failure):
            if first:
                raise first
        return result  # type: ignore[return-value]

    def _call(self, operation: Any, *arguments: Any) -> None:
        try:
            operation(*arguments)
        except RuntimeError:
            raise Alone("another process of this run is gone") from None
