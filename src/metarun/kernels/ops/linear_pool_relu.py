"""A linear map of few inputs, max-pooling and ReLU as one operation, with derivatives in the weights of any order under torch.vmap.
It is a net's first layer: patches of images, with the norm folded into the weights. The loops are in ``numba_linear_pool_relu``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from metarun.inner import upcast
from metarun.kernels.ops.transforms import kernels_for, with_task_axis
from metarun.runtime.recording import whole


def linear_pool_relu(patches: Tensor, weight: Tensor, bias: Tensor, window: int) -> Tensor:
    """relu(max_pool(patches weightᵀ + bias)).

    Args:
        patches: [n, h, w, k], which get no gradient.
        weight: [c, k].
        bias: [c].
        window: side of max-pooling's windows, whose stride is the same; 1: none.

    Returns:
        [n, c, h / window, w / window], odd borders cut.
    """
    if has_torch_function((patches, weight, bias)):
        return handle_torch_function(linear_pool_relu, (patches, weight, bias), patches, weight, bias, window)
    return LinearPoolReLUFunction.apply(patches, upcast(weight.mT), upcast(bias), window)[0]


class Covariance(torch.autograd.Function):
    """Mean [*tasks, k] and covariance [*tasks, k, k] in float64 of rows [*tasks, n, k], which get no gradient."""

    @staticmethod
    @whole
    def forward(rows: Tensor) -> tuple[Tensor, Tensor]:
        *tasks, _, inputs = rows.shape
        mean, spread = (torch.empty(*tasks, *size, dtype=torch.float64) for size in ((inputs,), (inputs, inputs)))
        loops = kernels_for(rows)
        assert loops.covariance is not None  # asked before
        loops.covariance(inputs)(loops.array(rows, 2), loops.array(mean, 1), loops.array(spread, 2))
        return mean, spread

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def jvp(ctx: Any, drows: Tensor | None) -> tuple[None, None]:
        refuse_forward_mode(drows)
        return None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        return Covariance.apply(*with_task_axis(info, in_dims, inputs)), (0, 0)


def refuse_forward_mode(tangent: Tensor | None) -> None:
    """Refuse forward mode with respect to images; reverse mode is torch's own (see ``needs_gradient``).

    Raises:
        NotImplementedError: there is a tangent.
    """
    if tangent is not None:
        raise NotImplementedError("a first layer has no forward-mode derivative by images: take reverse mode, torch.func.vjp or grad")


class LinearPoolReLUFunction(torch.autograd.Function):
    """y = relu(max_pool(patches @ weight + bias)) of patches [*tasks, n, h, w, k], weight [*tasks, k, c] and bias [*tasks, c].

    A further output without a gradient: argmax [*tasks, n, h / window, w / window, c] uint8.
    """

    @staticmethod
    @whole
    def forward(patches: Tensor, weight: Tensor, bias: Tensor, window: int) -> tuple[Tensor, Tensor]:
        y = patches.new_empty(*patches.shape[:-3], patches.shape[-3] // window, patches.shape[-2] // window, weight.shape[-1])
        argmax = torch.empty_like(y, dtype=torch.uint8)
        loops = kernels_for(patches)
        outputs = [loops.array(t, 4) for t in (y, argmax)]
        loops.linear_pool_relu(patches.shape[-1], weight.shape[-1], window).forward(
            loops.array(patches, 4), loops.array(weight, 2), loops.array(bias, 1), *outputs
        )
        return y.movedim(-1, -3), argmax

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        (patches, weight, bias, ctx.window), (_, argmax) = inputs, output
        ctx.mark_non_differentiable(argmax)
        ctx.set_materialize_grads(False)  # None, not zeros, in ``jvp`` for what does not move
        ctx.save_for_backward(patches, argmax)
        ctx.save_for_forward(patches, argmax, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: None) -> tuple[Any, ...]:
        return None, *LinearPoolReLUBackward.apply(*ctx.saved_tensors, g, ctx.window), None

    @staticmethod
    def jvp(ctx: Any, dpatches: Tensor | None, dweight: Tensor | None, dbias: Tensor | None, _window: None) -> tuple[Tensor, None]:
        refuse_forward_mode(dpatches)
        patches, argmax, weight, bias = ctx.saved_tensors
        along = [torch.zeros_like(t) if d is None else d for t, d in ((weight, dweight), (bias, dbias))]
        return LinearAtArgmax.apply(patches, argmax, *along, ctx.window), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        return LinearPoolReLUFunction.apply(*with_task_axis(info, in_dims, inputs)), (0, 0)


class LinearAtArgmax(torch.autograd.Function):
    """patches @ weight + bias at the places that argmax names, 0 where ReLU cut off: [*tasks, n, c, h / window, w / window]."""

    @staticmethod
    @whole
    def forward(patches: Tensor, argmax: Tensor, weight: Tensor, bias: Tensor, window: int) -> Tensor:
        y = patches.new_empty(argmax.shape)
        loops = kernels_for(patches)
        places = [loops.array(t, 4) for t in (argmax, y)]
        loops.linear_pool_relu(patches.shape[-1], weight.shape[-1], window).at_argmax(
            loops.array(patches, 4), loops.array(weight, 2), loops.array(bias, 1), *places
        )
        return y.movedim(-1, -3)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        patches, argmax, _, _, ctx.window = inputs
        ctx.save_for_backward(patches, argmax)
        ctx.save_for_forward(patches, argmax)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        return None, None, *LinearPoolReLUBackward.apply(*ctx.saved_tensors, g, ctx.window), None

    @staticmethod
    def jvp(ctx: Any, _patches: None, _argmax: None, dweight: Tensor, dbias: Tensor, _window: None) -> Tensor:
        return LinearAtArgmax.apply(*ctx.saved_tensors, dweight, dbias, ctx.window)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        return LinearAtArgmax.apply(*with_task_axis(info, in_dims, inputs)), 0


class LinearPoolReLUBackward(torch.autograd.Function):
    """The transpose of ``LinearAtArgmax``: g [*tasks, n, c, h / window, w / window] to the gradients in weight and bias."""

    @staticmethod
    @whole
    def forward(patches: Tensor, argmax: Tensor, g: Tensor, window: int) -> tuple[Tensor, Tensor]:
        inputs, channels = patches.shape[-1], argmax.shape[-1]
        gweight, gbias = (upcast(patches[..., :0]).new_empty(*patches.shape[:-4], *shape) for shape in ((inputs, channels), (channels,)))
        loops = kernels_for(patches)
        outputs = loops.array(gweight, 2), loops.array(gbias, 1)
        loops.linear_pool_relu(inputs, channels, window).backward(
            loops.array(patches, 4), loops.images(g), loops.array(argmax, 4), *outputs
        )
        return gweight, gbias

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        patches, argmax, _, ctx.window = inputs
        ctx.save_for_backward(patches, argmax)
        ctx.save_for_forward(patches, argmax)

    @staticmethod
    def backward(ctx: Any, v: Tensor, u: Tensor) -> tuple[Any, ...]:
        return None, None, LinearAtArgmax.apply(*ctx.saved_tensors, v, u, ctx.window), None

    @staticmethod
    def jvp(ctx: Any, _patches: None, _argmax: None, dg: Tensor, _window: None) -> tuple[Tensor, Tensor]:
        return LinearPoolReLUBackward.apply(*ctx.saved_tensors, dg, ctx.window)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        return LinearPoolReLUBackward.apply(*with_task_axis(info, in_dims, inputs)), (0, 0)
