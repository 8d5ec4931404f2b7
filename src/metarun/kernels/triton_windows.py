"""What the Triton kernels of ``triton_*`` share: where windows and channels lie in memory, loads, stores, sums of parts.

A program takes some places of a task and some of its channels: the grid's axes are places, tasks, channels. Tensors are as in ``numba_*``,
tasks first and channels last. Sizes are named high x broad for x, height x width for y, and tall x wide for all windows that touch x;
a place is the number of a window, counted over all images of a task. Names in capitals are constants that a kernel is compiled for.
"""

import triton
import triton.language as tl

# Arguments for whose values a kernel is not compiled anew: the number of channels alone says how memory is aligned.
SIZES = ["rows", "size", "number_of", "places", "windows", "count", "images", "high", "broad", "height", "width", "tall", "wide"]


@triton.jit
def window_origin(place, down, across, high, broad, WINDOW: tl.constexpr):
    """Of windows, numbered over down x across of each image: image, row and column of the window, and the place in x of its first entry."""
    image, r, s = place // (down * across), place // across % down, place % across
    return image, r, s, (image.to(tl.int64) * high + WINDOW * r) * broad + WINDOW * s


@triton.jit
def window_entry(j: tl.constexpr, begin, c, broad, C: tl.constexpr, WINDOW: tl.constexpr):
    """Offsets in x [places, channels] of entry j of windows that begin at ``begin``: [places, channels c]."""
    return (begin + (j // WINDOW) * broad + j % WINDOW)[:, None] * C + c[None, :]


@triton.jit
def entry_inside(j: tl.constexpr, r, s, live, high, broad, WINDOW: tl.constexpr):
    """For which windows entry j is inside of x: [places, channels]."""
    return live & ((WINDOW * r + j // WINDOW < high) & (WINDOW * s + j % WINDOW < broad))[:, None]


@triton.jit
def program_channels(C: tl.constexpr, COLUMNS: tl.constexpr):
    """The channels of this program, and which of these exist: [COLUMNS] each."""
    c = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    return c, c < C


@triton.jit
def load(x, at, live, REAL: tl.constexpr):
    """The numbers of x at the offsets ``at``, as REAL; 0 where they are not live."""
    return tl.load(x + at, mask=live, other=0).to(REAL)


@triton.jit
def store(x, at, value, live):
    """Store computed numbers in x at the offsets ``at``, in its own type."""
    tl.store(x + at, value.to(x.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=SIZES)
def add_parts(
    made, first, rest, number_of, COLUMNS: tl.constexpr, FIRST: tl.constexpr, STEP: tl.constexpr, WIDTH: tl.constexpr, REAL: tl.constexpr
):  # fmt: skip
    """The sum of ``made`` [tasks, parts, columns] over parts: its first columns to ``first`` [tasks, FIRST], the others to ``rest``."""
    task = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    inside = column < COLUMNS
    total = tl.zeros([STEP, WIDTH], REAL)
    for begin in range(0, number_of, STEP):
        part = begin + tl.arange(0, STEP)
        live = (part < number_of)[:, None] & inside[None, :]
        total += load(made, (task * number_of + part)[:, None] * COLUMNS + column[None, :], live, REAL)
    result = tl.sum(total, 0)
    store(first, task * FIRST + column, result, column < FIRST)
    store(rest, task * (COLUMNS - FIRST) + column - FIRST, result, inside & (column >= FIRST))


@triton.jit
def store_relu(y, argmax, before, place, c, live, best, found, C: tl.constexpr, WINDOW: tl.constexpr):
    """Store the largest numbers behind ReLU in y, and where they were found in argmax; what is no number stays none."""
    out = (before + place)[:, None] * C + c[None, :]
    store(y, out, tl.where(best <= 0, 0.0, best), live)
    store(argmax, out, tl.where(best <= 0, WINDOW * WINDOW, found), live)
