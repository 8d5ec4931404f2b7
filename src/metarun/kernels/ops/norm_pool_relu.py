"""Batch norm, max-pooling and ReLU, which follow a convolution, as one operation with derivatives of any order under torch.vmap.
The loops are in ``numba_norm_pool_relu``, for a GPU in ``triton_norm_pool_relu``; here is how they are each other's derivatives."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vjp

from metarun.kernels.ops.transforms import kernels_for, with_task_axis
from metarun.runtime.tracer import opaque


def norm_pool_relu(x: Tensor, weight: Tensor, bias: Tensor, eps: float, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """relu(max_pool(norm(x))), and the batch's moments.

    Args:
        x: [n, c, h, w], normalised over n, h and w.
        weight, bias: [c], of the norm.
        eps: added to the variance.
        window: side of max-pooling's windows, whose stride is the same; 1: none.

    Returns:
        [n, c, h / window, w / window], odd borders cut; mean [c] and variance [c] of x.
    """
    y, _, mean, var = NormPoolReLUFunction.apply(x, weight, bias, eps, window)
    return y, mean, var


def empty_images(x: Tensor, height: int, width: int) -> Tensor:
    """Room for images [*n, height, width, c], with n and c as in x [*n, c, h, w]."""
    return x.new_empty(*x.shape[:-3], height, width, x.shape[-3])


class NormPoolReLUFunction(torch.autograd.Function):
    """y = relu(max_pool(norm(x))) of x [*tasks, n, c, h, w] with weight and bias [*tasks, c], over the batch and its places.

    Further outputs without a gradient: argmax [*tasks, n, h / window, w / window, c] uint8, mean and var [*tasks, c].
    """

    @staticmethod
    @opaque
    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, window: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y = empty_images(x, x.shape[-2] // window, x.shape[-1] // window)
        argmax = torch.empty_like(y, dtype=torch.uint8)
        mean, var = weight.new_empty(weight.shape), weight.new_empty(weight.shape)
        loops = kernels_for(x)
        small = [loops.array(t, 1) for t in (weight, bias, mean, var)]
        outputs = [loops.array(t, 4) for t in (y, argmax)]
        loops.norm_pool_relu(x.shape[-3], window).forward(loops.images(x), *small[:2], eps, *outputs, *small[2:])
        return y.movedim(-1, -3), argmax, mean, var

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, ctx.eps, ctx.window = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, weight, bias, *output[1:])
        ctx.save_for_forward(x, weight, bias, *output[1:])

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: None) -> tuple[Any, ...]:
        return *NormPoolReLUBackward.apply(g, *ctx.saved_tensors, ctx.eps, ctx.window), None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None, *_: None) -> tuple[Any, ...]:
        x, weight, bias, argmax, *moments = ctx.saved_tensors
        along = [torch.zeros_like(t) if d is None else d for t, d in ((x, dx), (weight, dweight), (bias, dbias))]
        none = torch.zeros(argmax.shape, dtype=x.dtype, device=x.device).movedim(-1, -3)
        return NormPoolReLUDoubleBackward.apply(*along, none, x, weight, bias, argmax, *moments, ctx.eps, ctx.window)[0], None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return NormPoolReLUFunction.apply(*with_task_axis(info, in_dims, inputs)), (0, 0, 0, 0)


class NormPoolReLUBackward(torch.autograd.Function):
    """gx, gweight, gbias: the gradient of ⟨g, y⟩ with respect to x, weight and bias, for g and y [*tasks, n, c, h / window, w / window]."""

    @staticmethod
    @opaque
    def forward(
        g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, argmax: Tensor, mean: Tensor, var: Tensor, eps: float, window: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        gx = empty_images(x, *x.shape[-2:])
        gweight, gbias = torch.empty_like(mean), torch.empty_like(mean)
        loops = kernels_for(x)
        small = [loops.array(t, 1) for t in (mean, var, gweight, gbias)]
        loops.norm_pool_relu(x.shape[-3], window).backward(
            loops.images(g),
            loops.images(x),
            loops.array(weight, 1),
            loops.array(argmax, 4),
            *small[:2],
            eps,
            loops.array(gx, 4),
            *small[2:],
        )
        return gx.movedim(-1, -3), gweight, gbias

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.eps, ctx.window = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, v: Tensor, a: Tensor, b: Tensor) -> tuple[Any, ...]:
        return *NormPoolReLUDoubleBackward.apply(v, a, b, *ctx.saved_tensors, ctx.eps, ctx.window), *[None] * 6

    @staticmethod
    def jvp(ctx: Any, dg: Tensor | None, dx: Tensor | None, dweight: Tensor | None, *_: None) -> tuple[Any, ...]:
        g, x, weight, *rest = ctx.saved_tensors
        dg, dx, dweight = (torch.zeros_like(t) if d is None else d for t, d in ((g, dg), (x, dx), (weight, dweight)))
        gx, gweight, gbias = NormPoolReLUBackward.apply(dg, x, weight, *rest, ctx.eps, ctx.window)
        # Second derivatives are symmetric, so that the backward pass is the forward-mode one as well; the bias has none.
        _, hx, hweight = NormPoolReLUDoubleBackward.apply(dx, dweight, torch.zeros_like(dweight), *ctx.saved_tensors, ctx.eps, ctx.window)
        return gx + hx, gweight + hweight, gbias

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return NormPoolReLUBackward.apply(*with_task_axis(info, in_dims, inputs)), (0, 0, 0)


class NormPoolReLUDoubleBackward(torch.autograd.Function):
    """The gradient of ⟨v, gx⟩ + ⟨a, gweight⟩ + ⟨b, gbias⟩ with respect to g, x and weight.

    gx, gweight and gbias are those of ``NormPoolReLUBackward``; v is as x, a and b as weight.
    """

    @staticmethod
    @opaque
    def forward(
        v: Tensor, a: Tensor, b: Tensor, g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, argmax: Tensor, mean: Tensor, var: Tensor,
        eps: float, window: int,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        gg, gx, gweight = empty_images(g, *g.shape[-2:]), empty_images(x, *x.shape[-2:]), torch.empty_like(mean)
        loops = kernels_for(x)
        small = [loops.array(t, 1) for t in (a, b, weight, mean, var, gweight)]
        loops.norm_pool_relu(x.shape[-3], window).double_backward(
            loops.images(v), *small[:2], loops.images(g), loops.images(x), small[2], loops.array(argmax, 4), *small[3:5], eps,
            loops.array(gg, 4), loops.array(gx, 4), small[5],
        )  # fmt: skip
        return gg.movedim(-1, -3), gx.movedim(-1, -3), gweight

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.eps, ctx.window = inputs
        ctx.save_for_backward(*tensors[:7])
        ctx.save_for_forward(*tensors[:7])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        # Third derivatives are asked for too seldom to be worth a kernel.
        return *vjp(partial(double_backward, ctx.eps, ctx.window), *ctx.saved_tensors)[1](cotangents), *[None] * 5

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Any, ...]:
        pairs = zip(ctx.saved_tensors, tangents)
        along = tuple(torch.zeros_like(t) if d is None else d for t, d in pairs)
        return torch.func.jvp(partial(double_backward, ctx.eps, ctx.window), ctx.saved_tensors, along)[1]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return NormPoolReLUDoubleBackward.apply(*with_task_axis(info, in_dims, inputs)), (0, 0, 0)


def in_torch(eps: float, window: int, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """y of ``NormPoolReLUFunction`` in torch's operators."""
    centred = x - x.mean((-4, -2, -1), keepdim=True)
    scale = torch.rsqrt((centred * centred).mean((-4, -2, -1), keepdim=True) + eps)
    y = centred * scale * weight[..., None, :, None, None] + bias[..., None, :, None, None]
    return F.relu(y.flatten(0, -4).unfold(-2, window, window).unfold(-2, window, window).amax((-2, -1)).unflatten(0, y.shape[:-3]))


def double_backward(
    eps: float, window: int, v: Tensor, a: Tensor, b: Tensor, g: Tensor, x: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``NormPoolReLUDoubleBackward`` in torch's operators."""

    def backward(g: Tensor, x: Tensor, weight: Tensor) -> Any:
        return vjp(partial(in_torch, eps, window), x, weight, bias)[1](g)

    return vjp(backward, g, x, weight)[1]((v, a, b))
