"""What follows a convolution, norm or bias, max-pooling and ReLU, as one operation, with derivatives of any order under torch.vmap.
The loops are in ``kernels``, for a GPU in ``gpu``; here is how they are each other's derivatives."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vjp
from torch.overrides import handle_torch_function, has_torch_function

from metarun.inner import widen
from metarun.kernels import select
from metarun.kernels.interface import Kernels
from metarun.runtime.private import unwrapped
from metarun.runtime.tracer import opaque


def of(x: Tensor) -> Kernels:
    """The kernels for x's device."""
    found = select.loops(x.device)
    if found is None:
        raise NotImplementedError(f"no kernels for {x.device}")
    return found


def derived(x: Tensor) -> bool:
    """Whether anything goes back through x, also outside of the torch.vmap around it, of which x itself says nothing."""
    inside: Tensor | None = x
    while inside is not None and not inside.requires_grad:
        inside = unwrapped(inside)
    return inside is not None


def empty(x: Tensor, height: int, width: int) -> Tensor:
    """[*n, h, w, c], for n and c as in x [*n, c, h', w']."""
    return x.new_empty(*x.shape[:-3], height, width, x.shape[-3])


def stacked(info: Any, in_dims: tuple[Any, ...], values: tuple[Any, ...]) -> list[Any]:
    """The tensors among the values with the tasks' axis first, which those that tasks share gain."""
    stack = (value if dim is None else value.movedim(dim, 0) for value, dim in zip(values, in_dims))
    shared = (isinstance(value, Tensor) and dim is None for value, dim in zip(values, in_dims))
    return [value.expand(info.batch_size, *value.shape) if one else value for value, one in zip(stack, shared)]


def normed(x: Tensor, weight: Tensor, bias: Tensor, eps: float, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """relu(max_pool(norm(x))) of x [n, c, h, w], over its batch and places, and their mean and variance [c]; pools window x window."""
    y, _, mean, var = Normed.apply(x, weight, bias, eps, window)
    return y, mean, var


def lifted(seen: Tensor, weight: Tensor, bias: Tensor, window: int) -> Tensor:
    """relu(max_pool(weight seen + bias)) of patches [n, h, w, k] by ``weight`` [c, k] and ``bias`` [c]: [n, c, h / window, w / window]."""
    if has_torch_function((seen, weight, bias)):
        return handle_torch_function(lifted, (seen, weight, bias), seen, weight, bias, window)
    return Lifted.apply(seen, widen(weight.mT), widen(bias), window)[0]


class Covariance(torch.autograd.Function):
    """Mean [*tasks, k] and covariance [*tasks, k, k] in float64 of rows [*tasks, n, k], which nothing is differentiated by."""

    @staticmethod
    @opaque
    def forward(rows: Tensor) -> tuple[Tensor, Tensor]:
        *tasks, _, inputs = rows.shape
        mean, spread = (torch.empty(*tasks, *size, dtype=torch.float64) for size in ((inputs,), (inputs, inputs)))
        loops = of(rows)
        assert loops.covariance is not None  # asked before
        loops.covariance(inputs)(loops.array(rows, 2), loops.array(mean, 1), loops.array(spread, 2))
        return mean, spread

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def jvp(ctx: Any, drows: Tensor | None) -> tuple[None, None]:
        refuse(drows)
        return None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        return Covariance.apply(*stacked(info, in_dims, inputs)), (0, 0)


class Normed(torch.autograd.Function):
    """relu(max_pool(norm(x))) of x [*tasks, n, c, h, w] with weight and bias [*tasks, c], over the batch and its places.

    Also where every output is from, and the batch's mean and variance.
    """

    @staticmethod
    @opaque
    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, window: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y = empty(x, x.shape[-2] // window, x.shape[-1] // window)
        where = torch.empty_like(y, dtype=torch.uint8)
        mean, var = weight.new_empty(weight.shape), weight.new_empty(weight.shape)
        loops = of(x)
        small = [loops.array(t, 1) for t in (weight, bias, mean, var)]
        outputs = [loops.array(t, 4) for t in (y, where)]
        loops.block(x.shape[-3], window).forward(loops.images(x), *small[:2], eps, *outputs, *small[2:])
        return y.movedim(-1, -3), where, mean, var

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, ctx.eps, ctx.window = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, weight, bias, *output[1:])
        ctx.save_for_forward(x, weight, bias, *output[1:])

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: None) -> tuple[Any, ...]:
        return *First.apply(g, *ctx.saved_tensors, ctx.eps, ctx.window), None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None, *_: None) -> tuple[Any, ...]:
        x, weight, bias, where, *moments = ctx.saved_tensors
        along = [torch.zeros_like(t) if d is None else d for t, d in ((x, dx), (weight, dweight), (bias, dbias))]
        none = torch.zeros(where.shape, dtype=x.dtype, device=x.device).movedim(-1, -3)
        return Second.apply(*along, none, x, weight, bias, where, *moments, ctx.eps, ctx.window)[0], None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return Normed.apply(*stacked(info, in_dims, inputs)), (0, 0, 0, 0)


class First(torch.autograd.Function):
    """The gradient of ⟨g, ``Normed``⟩ with respect to x, weight and bias."""

    @staticmethod
    @opaque
    def forward(
        g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, where: Tensor, mean: Tensor, var: Tensor, eps: float, window: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        gx = empty(x, *x.shape[-2:])
        gweight, gbias = torch.empty_like(mean), torch.empty_like(mean)
        loops = of(x)
        small = [loops.array(t, 1) for t in (mean, var, gweight, gbias)]
        loops.block(x.shape[-3], window).backward(
            loops.images(g), loops.images(x), loops.array(weight, 1), loops.array(where, 4), *small[:2], eps, loops.array(gx, 4), *small[2:]
        )
        return gx.movedim(-1, -3), gweight, gbias

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.eps, ctx.window = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, v: Tensor, a: Tensor, b: Tensor) -> tuple[Any, ...]:
        return *Second.apply(v, a, b, *ctx.saved_tensors, ctx.eps, ctx.window), *[None] * 6

    @staticmethod
    def jvp(ctx: Any, dg: Tensor | None, dx: Tensor | None, dweight: Tensor | None, *_: None) -> tuple[Any, ...]:
        g, x, weight, *rest = ctx.saved_tensors
        dg, dx, dweight = (torch.zeros_like(t) if d is None else d for t, d in ((g, dg), (x, dx), (weight, dweight)))
        gx, gweight, gbias = First.apply(dg, x, weight, *rest, ctx.eps, ctx.window)
        # Second derivatives are symmetric, so that going back is going forward; the bias has none.
        _, hx, hweight = Second.apply(dx, dweight, torch.zeros_like(dweight), *ctx.saved_tensors, ctx.eps, ctx.window)
        return gx + hx, gweight + hweight, gbias

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return First.apply(*stacked(info, in_dims, inputs)), (0, 0, 0)


class Second(torch.autograd.Function):
    """The gradient of ⟨v, gx⟩ + ⟨a, gweight⟩ + ⟨b, gbias⟩, of the outcomes of ``First``, with respect to g, x and weight."""

    @staticmethod
    @opaque
    def forward(
        v: Tensor, a: Tensor, b: Tensor, g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, where: Tensor, mean: Tensor, var: Tensor,
        eps: float, window: int,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        gg, gx, gweight = empty(g, *g.shape[-2:]), empty(x, *x.shape[-2:]), torch.empty_like(mean)
        loops = of(x)
        small = [loops.array(t, 1) for t in (a, b, weight, mean, var, gweight)]
        loops.block(x.shape[-3], window).second(
            loops.images(v), *small[:2], loops.images(g), loops.images(x), small[2], loops.array(where, 4), *small[3:5], eps,
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
        # Nothing asks for third derivatives often enough to be worth a kernel.
        return *vjp(partial(second, ctx.eps, ctx.window), *ctx.saved_tensors)[1](cotangents), *[None] * 5

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Any, ...]:
        pairs = zip(ctx.saved_tensors, tangents)
        along = tuple(torch.zeros_like(t) if d is None else d for t, d in pairs)
        return torch.func.jvp(partial(second, ctx.eps, ctx.window), ctx.saved_tensors, along)[1]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return Second.apply(*stacked(info, in_dims, inputs)), (0, 0, 0)


def plain(eps: float, window: int, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``Normed`` in torch's operators."""
    centred = x - x.mean((-4, -2, -1), keepdim=True)
    scale = torch.rsqrt((centred * centred).mean((-4, -2, -1), keepdim=True) + eps)
    y = centred * scale * weight[..., None, :, None, None] + bias[..., None, :, None, None]
    return F.relu(y.flatten(0, -4).unfold(-2, window, window).unfold(-2, window, window).amax((-2, -1)).unflatten(0, y.shape[:-3]))


def second(
    eps: float, window: int, v: Tensor, a: Tensor, b: Tensor, g: Tensor, x: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``Second`` in torch's operators."""

    def first(g: Tensor, x: Tensor, weight: Tensor) -> Any:
        return vjp(partial(plain, eps, window), x, weight, bias)[1](g)

    return vjp(first, g, x, weight)[1]((v, a, b))


def refuse(tangent: Tensor | None) -> None:
    """Raise NotImplementedError for a derivative by images in forward mode; those back through them are torch's (``derived``)."""
    if tangent is not None:
        raise NotImplementedError("a first layer has no forward-mode derivative by images: take reverse mode, torch.func.vjp or grad")


class Lifted(torch.autograd.Function):
    """relu(max_pool(seen @ weight + bias)) of seen [*tasks, n, h, w, k], weight [*tasks, k, c] and bias [*tasks, c]; and where from."""

    @staticmethod
    @opaque
    def forward(seen: Tensor, weight: Tensor, bias: Tensor, window: int) -> tuple[Tensor, Tensor]:
        y = seen.new_empty(*seen.shape[:-3], seen.shape[-3] // window, seen.shape[-2] // window, weight.shape[-1])
        where = torch.empty_like(y, dtype=torch.uint8)
        loops = of(seen)
        outputs = [loops.array(t, 4) for t in (y, where)]
        loops.lift(seen.shape[-1], weight.shape[-1], window).forward(
            loops.array(seen, 4), loops.array(weight, 2), loops.array(bias, 1), *outputs
        )
        return y.movedim(-1, -3), where

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        (seen, weight, bias, ctx.window), (_, where) = inputs, output
        ctx.mark_non_differentiable(where)
        ctx.set_materialize_grads(False)  # None, not zeros, in ``jvp`` for what does not move
        ctx.save_for_backward(seen, where)
        ctx.save_for_forward(seen, where, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: None) -> tuple[Any, ...]:
        return None, *Collect.apply(*ctx.saved_tensors, g, ctx.window), None

    @staticmethod
    def jvp(ctx: Any, dseen: Tensor | None, dweight: Tensor | None, dbias: Tensor | None, _window: None) -> tuple[Tensor, None]:
        refuse(dseen)
        seen, where, weight, bias = ctx.saved_tensors
        along = [torch.zeros_like(t) if d is None else d for t, d in ((weight, dweight), (bias, dbias))]
        return Pick.apply(seen, where, *along, ctx.window), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        return Lifted.apply(*stacked(info, in_dims, inputs)), (0, 0)


class Pick(torch.autograd.Function):
    """seen @ weight + bias at the places ``where``, and nothing elsewhere."""

    @staticmethod
    @opaque
    def forward(seen: Tensor, where: Tensor, weight: Tensor, bias: Tensor, window: int) -> Tensor:
        y = seen.new_empty(where.shape)
        loops = of(seen)
        places = [loops.array(t, 4) for t in (where, y)]
        loops.lift(seen.shape[-1], weight.shape[-1], window).pick(
            loops.array(seen, 4), loops.array(weight, 2), loops.array(bias, 1), *places
        )
        return y.movedim(-1, -3)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        seen, where, _, _, ctx.window = inputs
        ctx.save_for_backward(seen, where)
        ctx.save_for_forward(seen, where)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        return None, None, *Collect.apply(*ctx.saved_tensors, g, ctx.window), None

    @staticmethod
    def jvp(ctx: Any, _seen: None, _where: None, dweight: Tensor, dbias: Tensor, _window: None) -> Tensor:
        return Pick.apply(*ctx.saved_tensors, dweight, dbias, ctx.window)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        return Pick.apply(*stacked(info, in_dims, inputs)), 0


class Collect(torch.autograd.Function):
    """The transpose of ``Pick``: [*tasks, n, c, h, w] to what it says of weight and bias."""

    @staticmethod
    @opaque
    def forward(seen: Tensor, where: Tensor, g: Tensor, window: int) -> tuple[Tensor, Tensor]:
        inputs, channels = seen.shape[-1], where.shape[-1]
        gweight, gbias = (widen(seen[..., :0]).new_empty(*seen.shape[:-4], *shape) for shape in ((inputs, channels), (channels,)))
        loops = of(seen)
        outputs = loops.array(gweight, 2), loops.array(gbias, 1)
        loops.lift(inputs, channels, window).collect(loops.array(seen, 4), loops.images(g), loops.array(where, 4), *outputs)
        return gweight, gbias

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        seen, where, _, ctx.window = inputs
        ctx.save_for_backward(seen, where)
        ctx.save_for_forward(seen, where)

    @staticmethod
    def backward(ctx: Any, v: Tensor, u: Tensor) -> tuple[Any, ...]:
        return None, None, Pick.apply(*ctx.saved_tensors, v, u, ctx.window), None

    @staticmethod
    def jvp(ctx: Any, _seen: None, _where: None, dg: Tensor, _window: None) -> tuple[Tensor, Tensor]:
        return Collect.apply(*ctx.saved_tensors, dg, ctx.window)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        return Collect.apply(*stacked(info, in_dims, inputs)), (0, 0)
