"""Convolutions for many tasks with weights of their own, whose derivatives of any order are again convolutions.
T(x, w, y) = ⟨y, x ∗ w⟩ is linear in each operand: its three partial derivatives are each other's derivatives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from metarun.inner import upcast
from metarun.kernels import select
from metarun.kernels.form import Form
from metarun.runtime.tracer import opaque

X, W, Y = range(3)  # [n, c, h, w], [o, c, k, k], [n, o, h', w']
FEW = 300, 800, 200  # places in a task's output, by slot: up to here a batched matrix product beats a convolution for each task


class Partial(torch.autograd.Function):
    """∂T/∂slot as a function of the two other operands, a and b, which follow the slot in the cyclic order x, w, y, x, …

    Slot y is the convolution, x its gradient in the images, w that in the weights. Operands have the shapes of ``X``, ``W`` and ``Y``, with
    one more axis in front for tasks of their own. Results lie in memory with the channels last, where torch's kernels are fastest.
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
    """``Partial`` for tasks that share weights, as one convolution whose batch is all tasks' examples."""
    if slot == Y:
        return partial(slot, form, a.flatten(0, 1), b).unflatten(0, a.shape[:2])
    return partial(slot, form, a, b.flatten(0, 1)).unflatten(0, b.shape[:2])


def evaluate(slot: int, form: Form, a: Tensor, b: Tensor) -> Tensor:
    """``Partial``, by ``numba_conv`` where it is for such operands."""
    direct = select.direct(a.device)
    if direct and direct.covers(slot, form, a, b):
        return direct.partial(slot, form, a, b)
    if a.dim() == 5 and slot != W and not (w := b if slot == Y else a).stride(0):  # an expanded one
        return in_one(operators, slot, form, *((a, w[0]) if slot == Y else (w[0], b)))
    return operators(slot, form, a, b)


def operators(slot: int, form: Form, a: Tensor, b: Tensor) -> Tensor:
    """``Partial`` in torch's operators, on im2col's patches or one task after the other."""
    if a.dim() == 4:
        return convolution(slot, form, a, b)
    if a.device.type != "cpu" or form.places[0] * form.places[1] * (b if slot == X else a).shape[1] <= FEW[slot]:
        return products(slot, form, a, b)
    # cat, not stack, which would not keep the channels last in memory.
    return torch.cat([convolution(slot, form, *task) for task in zip(a.unbind(), b.unbind())]).unflatten(0, (a.shape[0], -1))


def convolution(slot: int, form: Form, a: Tensor, b: Tensor) -> Tensor:
    """``Partial`` of one task, by torch's convolution and its derivatives."""
    stride, padding = [form.stride] * 2, [form.padding] * 2
    if slot == Y:
        return torch.conv2d(a, b, None, stride, padding)
    # Of the operand that a gradient is taken in, only the shape matters.
    if slot == X:
        shape = (b.shape[0], a.shape[1], *form.size)
        x, w, y = torch.empty(shape, dtype=a.dtype, device=a.device, memory_format=torch.channels_last), a, b
    else:
        x, w, y = b, b.new_empty(a.shape[1], b.shape[1], form.kernel, form.kernel), a
    wanted = [slot == X, slot == W, False]
    return torch.ops.aten.convolution_backward(y, x, w, None, stride, padding, [1, 1], False, [0, 0], 1, wanted)[slot]


def products(slot: int, form: Form, a: Tensor, b: Tensor) -> Tensor:
    """``Partial`` of all tasks as batched matrix products: of im2col's patches, or for slot x of what col2im adds up."""
    if slot == Y:
        return product_of(im2col(a, form).flatten(1, -2), matrix(b).mT).unflatten(1, (a.shape[1], *form.places)).movedim(-1, 2)
    if slot == X:
        return col2im(product_of(b.movedim(2, -1).flatten(1, -2), matrix(a)).unflatten(1, (b.shape[1], *form.places)), form)
    patches, y = im2col(b, form), a.movedim(2, -1)
    return product_of(y.flatten(1, -2).mT, patches.flatten(1, -2)).unflatten(-1, (form.kernel, form.kernel, -1)).movedim(-1, 2)


def product_of(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, [*n, i, k] and [*n, k, j], for a convolution: on a GPU in TF32 where torch's own convolutions are."""
    if a.device.type != "cuda" or not torch.backends.cudnn.allow_tf32:
        return a @ b
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return a @ b
    finally:
        torch.set_float32_matmul_precision(precision)


@opaque
def im2col(x: Tensor, form: Form) -> Tensor:
    """What the kernel sees at every place: [*n, c, h, w] to patches [*n, h', w', kernel² * c]."""
    loops = select.loops(x.device)
    if loops is None:
        return by_taps(x, form, None)
    patches = x.new_empty(*x.shape[:-3], *form.places, form.kernel**2 * x.shape[-3])
    arrays = [loops.array(t, 3) for t in (x.movedim(-3, -1), patches)]
    loops.im2col(x.shape[-3], form.kernel).im2col(arrays[0], form.stride, form.padding, arrays[1])
    return patches


@opaque
def col2im(patches: Tensor, form: Form) -> Tensor:
    """The transpose of ``im2col``, which adds up what overlaps: [*n, h', w', kernel² * c] to [*n, c, h, w]."""
    channels = patches.shape[-1] // form.kernel**2
    loops = select.loops(patches.device)
    if loops is None:
        padded = [side + form.kernel - 1 for side in form.size]  # at least as far as the last place sees
        total = upcast(patches[..., :0]).new_zeros(*patches.shape[:-3], *padded, channels)
        for (rows, columns), part in zip(taps(form), patches.split(channels, -1)):
            total[..., rows, columns, :] += part
        high, broad = form.size
        inside = total[..., form.padding : form.padding + high, form.padding : form.padding + broad, :]
        return inside.to(patches.dtype).contiguous().movedim(-1, -3)
    x = patches.new_empty(*patches.shape[:-3], *form.size, channels)
    total = upcast(patches[..., :0]).new_empty(channels)
    arrays = [loops.array(t, 3) for t in (patches, x)]
    loops.im2col(channels, form.kernel).col2im(arrays[0], form.stride, form.padding, loops.array(total, 0), arrays[1])
    return x.movedim(-1, -3)


def by_taps(x: Tensor, form: Form, common: Tensor | None) -> Tensor:
    """``im2col`` in torch's operators, a tap at a time, of x less ``common`` [c] (the borders too); as fast where channels are few."""
    padded = pad(x, form) if common is None else pad(x, form) - common
    return torch.cat([padded[..., rows, columns, :] for rows, columns in taps(form)], -1)


def taps(form: Form) -> Iterator[tuple[slice, slice]]:
    """For every entry of the kernel, the rows and columns of a padded image that it meets."""
    down, across = (form.stride * (places - 1) + 1 for places in form.places)
    for i, j in product(range(form.kernel), repeat=2):
        yield slice(i, i + down, form.stride), slice(j, j + across, form.stride)


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


def linear(patches: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Patches [n, h', w', k] by ``weight`` [o, k], plus ``bias`` [o]: [n, o, h', w']."""
    if has_torch_function((patches, weight)):
        return handle_torch_function(linear, (patches, weight), patches, weight, bias)
    if bias is None:
        weight = weight.mT.contiguous()  # else its gradient is a transposed product, which is slow for few inputs and many places
    else:  # as one more weight: adding it would be another pass over the output
        patches, weight = F.pad(patches, [0, 1], value=1.0), torch.cat([weight.mT, bias[None]])
    return (patches @ weight).movedim(-1, 1)
