"""Convolutions whose derivatives of any order cost what first ones do, for tasks that have weights of their own.
With few inputs a linear map of patches, else a trilinear form T(x, w, y) = ⟨y, x ∗ w⟩, whose partial derivatives are all there is."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from metarun.inner import widen
from metarun.kernels import select
from metarun.kernels.form import Form
from metarun.runtime.tracer import opaque

X, W, Y = range(3)  # [n, c, h, w], [o, c, k, k], [n, o, h', w']
FEW = 300, 800, 200  # places in a task's output: up to here one product over all tasks' patches beats a convolution for each


class Partial(torch.autograd.Function):
    """∂T/∂slot of the two other operands a and b, in the cyclic order x, w, y, x, …: bilinear in them.

    Operands with an axis more are those of as many tasks. Results lie in memory with the channels last, where torch's kernels are fastest.
    """

    @staticmethod
    def forward(slot: int, form: Form, a: Tensor, b: Tensor) -> Tensor:
        return evaluate(slot, form, a, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.slot, ctx.form, a, b = inputs
        ctx.save_for_backward(a, b)
        ctx.save_for_forward(a, b)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        a, b = ctx.saved_tensors
        _, _, need_a, need_b = ctx.needs_input_grad
        by_a = Partial.apply((ctx.slot + 1) % 3, ctx.form, b, cotangent) if need_a else None
        by_b = Partial.apply((ctx.slot + 2) % 3, ctx.form, cotangent, a) if need_b else None
        return None, None, by_a, by_b

    @staticmethod
    def jvp(ctx: Any, _slot: None, _form: None, da: Tensor | None, db: Tensor | None) -> Any:
        a, b = ctx.saved_tensors
        terms = [Partial.apply(ctx.slot, ctx.form, *pair) for pair in ((da, b), (a, db)) if pair[0] is not None and pair[1] is not None]
        return sum(terms[1:], terms[0])

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], slot: int, form: Form, a: Tensor, b: Tensor) -> tuple[Tensor, int]:
        *_, over_a, over_b = in_dims
        if (slot, over_b, b.dim()) == (Y, None, 4):
            return in_one(Partial.apply, slot, form, a.movedim(over_a, 0), b), 0
        if (slot, over_a, a.dim()) == (X, None, 4):
            return in_one(Partial.apply, slot, form, a, b.movedim(over_b, 0)), 0
        a, b = (t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0) for t, dim in ((a, over_a), (b, over_b)))
        if a.dim() > 5:  # what a method maps over within a task, and tasks, all with weights of their own
            return Partial.apply(slot, form, a.flatten(0, 1), b.flatten(0, 1)).unflatten(0, a.shape[:2]), 0
        return Partial.apply(slot, form, a, b), 0


def in_one(partial: Callable[..., Tensor], slot: int, form: Form, a: Tensor, b: Tensor) -> Tensor:
    """``Partial`` for tasks that share weights, which are but more examples."""
    if slot == Y:
        return partial(slot, form, a.flatten(0, 1), b).unflatten(0, a.shape[:2])
    return partial(slot, form, a, b.flatten(0, 1)).unflatten(0, b.shape[:2])


def evaluate(slot: int, form: Form, a: Tensor, b: Tensor) -> Tensor:
    """``Partial``, by the kernels of ``direct`` where those are for such operands."""
    if a.dim() == 5 and slot != W and not (w := b if slot == Y else a).stride(0):  # an expanded one
        return in_one(evaluate, slot, form, *((a, w[0]) if slot == Y else (w[0], b)))
    direct = select.direct(a.device)
    return (direct.partial if direct and direct.covers(slot, form, a, b) else operators)(slot, form, a, b)


def operators(slot: int, form: Form, a: Tensor, b: Tensor) -> Tensor:
    """``Partial`` in torch's operators."""
    if a.dim() == 4:
        return convolution(slot, form, a, b)
    if a.device.type != "cpu" or form.places[0] * form.places[1] * (b if slot == X else a).shape[1] <= FEW[slot]:
        return products(slot, form, a, b)
    # Joined, not stacked, which would give up the order in memory.
    return torch.cat([convolution(slot, form, *task) for task in zip(a.unbind(), b.unbind())]).unflatten(0, (a.shape[0], -1))


def convolution(slot: int, form: Form, a: Tensor, b: Tensor) -> Tensor:
    """``Partial`` of one task, by torch's convolution and its derivatives."""
    stride, padding = [form.stride] * 2, [form.padding] * 2
    if slot == Y:
        return torch.conv2d(a, b, None, stride, padding)
    # The operand that is asked for only tells its shape.
    if slot == X:
        shape = (b.shape[0], a.shape[1], *form.size)
        x, w, y = torch.empty(shape, dtype=a.dtype, device=a.device, memory_format=torch.channels_last), a, b
    else:
        x, w, y = b, b.new_empty(a.shape[1], b.shape[1], form.kernel, form.kernel), a
    wanted = [slot == X, slot == W, False]
    return torch.ops.aten.convolution_backward(y, x, w, None, stride, padding, [1, 1], False, [0, 0], 1, wanted)[slot]


def products(slot: int, form: Form, a: Tensor, b: Tensor) -> Tensor:
    """``Partial`` of all tasks, as matrix products over patches."""
    if slot == Y:
        return product_of(gather(a, form).flatten(1, -2), matrix(b).mT).unflatten(1, (a.shape[1], *form.places)).movedim(-1, 2)
    if slot == X:
        return scatter(product_of(b.movedim(2, -1).flatten(1, -2), matrix(a)).unflatten(1, (b.shape[1], *form.places)), form)
    seen, y = gather(b, form), a.movedim(2, -1)
    return product_of(y.flatten(1, -2).mT, seen.flatten(1, -2)).unflatten(-1, (form.kernel, form.kernel, -1)).movedim(-1, 2)


def product_of(a: Tensor, b: Tensor) -> Tensor:
    """a @ b for a convolution: on a GPU in TF32 where torch's own convolutions are."""
    if a.device.type != "cuda" or not torch.backends.cudnn.allow_tf32:
        return a @ b
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return a @ b
    finally:
        torch.set_float32_matmul_precision(precision)


@opaque
def gather(x: Tensor, form: Form) -> Tensor:
    """What the kernel sees at every place: [*n, c, h, w] to [*n, h', w', kernel² * c]."""
    loops = select.loops(x.device)
    if loops is None:
        windows = pad(x, form).unfold(-3, form.kernel, form.stride).unfold(-3, form.kernel, form.stride)
        return windows.movedim(-3, -1).flatten(-3)
    seen = x.new_empty(*x.shape[:-3], *form.places, form.kernel**2 * x.shape[-3])
    places = [loops.array(t, 3) for t in (x.movedim(-3, -1), seen)]
    loops.patches(x.shape[-3], form.kernel).gather(places[0], form.stride, form.padding, places[1])
    return seen


@opaque
def scatter(seen: Tensor, form: Form) -> Tensor:
    """The transpose of ``gather``: [*n, h', w', kernel² * c] to [*n, c, h, w]."""
    channels = seen.shape[-1] // form.kernel**2
    loops = select.loops(seen.device)
    if loops is None:
        down, across = (form.stride * (places - 1) + 1 for places in form.places)
        padded = [side + form.kernel - 1 for side in form.size]  # at least as far as the last place sees
        total = widen(seen[..., :0]).new_zeros(*seen.shape[:-3], *padded, channels)
        for (i, j), part in zip(product(range(form.kernel), repeat=2), seen.split(channels, -1)):
            total[..., i : i + down : form.stride, j : j + across : form.stride, :] += part
        high, broad = form.size
        inside = total[..., form.padding : form.padding + high, form.padding : form.padding + broad, :]
        return inside.to(seen.dtype).contiguous().movedim(-1, -3)
    x = seen.new_empty(*seen.shape[:-3], *form.size, channels)
    total = widen(seen[..., :0]).new_empty(channels)
    places = [loops.array(t, 3) for t in (seen, x)]
    loops.patches(channels, form.kernel).scatter(places[0], form.stride, form.padding, loops.array(total, 0), places[1])
    return x.movedim(-1, -3)


def slices(x: Tensor, form: Form, common: Tensor | None) -> Tensor:
    """``gather`` in torch's operators, less ``common``: an entry of the kernel at a time, which for few channels is as good."""
    padded = pad(x, form) if common is None else pad(x, form) - common
    down, across = (form.stride * (places - 1) + 1 for places in form.places)
    entries = product(range(form.kernel), repeat=2)
    return torch.cat([padded[..., i : i + down : form.stride, j : j + across : form.stride, :] for i, j in entries], -1)


def pad(x: Tensor, form: Form) -> Tensor:
    """[*n, c, h, w] to [*n, h + 2 padding, w + 2 padding, c]."""
    return F.pad(x.movedim(-3, -1), [0, 0, *[form.padding] * 4])


def matrix(w: Tensor) -> Tensor:
    """Weights [*n, o, c, k, k] as a linear map of patches, [*n, o, k² * c]."""
    return w.movedim(-3, -1).flatten(-3)


def convolve(x: Tensor, w: Tensor, stride: int, padding: int) -> Tensor:
    """x ∗ w: [n, c, h, w] and [o, c, k, k] to [n, o, h', w']."""
    if has_torch_function((x, w)):
        return handle_torch_function(convolve, (x, w), x, w, stride, padding)
    if not select.has("trilinear"):
        return torch.conv2d(x, w, None, stride, padding)
    form = Form(w.shape[-1], stride, padding, (x.shape[-2], x.shape[-1]))
    return Partial.apply(Y, form, x, w)


def linear(seen: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Patches [n, h', w', k] by ``weight`` [o, k], plus ``bias`` [o]: [n, o, h', w']."""
    if has_torch_function((seen, weight)):
        return handle_torch_function(linear, (seen, weight), seen, weight, bias)
    if bias is None:
        weight = weight.mT.contiguous()  # else derivatives come out transposed, which is slow for few inputs and many places
    else:  # as one more weight: adding it would be another pass over the output
        seen, weight = F.pad(seen, [0, 1], value=1.0), torch.cat([weight.mT, bias[None]])
    return (seen @ weight).movedim(-1, 1)
