"""Batch norm, max-pooling and ReLU in one operation on a GPU, with its first and second derivative: see ``numba_norm_pool_relu``."""

import triton
import triton.language as tl

from metarun.kernels.triton_windows import SIZES, entry_inside, load, program_channels, store, store_relu, window_entry, window_origin


@triton.jit
def moments_of(x, first, last, c, inside, C: tl.constexpr, STEP: tl.constexpr, COLUMNS: tl.constexpr, REAL: tl.constexpr):
    """Of rows first to last: mean less row 0, and sum of squares about the mean, [COLUMNS] each (Welford 1962, in every lane)."""
    pivot = load(x, c, inside, REAL)
    count = tl.zeros([STEP, 1], REAL)
    mean, square = tl.zeros([STEP, COLUMNS], REAL), tl.zeros([STEP, COLUMNS], REAL)
    for begin in range(first, last, STEP):
        row = begin + tl.arange(0, STEP)
        live = (row < last)[:, None] & inside[None, :]
        value = load(x, row.to(tl.int64)[:, None] * C + c[None, :], live, REAL) - pivot[None, :]
        count += (row < last)[:, None].to(REAL)
        off = value - mean
        mean += tl.where(live, off * (1.0 / tl.maximum(count, 1.0)), 0.0)
        square += tl.where(live, off * (value - mean), 0.0)
    centre = tl.sum(count * mean, 0) / tl.sum(count, 0)
    off = mean - centre[None, :]
    return centre, tl.sum(square + count * off * off, 0)


@triton.jit
def merged_moments(made, c, inside, rows, size, number_of, C: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr, REAL: tl.constexpr):
    """``moments_of`` all rows, from those of their parts (Chan, Golub & LeVeque 1983)."""
    part = tl.arange(0, PARTS)
    live = (part < number_of)[:, None] & inside[None, :]
    at = part.to(tl.int64)[:, None] * 2 * C + c[None, :]
    mean, square = load(made, at, live, REAL), load(made, at + C, live, REAL)
    count = tl.minimum(tl.maximum(rows - part * size, 0), size).to(REAL)[:, None]
    centre = tl.sum(count * mean, 0) / rows
    off = mean - centre[None, :]
    return centre, tl.sum(square + count * off * off, 0)


@triton.jit(do_not_specialize=SIZES)
def norm_moments(
    x, made, rows, size, number_of, C: tl.constexpr, STEP: tl.constexpr, COLUMNS: tl.constexpr, REAL: tl.constexpr
):  # fmt: skip
    """``moments_of`` a part of x [tasks, rows, channels]: fills ``made`` [tasks, parts, 2, channels]."""
    part, task = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c, inside = program_channels(C, COLUMNS)
    first = part * size
    centre, square = moments_of(x + task * rows * C, first, tl.minimum(first + size, rows), c, inside, C, STEP, COLUMNS, REAL)
    made += (task * number_of + part) * 2 * C
    store(made, c, centre, inside)
    store(made, c + C, square, inside)


@triton.jit(do_not_specialize=SIZES)
def norm_merge(
    made, total, rows, size, number_of, C: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr, REAL: tl.constexpr
):  # fmt: skip
    """``merged_moments`` of ``made`` [tasks, parts, 2, channels]: fills ``total`` [tasks, 1, 2, channels]."""
    task = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    centre, square = merged_moments(made + task * number_of * 2 * C, c, c < C, rows, size, number_of, C, PARTS, COLUMNS, REAL)
    store(total + task * 2 * C, c, centre, c < C)
    store(total + task * 2 * C, c + C, square, c < C)


@triton.jit(do_not_specialize=SIZES)
def norm_pool_relu_forward(
    x, made, weight, bias, y, argmax, mean, var, rows, size, number_of, places, high, broad, height, width,
    EPS: tl.constexpr, C: tl.constexpr, WINDOW: tl.constexpr, PARTS: tl.constexpr, STEP: tl.constexpr, PLACES: tl.constexpr,
    COLUMNS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """The operation for some places of a task: fills y and argmax there; the first program also mean and var."""
    task = tl.program_id(1).to(tl.int64)
    c, inside = program_channels(C, COLUMNS)
    x += task * rows * C
    if PARTS == 0:
        centre, square = moments_of(x, 0, rows, c, inside, C, STEP, COLUMNS, REAL)
    else:
        centre, square = merged_moments(made + task * number_of * 2 * C, c, inside, rows, size, number_of, C, PARTS, COLUMNS, REAL)
    m, v = centre + load(x, c, inside, REAL), square / rows
    if tl.program_id(0) == 0:
        store(mean + task * C, c, m, inside)
        store(var + task * C, c, v, inside)
    scale = load(weight + task * C, c, inside, REAL) / tl.sqrt(v + tl.full([COLUMNS], EPS, REAL))
    shift = load(bias + task * C, c, inside, REAL)
    place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    live = (place < places)[:, None] & inside[None, :]
    _, _, _, begin = window_origin(place, height, width, high, broad, WINDOW)
    best = tl.zeros([PLACES, COLUMNS], REAL)
    found = tl.zeros([PLACES, COLUMNS], tl.int32)
    for j in tl.static_range(WINDOW * WINDOW):
        value = (load(x, window_entry(j, begin, c, broad, C, WINDOW), live, REAL) - m[None, :]) * scale[None, :] + shift[None, :]
        if j == 0:
            best = value
        else:
            better = (value > best) | (value != value)
            best = tl.where(better, value, best)
            found = tl.where(better, j, found)
    store_relu(y, argmax, task * places, place, c, live, best, found, C, WINDOW)


@triton.jit
def pooled_gradients(
    g, argmax, place, last, c, inside, high, broad, height, width, tall, wide, C: tl.constexpr, WINDOW: tl.constexpr, REAL: tl.constexpr
):  # fmt: skip
    """Of windows that touch x: row, column, first place in x, which exist; of those in y: which exist, offsets, g and argmax there."""
    image, r, s, begin = window_origin(place, tall, wide, high, broad, WINDOW)
    live = (place < last)[:, None] & inside[None, :]
    full = live & ((r < height) & (s < width))[:, None]
    out = ((image.to(tl.int64) * height + r) * width + s)[:, None] * C + c[None, :]
    return r, s, begin, live, full, out, load(g, out, full, REAL), tl.load(argmax + out, mask=full, other=WINDOW * WINDOW)


@triton.jit
def backward_sums_of(
    g, argmax, x, m, first, last, c, inside, high, broad, height, width, tall, wide,
    C: tl.constexpr, WINDOW: tl.constexpr, STEP: tl.constexpr, COLUMNS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Sums over windows first to last of max-pooling's gradient, and of its products with x less the mean: [COLUMNS] each."""
    total, sum_gx = tl.zeros([STEP, COLUMNS], REAL), tl.zeros([STEP, COLUMNS], REAL)
    for begin in range(first, last, STEP):
        place = begin + tl.arange(0, STEP)
        _, _, row, _, full, _, grad, at = pooled_gradients(
            g, argmax, place, last, c, inside, high, broad, height, width, tall, wide, C, WINDOW, REAL
        )  # fmt: skip
        for j in tl.static_range(WINDOW * WINDOW):
            value = tl.where(at == j, grad, 0.0)
            off = load(x, window_entry(j, row, c, broad, C, WINDOW), full, REAL) - m[None, :]
            total += value
            sum_gx += value * off
    return tl.sum(total, 0), tl.sum(sum_gx, 0)


@triton.jit(do_not_specialize=SIZES)
def backward_sums(
    g, argmax, x, mean, made, windows, size, number_of, high, broad, height, width, tall, wide,
    C: tl.constexpr, WINDOW: tl.constexpr, STEP: tl.constexpr, COLUMNS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """``backward_sums_of`` a part of the windows: fills ``made`` [tasks, parts, 2, channels]."""
    part, task = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c, inside = program_channels(C, COLUMNS)
    images, first = windows // (tall * wide), part * size
    pooled, all_of_x = task * images * height * width * C, task * images * high * broad * C
    m = load(mean + task * C, c, inside, REAL)
    total, sum_gx = backward_sums_of(
        g + pooled, argmax + pooled, x + all_of_x, m, first, tl.minimum(first + size, windows), c, inside,
        high, broad, height, width, tall, wide, C, WINDOW, STEP, COLUMNS, REAL,
    )  # fmt: skip
    made += (task * number_of + part) * 2 * C
    store(made, c, total, inside)
    store(made, c + C, sum_gx, inside)


@triton.jit
def sum_of_parts(
    made, c, inside, which: tl.constexpr, SUMS: tl.constexpr, number_of, C: tl.constexpr, PARTS: tl.constexpr, REAL: tl.constexpr
):
    """Sum number ``which`` of a task, added up over ``made`` [parts, SUMS, channels]: [COLUMNS]."""
    part = tl.arange(0, PARTS)
    live = (part < number_of)[:, None] & inside[None, :]
    return tl.sum(load(made, (part * SUMS + which).to(tl.int64)[:, None] * C + c[None, :], live, REAL), 0)


@triton.jit(do_not_specialize=SIZES)
def norm_pool_relu_backward(
    g, x, made, weight, argmax, mean, var, gx, gweight, gbias, windows, number_of, count, high, broad, height, width, tall, wide,
    EPS: tl.constexpr, C: tl.constexpr, WINDOW: tl.constexpr, PARTS: tl.constexpr, STEP: tl.constexpr, PLACES: tl.constexpr,
    COLUMNS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """The derivative for some windows of a task: fills gx there; the first program also gweight and gbias."""
    task = tl.program_id(1).to(tl.int64)
    c, inside = program_channels(C, COLUMNS)
    images = windows // (tall * wide)
    pooled, small = task * images * height * width * C, task * C
    g, argmax = g + pooled, argmax + pooled
    x, gx = x + task * count * C, gx + task * count * C
    m = load(mean + small, c, inside, REAL)
    if PARTS == 0:
        total, sum_gx = backward_sums_of(
            g, argmax, x, m, 0, windows, c, inside, high, broad, height, width, tall, wide, C, WINDOW, STEP, COLUMNS, REAL
        )  # fmt: skip
    else:
        made += task * number_of * 2 * C
        total = sum_of_parts(made, c, inside, 0, 2, number_of, C, PARTS, REAL)
        sum_gx = sum_of_parts(made, c, inside, 1, 2, number_of, C, PARTS, REAL)
    scale = 1.0 / tl.sqrt(load(var + small, c, inside, REAL) + tl.full([COLUMNS], EPS, REAL))
    if tl.program_id(0) == 0:
        store(gweight + small, c, sum_gx * scale, inside)
        store(gbias + small, c, total, inside)
    slope = load(weight + small, c, inside, REAL) * scale
    along, flat = -slope * scale * scale * sum_gx / count, -slope * total / count
    place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    r, s, row, live, _, _, grad, at = pooled_gradients(
        g, argmax, place, windows, c, inside, high, broad, height, width, tall, wide, C, WINDOW, REAL
    )  # fmt: skip
    for j in tl.static_range(WINDOW * WINDOW):
        real, here = entry_inside(j, r, s, live, high, broad, WINDOW), window_entry(j, row, c, broad, C, WINDOW)
        off = load(x, here, real, REAL) - m[None, :]
        store(gx, here, slope[None, :] * tl.where(at == j, grad, 0.0) + along[None, :] * off + flat[None, :], real)


@triton.jit
def double_backward_sums_of(
    v, g, argmax, x, m, first, last, c, inside, high, broad, height, width, tall, wide,
    C: tl.constexpr, WINDOW: tl.constexpr, STEP: tl.constexpr, COLUMNS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Sums over windows first to last of g and v, of their products with x less the mean, and of their product: [COLUMNS] each."""
    sum_g, sum_gx = tl.zeros([STEP, COLUMNS], REAL), tl.zeros([STEP, COLUMNS], REAL)
    sum_v, sum_vx, sum_vg = tl.zeros([STEP, COLUMNS], REAL), tl.zeros([STEP, COLUMNS], REAL), tl.zeros([STEP, COLUMNS], REAL)
    for begin in range(first, last, STEP):
        place = begin + tl.arange(0, STEP)
        r, s, row, live, _, _, grad, at = pooled_gradients(
            g, argmax, place, last, c, inside, high, broad, height, width, tall, wide, C, WINDOW, REAL
        )  # fmt: skip
        for j in tl.static_range(WINDOW * WINDOW):
            real, here = entry_inside(j, r, s, live, high, broad, WINDOW), window_entry(j, row, c, broad, C, WINDOW)
            value, other = tl.where(at == j, grad, 0.0), load(v, here, real, REAL)
            off = tl.where(real, load(x, here, real, REAL) - m[None, :], 0.0)
            sum_g += value
            sum_gx += value * off
            sum_v += other
            sum_vx += other * off
            sum_vg += tl.where(at == j, grad * other, 0.0)
    return tl.sum(sum_g, 0), tl.sum(sum_gx, 0), tl.sum(sum_v, 0), tl.sum(sum_vx, 0), tl.sum(sum_vg, 0)


@triton.jit(do_not_specialize=SIZES)
def double_backward_sums(
    v, g, argmax, x, mean, made, windows, size, number_of, high, broad, height, width, tall, wide,
    C: tl.constexpr, WINDOW: tl.constexpr, STEP: tl.constexpr, COLUMNS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """``double_backward_sums_of`` a part of the windows: fills ``made`` [tasks, parts, 5, channels]."""
    part, task = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c, inside = program_channels(C, COLUMNS)
    images, first = windows // (tall * wide), part * size
    pooled, all_of_x = task * images * height * width * C, task * images * high * broad * C
    m = load(mean + task * C, c, inside, REAL)
    sum_g, sum_gx, sum_v, sum_vx, sum_vg = double_backward_sums_of(
        v + all_of_x, g + pooled, argmax + pooled, x + all_of_x, m, first, tl.minimum(first + size, windows), c, inside,
        high, broad, height, width, tall, wide, C, WINDOW, STEP, COLUMNS, REAL,
    )  # fmt: skip
    made += (task * number_of + part) * 5 * C
    store(made, c, sum_g, inside)
    store(made, c + C, sum_gx, inside)
    store(made, c + 2 * C, sum_v, inside)
    store(made, c + 3 * C, sum_vx, inside)
    store(made, c + 4 * C, sum_vg, inside)


@triton.jit(do_not_specialize=SIZES)
def norm_pool_relu_double_backward(
    v, a, b, g, x, made, weight, argmax, mean, var, gg, gx, gweight, windows, number_of, count, high, broad, height, width, tall, wide,
    EPS: tl.constexpr, C: tl.constexpr, WINDOW: tl.constexpr, PARTS: tl.constexpr, STEP: tl.constexpr, PLACES: tl.constexpr,
    COLUMNS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """The second derivative for some windows of a task: fills gg and gx there; the first program also gweight."""
    task = tl.program_id(1).to(tl.int64)
    c, inside = program_channels(C, COLUMNS)
    images = windows // (tall * wide)
    pooled, small = task * images * height * width * C, task * C
    g, argmax, gg = g + pooled, argmax + pooled, gg + pooled
    v, x, gx = v + task * count * C, x + task * count * C, gx + task * count * C
    m = load(mean + small, c, inside, REAL)
    if PARTS == 0:
        sum_g, sum_gx, sum_v, sum_vx, sum_vg = double_backward_sums_of(
            v, g, argmax, x, m, 0, windows, c, inside, high, broad, height, width, tall, wide, C, WINDOW, STEP, COLUMNS, REAL
        )  # fmt: skip
    else:
        made += task * number_of * 5 * C
        sum_g = sum_of_parts(made, c, inside, 0, 5, number_of, C, PARTS, REAL)
        sum_gx = sum_of_parts(made, c, inside, 1, 5, number_of, C, PARTS, REAL)
        sum_v = sum_of_parts(made, c, inside, 2, 5, number_of, C, PARTS, REAL)
        sum_vx = sum_of_parts(made, c, inside, 3, 5, number_of, C, PARTS, REAL)
        sum_vg = sum_of_parts(made, c, inside, 4, 5, number_of, C, PARTS, REAL)
    scale = 1.0 / tl.sqrt(load(var + small, c, inside, REAL) + tl.full([COLUMNS], EPS, REAL))
    w = load(weight + small, c, inside, REAL)
    slope, along_g, along_v = w * scale, sum_gx * scale, sum_vx * scale
    gw = scale * (sum_vg - (sum_v * sum_g + along_v * along_g) / count)
    if tl.program_id(0) == 0:
        store(gweight + small, c, gw, inside)
    by_g, by_v = load(a + small, c, inside, REAL) - slope * along_v / count, -slope * along_g / count
    g_x, g_1 = by_g * scale, load(b + small, c, inside, REAL) - slope * sum_v / count
    x_g, x_v, x_1 = scale * by_g, scale * by_v, -scale * (by_g * sum_g + by_v * sum_v) / count
    x_x = -scale * scale * (by_g * along_g + by_v * along_v + w * gw) / count
    place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    r, s, row, live, full, out, grad, at = pooled_gradients(
        g, argmax, place, windows, c, inside, high, broad, height, width, tall, wide, C, WINDOW, REAL
    )  # fmt: skip
    back = tl.zeros([PLACES, COLUMNS], REAL)
    for j in tl.static_range(WINDOW * WINDOW):
        real, here = entry_inside(j, r, s, live, high, broad, WINDOW), window_entry(j, row, c, broad, C, WINDOW)
        other, off = load(v, here, real, REAL), load(x, here, real, REAL) - m[None, :]
        value = tl.where(at == j, grad, 0.0)
        store(gx, here, x_g[None, :] * value + x_v[None, :] * other + x_x[None, :] * off + x_1[None, :], real)
        back = tl.where(at == j, slope[None, :] * other + g_x[None, :] * off + g_1[None, :], back)
    store(gg, out, back, full)
