"""Mixed precision that works under function transforms: convolutions and linear layers in bfloat16, all else as it comes.
torch.autocast has no effect inside torch.vmap (torch 2.13; tests/contract shows it), so the casts are made in Python."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from metarun.kernels.ops.conv import convolve, linear
from metarun.kernels.ops.linear_pool_relu import linear_pool_relu


class BFloat16(TorchFunctionMode):
    """While active, convolutions and linear layers compute in bfloat16 whatever their arguments' floating type.

    Weights, and so gradients and updates, stay fp32; normalisation statistics and losses upcast what they are given.
    Backward passes that run a function again (``inner.gradient`` in mode ``mixed``) must lie inside, too.
    """

    FUNCTIONS = frozenset({F.conv1d, F.conv2d, F.conv3d, F.linear, convolve, linear, linear_pool_relu})

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self.FUNCTIONS:
            args = tuple(_narrow(arg) for arg in args)
            kwargs = {name: _narrow(arg) for name, arg in kwargs.items()}
        return func(*args, **kwargs)


def _narrow(value: Any) -> Any:
    return value.to(torch.bfloat16) if isinstance(value, Tensor) and value.is_floating_point() else value


def slowdown(device: torch.device) -> float:
    """How many times as long as in fp32 a matrix product takes in bfloat16 on a device: below 1 where it has instructions for it."""
    return product_seconds(torch.bfloat16, device) / product_seconds(torch.float32, device)


def product_seconds(dtype: torch.dtype, device: torch.device) -> float:
    """Seconds of a product of square matrices, the best of some; some milliseconds in all."""
    side = 2048 if device.type == "cuda" else 512
    a, best = torch.ones(side, side, dtype=dtype, device=device), float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begun)
    return best
