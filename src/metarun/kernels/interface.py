"""What a set of kernels offers: the same functions of the same arguments for a CPU (Numba) and for a GPU (Triton)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor


class Block(NamedTuple):
    """Kernels of a norm with max-pool and ReLU: itself, its derivative, and the derivative of that."""

    forward: Any
    backward: Any
    second: Any


class Lift(NamedTuple):
    """Kernels of a linear map with max-pool and ReLU: itself, the same for known places, and the transpose of that in the weights."""

    forward: Any
    pick: Any
    collect: Any


class Patches(NamedTuple):
    """Kernels that lay out what a convolution sees at every place, and the transpose."""

    gather: Any
    scatter: Any


class Kernels(NamedTuple):
    """All there are for a kind of device, and how they want tensors."""

    array: Callable[[Tensor, int], Any]
    block: Callable[[int, int], Block]
    lift: Callable[[int, int, int], Lift]
    patches: Callable[[int, int], Patches]
    covariance: Callable[[int], Any] | None  # None: torch's own operations are as fast

    def images(self, x: Tensor) -> Any:
        """x [*tasks, n, c, h, w] as [tasks, n, h, w, c], which is how it lies in memory."""
        return self.array(x.movedim(-3, -1), 4)
