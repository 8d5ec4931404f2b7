"""A linear map of few inputs, max-pooling and ReLU in one operation on a GPU: see ``numba_linear_pool_relu``."""

import triton
import triton.language as tl

from metarun.kernels.triton_windows import SIZES, load, program_channels, store, store_relu, window_origin


@triton.jit(do_not_specialize=SIZES)
def linear_pool_relu(
    patches, weight, bias, argmax, y, places, images, high, broad, height, width,
    KNOWN: tl.constexpr, K: tl.constexpr, C: tl.constexpr, WINDOW: tl.constexpr, PLACES: tl.constexpr, COLUMNS: tl.constexpr,
    REAL: tl.constexpr,
):  # fmt: skip
    """patches @ weight + bias for some places: fills y by the entries that argmax names if KNOWN, else y and argmax."""
    task = tl.program_id(1).to(tl.int64)
    c, inside = program_channels(C, COLUMNS)
    patches, weight = patches + task * images * high * broad * K, weight + task * K * C
    place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    live = (place < places)[:, None] & inside[None, :]
    out = (task * places + place)[:, None] * C + c[None, :]
    _, _, _, begin = window_origin(place, height, width, high, broad, WINDOW)
    # Loaded for every place: the compiler chooses the layout of all else by its large loads, here several channels to a thread.
    shift = load(bias + task * C, (place * 0)[:, None] + c[None, :], live, REAL)
    best = tl.zeros([PLACES, COLUMNS], REAL)
    found = tl.zeros([PLACES, COLUMNS], tl.int32)
    if KNOWN:
        found = tl.load(argmax + out, mask=live, other=WINDOW * WINDOW).to(tl.int32)
    for j in tl.static_range(WINDOW * WINDOW):
        at = (begin + (j // WINDOW) * broad + j % WINDOW) * K
        value = shift
        for k in tl.static_range(K):
            value += load(patches, at + k, place < places, REAL)[:, None] * load(weight, c + k * C, inside, REAL)[None, :]
        if KNOWN:
            best = tl.where(found == j, value, best)
        elif j == 0:
            best = value
        else:
            better = (value > best) | (value != value)
            best = tl.where(better, value, best)
            found = tl.where(better, j, found)
    if KNOWN:
        store(y, out, best, live)
    else:
        store_relu(y, argmax, task * places, place, c, live, best, found, C, WINDOW)


@triton.jit(do_not_specialize=SIZES)
def linear_pool_relu_backward(
    patches, g, argmax, made, places, size, number_of, images, high, broad, height, width,
    PRODUCT: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, C: tl.constexpr, WINDOW: tl.constexpr, STEP: tl.constexpr,
    COLUMNS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Sums over a part of the places of patchesᵀ g, and of g: fills ``made`` [tasks, parts, K + 1, channels].

    ``PRODUCT``: as a matrix product, which takes float32 only.
    """
    part, task = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c, inside = program_channels(C, COLUMNS)
    patches += task * images * high * broad * K
    k = tl.arange(0, ROWS)
    total = tl.zeros([ROWS, COLUMNS], REAL)
    last = tl.minimum(part * size + size, places)
    for first in range(part * size, last, STEP):
        place = first + tl.arange(0, STEP)
        live = (place < last)[:, None] & inside[None, :]
        out = (task * places + place)[:, None] * C + c[None, :]
        grad, at = load(g, out, live, REAL), tl.load(argmax + out, mask=live, other=WINDOW * WINDOW)
        _, _, _, begin = window_origin(place, height, width, high, broad, WINDOW)
        for j in tl.static_range(WINDOW * WINDOW):
            row = begin + (j // WINDOW) * broad + j % WINDOW
            values = load(patches, row[None, :] * K + k[:, None], (place < last)[None, :] & (k < K)[:, None], REAL)
            values = tl.where((k == K)[:, None], 1.0, values)  # so that the last sum is that of g alone
            alive = tl.where(at == j, grad, 0.0)
            if PRODUCT:
                total = tl.dot(values, alive, total, input_precision="ieee")
            else:
                total += tl.sum(values[:, :, None] * alive[None, :, :], 1)
    made += (task * number_of + part) * (K + 1) * C
    store(made, k[:, None] * C + c[None, :], total, (k < K + 1)[:, None] & inside[None, :])
