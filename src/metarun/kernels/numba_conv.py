"""Direct convolution and its partial derivatives in channels-last memory, on a CPU with AVX2 or AVX-512, for ``ops.conv.Partial``.
Without im2col: the rows of a matrix product are addresses, which move from tap to tap (indirection, Dukhan 2019, arXiv:1907.02129)."""

from __future__ import annotations

from functools import cache
from itertools import chain, product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarun.kernels.form import Form
from metarun.kernels.numba_compile import memory
from metarun.kernels.numba_tiles import NEAR, Convolution, convolution
from metarun.runtime.private import cpu_features
from metarun.runtime.tracer import opaque

UNIT = 16  # channels come in multiples of it


@cache
def plan(form: Form, back: bool, words: int, channels: int, step: int) -> tuple[np.ndarray[Any, Any], ...]:
    """Where results find their operands, for a convolution or, ``back``, its transpose: tables for ``Convolution.convolve``.

    Places that see the same taps, others being cut off by borders or passed over by strides, are a class; none multiplies zeros.

    Args:
        words: of a place in the operand.
        channels: of a place in the result.
        step: words from a tap's weights to the next one's.

    Returns:
        places [n, 2]: offsets of a place's row in an image of the operand, and in one of the result, class by class.
        classes [n, 4]: first and last of a class's places, first and last of its taps.
        taps [n * 2]: how far a tap moves a row, and where its weights are.
    """
    (high, broad), (down, wide) = (form.places, form.size) if back else (form.size, form.places)
    stride, padding = form.stride, form.padding

    def met(place: int, limit: int) -> tuple[int, dict[int, int]]:
        """Along one axis, where a row begins, and how far the taps that are inside move it."""
        if not back:
            begin = place * stride - padding
            return begin, {i: i for i in range(form.kernel) if 0 <= begin + i < limit}
        begin, rest = divmod(place + padding, stride)
        return begin, {i: -(i // stride) for i in range(rest, form.kernel, stride) if 0 <= begin - i // stride < limit}

    classes: dict[tuple[tuple[int, int], ...], list[tuple[int, int]]] = {}
    for r, s in product(range(down), range(wide)):
        (top, rows), (left, columns) = met(r, high), met(s, broad)
        taps = tuple(((y * broad + x) * words, (i * form.kernel + j) * step) for (i, y), (j, x) in product(rows.items(), columns.items()))
        classes.setdefault(taps, []).append(((top * broad + left) * words, (r * wide + s) * channels))
    ends = np.cumsum([[0, 0], *([len(places), len(taps)] for taps, places in classes.items())], 0)
    table = np.stack([ends[:-1, 0], ends[1:, 0], ends[:-1, 1], ends[1:, 1]], 1)
    listed, moves = (np.array([*chain.from_iterable(parts)], np.int64) for parts in (classes.values(), classes))
    return listed, table, moves.reshape(-1)


@cache
def lanes(dtype: torch.dtype) -> int:
    """How many float32 a vector register of this machine holds, if it has the instructions for operands of this type, else 0."""
    features = cpu_features()  # those that Numba compiles for
    if dtype == torch.bfloat16:  # torch's convolution is the faster one where it has instructions for tiles
        return 16 if "+avx512bf16" in features and "+amx-bf16" not in features else 0
    if dtype != torch.float32:
        return 0
    return 16 if "+avx512f" in features else 8 if "+avx2" in features and "+fma" in features else 0


def kernels(channels: int, dtype: torch.dtype) -> Convolution:
    """The kernels for results with so many channels: as many vectors to a tile as divide these and fit in the registers."""
    most = 4 if lanes(dtype) == 16 else 2
    vectors = next(v for v in range(most, 0, -1) if channels % (v * lanes(dtype)) == 0)
    return convolution(lanes(dtype), vectors, dtype == torch.bfloat16)


def covers(slot: int, form: Form, a: Tensor, b: Tensor) -> bool:
    """Whether these kernels are for operands a and b of ``ops.conv.Partial``, with or without an axis of tasks.

    On one thread they are the faster ones, or equal to a few percent for one task at stride 1 (``scripts/bench_conv.py``); but they share
    nothing among threads, while torch's operators divide the images of a task, or of tasks with the same weights.
    """
    one = a.dim() == 4 or (slot != 1 and not (b if slot else a).stride(0))
    if a.device.type != "cpu" or a.dtype != b.dtype or not lanes(a.dtype) or (one and torch.get_num_threads() > 1):
        return False
    counts = {*a.shape[-4:-2], *b.shape[-4:-2]}
    channels = {a.shape[-3], b.shape[-3], *([] if slot == 1 else [(b if slot else a).shape[-4]])}
    return min(counts) > 0 and not any(c % UNIT for c in channels) and form.kernel**2 * min(channels) >= 2 * UNIT


def words(x: Tensor, tasks: int | None = None) -> np.ndarray[Any, Any]:
    """x [tasks, …, c, h, w], of so many tasks alone, as an array [tasks, words] in channels-last memory.

    A word is a float32 or two bfloat16.
    """
    numbers = memory(x)[:tasks]
    axes = range(numbers.ndim)
    last = numbers.transpose(*axes[:-3], axes[-2], axes[-1], axes[-3])
    if not last.flags.c_contiguous or last.ctypes.data % 4:
        last = memory(x[:tasks].movedim(-3, -1).clone(memory_format=torch.contiguous_format))
    return last.reshape(len(last), -1).view(np.uint32)


def bits(x: Tensor) -> np.ndarray[Any, Any]:
    """The memory of results x [tasks, …] as an array [tasks, numbers] of their bits."""
    numbers = memory(x)
    return numbers.reshape(len(numbers), -1).view(np.uint16 if x.dtype == torch.bfloat16 else np.uint32)


def convolve(form: Form, back: bool, a: Tensor, w: Tensor) -> Tensor:
    """The convolution of a [tasks, n, c, h, w] or, ``back``, its transpose of a [tasks, n, o, h', w'], by w [tasks, o, c, k, k]."""
    per = 2 if a.dtype == torch.bfloat16 else 1
    tasks, n, operands, *sides = a.shape
    groups = tasks if w.stride(0) else 1  # tasks that share weights are one whose images are all of theirs
    outputs, inputs = w.shape[1:3]
    channels, size = (inputs, form.size) if back else (outputs, form.places)
    depth, line = operands // per, form.kernel**2 * inputs
    # The transpose sums over rows of the weights, the convolution over columns, which it therefore first makes rows of.
    step, tap, how = (line, inputs, per - 1 and 2) if back else (outputs, outputs * depth, 1)
    packed = np.empty(outputs * line // per if how else 0, np.uint32)
    out = a.new_empty(tasks, n, *size, channels)
    kernels(channels, a.dtype).convolve(
        words(a).reshape(groups, -1), words(w, groups), *plan(form, back, depth, channels, tap), tasks * n // groups,
        (sides[0] * sides[1] * depth, size[0] * size[1] * channels, channels), depth, step, (outputs, line // per, how),
        packed, bits(out).reshape(groups, -1),
    )  # fmt: skip
    return out.movedim(-1, 2)


def weight_gradient(form: Form, g: Tensor, x: Tensor) -> Tensor:
    """The weights' gradient [tasks, o, c, k, k] from the output's g [tasks, n, o, h', w'] and images x [tasks, n, c, h, w]."""
    per = 2 if g.dtype == torch.bfloat16 else 1
    (tasks, n, outputs, *down), inputs = g.shape, x.shape[2]
    size = down[0] * down[1] * outputs // per, form.size[0] * form.size[1] * inputs // per
    group = min(n + n % 2, max(2, NEAR // max(size) // 2 * 2))
    room = [np.empty(group * words if per == 2 else 0, np.uint32) for words in size]
    moves = np.empty(2 * max(group, down[1]) * down[0], np.int64)
    # Sums over several groups of images are added up in float32.
    out = torch.empty(tasks, outputs, form.kernel, form.kernel, inputs, dtype=g.dtype if group >= n else torch.float32)
    kernels(inputs, g.dtype).weight_gradient(
        words(g), words(x), n, group, (form.kernel, form.stride, form.padding, *form.size, *down), size, (outputs, inputs), *room, moves,
        bits(out),
    )  # fmt: skip
    return out.to(g.dtype).movedim(-1, 2)


@opaque
def partial(slot: int, form: Form, a: Tensor, b: Tensor) -> Tensor:
    """``ops.conv.Partial`` of operands that ``covers``, with or without an axis of tasks."""
    if a.dim() == 4:
        return partial(slot, form, a[None], b[None])[0]
    if slot == 1:
        return weight_gradient(form, a, b)
    return convolve(form, True, b, a) if slot == 0 else convolve(form, False, a, b)
