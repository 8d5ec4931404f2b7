"""2x2 max-pooling whose derivatives of any order work under torch.vmap; those of torch's own do not where channels lie last in memory.
All in torch's operators."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = [2, 2]
REST: tuple[list[int], list[int], list[int]] = ([], [0, 0], [1, 1])  # stride as the side, no padding, no dilation


class MaxPool(torch.autograd.Function):
    """``max_pool`` of x [n, c, h, w], and as a further output where in x the largest values were: indices [n, c, h', w'] int64."""

    @staticmethod
    def forward(x: Tensor, ceil: bool) -> tuple[Tensor, Tensor]:
        return torch.ops.aten.max_pool2d_with_indices(x, WINDOW, *REST, ceil)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        (x, ctx.ceil), (_, indices) = inputs, output
        ctx.size = tuple(x.shape[-2:])
        ctx.mark_non_differentiable(indices)
        ctx.save_for_backward(indices)
        ctx.save_for_forward(indices)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor, _: None) -> tuple[Tensor, None]:
        return MaxUnpool.apply(cotangent, *ctx.saved_tensors, ctx.size, ctx.ceil), None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, _ceil: None) -> tuple[Tensor, None]:
        return at_indices(dx, *ctx.saved_tensors), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, ceil: bool) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        x = x.movedim(in_dims[0], 0)
        largest, indices = (t.unflatten(0, x.shape[:2]) for t in MaxPool.apply(x.flatten(0, 1), ceil))
        return (largest, indices), (0, 0)


class MaxUnpool(torch.autograd.Function):
    """The transpose of ``at_indices``: values [n, c, h', w'] at the indices of an image of this size, zeros elsewhere."""

    @staticmethod
    def forward(values: Tensor, indices: Tensor, size: tuple[int, int], ceil: bool) -> Tensor:
        shape = (*values.shape[:2], *size)  # all that is asked of the input
        x = torch.empty(shape, dtype=values.dtype, device=values.device, memory_format=torch.channels_last)
        return torch.ops.aten.max_pool2d_with_indices_backward(values, x, WINDOW, *REST, ceil, indices)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, indices, ctx.size, ctx.ceil = inputs
        ctx.save_for_backward(indices)
        ctx.save_for_forward(indices)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        return at_indices(cotangent, *ctx.saved_tensors), None, None, None

    @staticmethod
    def jvp(ctx: Any, dvalues: Tensor, *_: None) -> Tensor:
        return MaxUnpool.apply(dvalues, *ctx.saved_tensors, ctx.size, ctx.ceil)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], values: Tensor, indices: Tensor, size: tuple[int, int], ceil: bool) -> tuple[Tensor, int]:
        tasks = info.batch_size
        values, indices = (t.expand(tasks, *t.shape) if dim is None else t.movedim(dim, 0) for t, dim in zip((values, indices), in_dims))
        return MaxUnpool.apply(values.flatten(0, 1), indices.flatten(0, 1), size, ceil).unflatten(0, values.shape[:2]), 0


def at_indices(x: Tensor, indices: Tensor) -> Tensor:
    """The values of x [n, c, h, w] at indices [n, c, h', w'], which number an image's places row by row: [n, c, h', w']."""
    places = indices.movedim(1, -1)
    return x.movedim(1, -1).flatten(1, 2).gather(1, places.flatten(1, 2)).unflatten(1, places.shape[1:3]).movedim(-1, 1)


def max_pool(x: Tensor, *, ceil: bool = False) -> Tensor:
    """The largest value of every 2x2 window of x [n, c, h, w]: [n, c, h/2, w/2]; odd borders are cut, or with ``ceil`` pooled alone."""
    if torch.compiler.is_compiling():  # as ``conv.convolve``
        return F.max_pool2d(x, WINDOW, ceil_mode=ceil)
    return MaxPool.apply(x, ceil)[0]
