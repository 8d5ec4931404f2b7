"""What the autograd functions of these operations share: their kernels, and how they work under the transforms of torch.func."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from metarun.kernels import select
from metarun.kernels.interface import Kernels
from metarun.runtime.private import unwrapped


def kernels_for(x: Tensor) -> Kernels:
    """The compiled loops for x's device.

    Raises:
        NotImplementedError: there are none; who calls these operations asks ``select.loops`` first.
    """
    found = select.loops(x.device)
    if found is None:
        raise NotImplementedError(f"no kernels for {x.device}")
    return found


def needs_gradient(x: Tensor) -> bool:
    """Whether a gradient with respect to x is asked for, also outside of the torch.vmap around it, of which x itself says nothing."""
    inside: Tensor | None = x
    while inside is not None and not inside.requires_grad:
        inside = unwrapped(inside)
    return inside is not None


def with_task_axis(info: Any, in_dims: tuple[Any, ...], values: tuple[Any, ...]) -> list[Any]:
    """The arguments of a ``vmap`` method with the tasks' axis first; tensors that tasks share are expanded, numbers stay as they are."""
    first = (value if dim is None else value.movedim(dim, 0) for value, dim in zip(values, in_dims))
    shared = (isinstance(value, Tensor) and dim is None for value, dim in zip(values, in_dims))
    return [value.expand(info.batch_size, *value.shape) if one else value for value, one in zip(first, shared)]
