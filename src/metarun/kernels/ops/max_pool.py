"""Max-pooling with derivatives of any order that torch.vmap can batch: those of torch's own it cannot where channels lie last in memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = [2, 2]
REST: tuple[list[int], list[int], list[int]] = ([], [0, 0], [1, 1])  # stride as the side, no padding, no dilation


class Pool(torch.autograd.Function):
    """``max_pool``, and where in x the largest values were."""

    @staticmethod
    def forward(x: Tensor, ceil: bool) -> tuple[Tensor, Tensor]:
        return torch.ops.aten.max_pool2d_with_indices(x, SIDE, *REST, ceil)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        (x, ctx.ceil), (_, where) = inputs, output
        ctx.size = tuple(x.shape[-2:])
        ctx.mark_non_differentiable(where)
        ctx.save_for_backward(where)
        ctx.save_for_forward(where)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor, _: None) -> tuple[Tensor, None]:
        return Spread.apply(cotangent, *ctx.saved_tensors, ctx.size, ctx.ceil), None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, _ceil: None) -> tuple[Tensor, None]:
        return pick(dx, *ctx.saved_tensors), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, ceil: bool) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        x = x.movedim(in_dims[0], 0)
        largest, where = (t.unflatten(0, x.shape[:2]) for t in Pool.apply(x.flatten(0, 1), ceil))
        return (largest, where), (0, 0)


class Spread(torch.autograd.Function):
    """The transpose of ``pick``: values [n, c, h', w'] where they belong in an image of this size, zeros elsewhere."""

    @staticmethod
    def forward(values: Tensor, where: Tensor, size: tuple[int, int], ceil: bool) -> Tensor:
        shape = (*values.shape[:2], *size)  # all that is asked of the input
        x = torch.empty(shape, dtype=values.dtype, device=values.device, memory_format=torch.channels_last)
        return torch.ops.aten.max_pool2d_with_indices_backward(values, x, SIDE, *REST, ceil, where)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, where, ctx.size, ctx.ceil = inputs
        ctx.save_for_backward(where)
        ctx.save_for_forward(where)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        return pick(cotangent, *ctx.saved_tensors), None, None, None

    @staticmethod
    def jvp(ctx: Any, dvalues: Tensor, *_: None) -> Tensor:
        return Spread.apply(dvalues, *ctx.saved_tensors, ctx.size, ctx.ceil)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], values: Tensor, where: Tensor, size: tuple[int, int], ceil: bool) -> tuple[Tensor, int]:
        tasks = info.batch_size
        values, where = (t.expand(tasks, *t.shape) if dim is None else t.movedim(dim, 0) for t, dim in zip((values, where), in_dims))
        return Spread.apply(values.flatten(0, 1), where.flatten(0, 1), size, ceil).unflatten(0, values.shape[:2]), 0


def pick(x: Tensor, where: Tensor) -> Tensor:
    """What lies in x [n, c, h, w] at ``where`` [n, c, h', w'], places in row-major order: [n, c, h', w']."""
    places = where.movedim(1, -1)
    return x.movedim(1, -1).flatten(1, 2).gather(1, places.flatten(1, 2)).unflatten(1, places.shape[1:3]).movedim(-1, 1)


def max_pool(x: Tensor, *, ceil: bool = False) -> Tensor:
    """The largest value of every 2x2 window of x [n, c, h, w]: [n, c, h/2, w/2]; odd borders are cut, or with ``ceil`` pooled alone."""
    if torch.compiler.is_compiling():  # as ``conv.convolve``
        return F.max_pool2d(x, SIDE, ceil_mode=ceil)
    return Pool.apply(x, ceil)[0]
