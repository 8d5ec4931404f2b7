"""Triton kernels: the loops of ``kernels`` as programs of a GPU, each of which takes some places of a task and some of its channels.
Tensors are as there, tasks first and channels last. Names in capitals are constants that a kernel is compiled for."""

import triton
import triton.language as tl

# Numbers for which a kernel isn't compiled anew: where channels are many, they alone say how memory is aligned.
SIZES = ["rows", "size", "number_of", "places", "windows", "count", "images", "high", "broad", "height", "width", "tall", "wide"]

# A task is on the grid's second axis, channels on its third. Sides come as high x broad, of x, height x width, of y, and tall x wide,
# of all windows that touch x; a place is the number of a window, counted over the images of a task.


@triton.jit
def corner(place, down, across, high, broad, WINDOW: tl.constexpr):
    """Of windows numbered over down x across of each image: the image, the window's row and column, the place in x where it begins."""
    image, r, s = place // (down * across), place // across % down, place % across
    return image, r, s, (image.to(tl.int64) * high + WINDOW * r) * broad + WINDOW * s


@triton.jit
def entry(j: tl.constexpr, begin, c, broad, C: tl.constexpr, WINDOW: tl.constexpr):
    """Where x holds entry j of windows."""
    return (begin + (j // WINDOW) * broad + j % WINDOW)[:, None] * C + c[None, :]


@triton.jit
def has(j: tl.constexpr, r, s, live, high, broad, WINDOW: tl.constexpr):
    """Which windows' entry j x has."""
    return live & ((WINDOW * r + j // WINDOW < high) & (WINDOW * s + j % WINDOW < broad))[:, None]


@triton.jit
def columns(C: tl.constexpr, COLUMNS: tl.constexpr):
    """Those of a program, and which of them there are."""
    c = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    return c, c < C


@triton.jit
def number(x, at, live, REAL: tl.constexpr):
    """What x holds there, as it is computed with, and nothing elsewhere."""
    return tl.load(x + at, mask=live, other=0).to(REAL)


@triton.jit
def put(x, at, value, live):
    """Computed numbers into x, as it stores them."""
    tl.store(x + at, value.to(x.dtype.element_ty), mask=live)


@triton.jit
def spread(x, first, last, c, inside, C: tl.constexpr, STEP: tl.constexpr, COLUMNS: tl.constexpr, REAL: tl.constexpr):
    """Of rows first to last: mean, less the very first row, and sum of squares about it (Welford 1962, in every lane for itself)."""
    pivot = number(x, c, inside, REAL)
    count = tl.zeros([STEP, 1], REAL)
    mean, square = tl.zeros([STEP, COLUMNS], REAL), tl.zeros([STEP, COLUMNS], REAL)
    for begin in range(first, last, STEP):
        row = begin + tl.arange(0, STEP)
        live = (row < last)[:, None] & inside[None, :]
        value = number(x, row.to(tl.int64)[:, None] * C + c[None, :], live, REAL) - pivot[None, :]
        count += (row < last)[:, None].to(REAL)
        off = value - mean
        mean += tl.where(live, off * (1.0 / tl.maximum(count, 1.0)), 0.0)
        square += tl.where(live, off * (value - mean), 0.0)
    centre = tl.sum(count * mean, 0) / tl.sum(count, 0)
    off = mean - centre[None, :]
    return centre, tl.sum(square + count * off * off, 0)


@triton.jit
def merged(made, c, inside, rows, size, number_of, C: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr, REAL: tl.constexpr):
    """``spread`` of all rows, from that of parts of them (Chan, Golub & LeVeque 1983)."""
    part = tl.arange(0, PARTS)
    live = (part < number_of)[:, None] & inside[None, :]
    at = part.to(tl.int64)[:, None] * 2 * C + c[None, :]
    mean, square = number(made, at, live, REAL), number(made, at + C, live, REAL)
    count = tl.minimum(tl.maximum(rows - part * size, 0), size).to(REAL)[:, None]
    centre = tl.sum(count * mean, 0) / rows
    off = mean - centre[None, :]
    return centre, tl.sum(square + count * off * off, 0)


@triton.jit(do_not_specialize=SIZES)
def norm_moments(
    x, made, rows, size, number_of, C: tl.constexpr, STEP: tl.constexpr, COLUMNS: tl.constexpr, REAL: tl.constexpr
):  # fmt: skip
    """``spread`` of a part of x [tasks, rows, channels] to ``made`` [tasks, parts, 2, channels]."""
    part, task = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c, inside = columns(C, COLUMNS)
    first = part * size
    centre, square = spread(x + task * rows * C, first, tl.minimum(first + size, rows), c, inside, C, STEP, COLUMNS, REAL)
    made += (task * number_of + part) * 2 * C
    put(made, c, centre, inside)
    put(made, c + C, square, inside)


@triton.jit(do_not_specialize=SIZES)
def norm_merge(
    made, total, rows, size, number_of, C: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr, REAL: tl.constexpr
):  # fmt: skip
    """``merged`` of ``made`` [tasks, parts, 2, channels] to ``total`` [tasks, 1, 2, channels]."""
    task = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    centre, square = merged(made + task * number_of * 2 * C, c, c < C, rows, size, number_of, C, PARTS, COLUMNS, REAL)
    put(total + task * 2 * C, c, centre, c < C)
    put(total + task * 2 * C, c + C, square, c < C)


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
        total += number(made, (task * number_of + part)[:, None] * COLUMNS + column[None, :], live, REAL)
    result = tl.sum(total, 0)
    put(first, task * FIRST + column, result, column < FIRST)
    put(rest, task * (COLUMNS - FIRST) + column - FIRST, result, inside & (column >= FIRST))


@triton.jit(do_not_specialize=SIZES)
def norm_apply(
    x, made, weight, bias, y, where, mean, var, rows, size, number_of, places, high, broad, height, width,
    EPS: tl.constexpr, C: tl.constexpr, WINDOW: tl.constexpr, PARTS: tl.constexpr, STEP: tl.constexpr, PLACES: tl.constexpr,
    COLUMNS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """y and ``where`` of some places of a task, and its ``mean`` and ``var``."""
    task = tl.program_id(1).to(tl.int64)
    c, inside = columns(C, COLUMNS)
    x += task * rows * C
    if PARTS == 0:
        centre, square = spread(x, 0, rows, c, inside, C, STEP, COLUMNS, REAL)
    else:
        centre, square = merged(made + task * number_of * 2 * C, c, inside, rows, size, number_of, C, PARTS, COLUMNS, REAL)
    m, v = centre + number(x, c, inside, REAL), square / rows
    if tl.program_id(0) == 0:
        put(mean + task * C, c, m, inside)
        put(var + task * C, c, v, inside)
    scale = number(weight + task * C, c, inside, REAL) / tl.sqrt(v + tl.full([COLUMNS], EPS, REAL))
    shift = number(bias + task * C, c, inside, REAL)
    place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    live = (place < places)[:, None] & inside[None, :]
    _, _, _, begin = corner(place, height, width, high, broad, WINDOW)
    best = tl.zeros([PLACES, COLUMNS], REAL)
    found = tl.zeros([PLACES, COLUMNS], tl.int32)
    for j in tl.static_range(WINDOW * WINDOW):
        value = (number(x, entry(j, begin, c, broad, C, WINDOW), live, REAL) - m[None, :]) * scale[None, :] + shift[None, :]
        if j == 0:
            best = value
        else:
            better = (value > best) | (value != value)
            best = tl.where(better, value, best)
            found = tl.where(better, j, found)
    kept(y, where, task * places, place, c, live, best, found, C, WINDOW)


@triton.jit
def kept(y, where, before, place, c, live, best, found, C: tl.constexpr, WINDOW: tl.constexpr):
    """The positive part of the best numbers into y, and where they were found; what is no number stays none."""
    out = (before + place)[:, None] * C + c[None, :]
    put(y, out, tl.where(best <= 0, 0.0, best), live)
    put(where, out, tl.where(best <= 0, WINDOW * WINDOW, found), live)


@triton.jit
def gradients(
    g, where, place, last, c, inside, high, broad, height, width, tall, wide, C: tl.constexpr, WINDOW: tl.constexpr, REAL: tl.constexpr
):  # fmt: skip
    """Of windows that touch x: row, column, where in x they begin, and which there are; of those in y: which, where, g and ``where``."""
    image, r, s, begin = corner(place, tall, wide, high, broad, WINDOW)
    live = (place < last)[:, None] & inside[None, :]
    full = live & ((r < height) & (s < width))[:, None]
    out = ((image.to(tl.int64) * height + r) * width + s)[:, None] * C + c[None, :]
    return r, s, begin, live, full, out, number(g, out, full, REAL), tl.load(where + out, mask=full, other=WINDOW * WINDOW)


@triton.jit
def tilt(
    g, where, x, m, first, last, c, inside, high, broad, height, width, tall, wide,
    C: tl.constexpr, WINDOW: tl.constexpr, STEP: tl.constexpr, COLUMNS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Sums over windows first to last: of g, and of g times x less its mean."""
    total, lean = tl.zeros([STEP, COLUMNS], REAL), tl.zeros([STEP, COLUMNS], REAL)
    for begin in range(first, last, STEP):
        place = begin + tl.arange(0, STEP)
        _, _, row, _, full, _, grad, at = gradients(
            g, where, place, last, c, inside, high, broad, height, width, tall, wide, C, WINDOW, REAL
        )  # fmt: skip
        for j in tl.static_range(WINDOW * WINDOW):
            value = tl.where(at == j, grad, 0.0)
            off = number(x, entry(j, row, c, broad, C, WINDOW), full, REAL) - m[None, :]
            total += value
            lean += value * off
    return tl.sum(total, 0), tl.sum(lean, 0)


@triton.jit(do_not_specialize=SIZES)
def norm_sums(
    g, where, x, mean, made, windows, size, number_of, high, broad, height, width, tall, wide,
    C: tl.constexpr, WINDOW: tl.constexpr, STEP: tl.constexpr, COLUMNS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """``tilt`` of a part of the windows to ``made`` [tasks, parts, 2, channels]."""
    part, task = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c, inside = columns(C, COLUMNS)
    images, first = windows // (tall * wide), part * size
    pooled, all_of_x = task * images * height * width * C, task * images * high * broad * C
    m = number(mean + task * C, c, inside, REAL)
    total, leaning = tilt(
        g + pooled, where + pooled, x + all_of_x, m, first, tl.minimum(first + size, windows), c, inside,
        high, broad, height, width, tall, wide, C, WINDOW, STEP, COLUMNS, REAL,
    )  # fmt: skip
    made += (task * number_of + part) * 2 * C
    put(made, c, total, inside)
    put(made, c + C, leaning, inside)


@triton.jit
def taken(made, c, inside, which: tl.constexpr, SUMS: tl.constexpr, number_of, C: tl.constexpr, PARTS: tl.constexpr, REAL: tl.constexpr):
    """One of the sums of a task, over the parts [parts, sums, channels] it was made in."""
    part = tl.arange(0, PARTS)
    live = (part < number_of)[:, None] & inside[None, :]
    return tl.sum(number(made, (part * SUMS + which).to(tl.int64)[:, None] * C + c[None, :], live, REAL), 0)


@triton.jit(do_not_specialize=SIZES)
def norm_first(
    g, x, made, weight, where, mean, var, gx, gweight, gbias, windows, number_of, count, high, broad, height, width, tall, wide,
    EPS: tl.constexpr, C: tl.constexpr, WINDOW: tl.constexpr, PARTS: tl.constexpr, STEP: tl.constexpr, PLACES: tl.constexpr,
    COLUMNS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """The gradient in x of some windows, and those of weight and bias."""
    task = tl.program_id(1).to(tl.int64)
    c, inside = columns(C, COLUMNS)
    images = windows // (tall * wide)
    pooled, small = task * images * height * width * C, task * C
    g, where = g + pooled, where + pooled
    x, gx = x + task * count * C, gx + task * count * C
    m = number(mean + small, c, inside, REAL)
    if PARTS == 0:
        total, leaning = tilt(
            g, where, x, m, 0, windows, c, inside, high, broad, height, width, tall, wide, C, WINDOW, STEP, COLUMNS, REAL
        )  # fmt: skip
    else:
        made += task * number_of * 2 * C
        total = taken(made, c, inside, 0, 2, number_of, C, PARTS, REAL)
        leaning = taken(made, c, inside, 1, 2, number_of, C, PARTS, REAL)
    scale = 1.0 / tl.sqrt(number(var + small, c, inside, REAL) + tl.full([COLUMNS], EPS, REAL))
    if tl.program_id(0) == 0:
        put(gweight + small, c, leaning * scale, inside)
        put(gbias + small, c, total, inside)
    slope = number(weight + small, c, inside, REAL) * scale
    along, flat = -slope * scale * scale * leaning / count, -slope * total / count
    place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    r, s, row, live, _, _, grad, at = gradients(
        g, where, place, windows, c, inside, high, broad, height, width, tall, wide, C, WINDOW, REAL
    )  # fmt: skip
    for j in tl.static_range(WINDOW * WINDOW):
        real, here = has(j, r, s, live, high, broad, WINDOW), entry(j, row, c, broad, C, WINDOW)
        off = number(x, here, real, REAL) - m[None, :]
        put(gx, here, slope[None, :] * tl.where(at == j, grad, 0.0) + along[None, :] * off + flat[None, :], real)


@triton.jit
def tilts(
    v, g, where, x, m, first, last, c, inside, high, broad, height, width, tall, wide,
    C: tl.constexpr, WINDOW: tl.constexpr, STEP: tl.constexpr, COLUMNS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Sums over windows first to last: of g and v, each also times x less its mean, and of the product of both."""
    sg, sgx = tl.zeros([STEP, COLUMNS], REAL), tl.zeros([STEP, COLUMNS], REAL)
    sv, svx, svg = tl.zeros([STEP, COLUMNS], REAL), tl.zeros([STEP, COLUMNS], REAL), tl.zeros([STEP, COLUMNS], REAL)
    for begin in range(first, last, STEP):
        place = begin + tl.arange(0, STEP)
        r, s, row, live, _, _, grad, at = gradients(
            g, where, place, last, c, inside, high, broad, height, width, tall, wide, C, WINDOW, REAL
        )  # fmt: skip
        for j in tl.static_range(WINDOW * WINDOW):
            real, here = has(j, r, s, live, high, broad, WINDOW), entry(j, row, c, broad, C, WINDOW)
            value, other = tl.where(at == j, grad, 0.0), number(v, here, real, REAL)
            off = tl.where(real, number(x, here, real, REAL) - m[None, :], 0.0)
            sg += value
            sgx += value * off
            sv += other
            svx += other * off
            svg += tl.where(at == j, grad * other, 0.0)
    return tl.sum(sg, 0), tl.sum(sgx, 0), tl.sum(sv, 0), tl.sum(svx, 0), tl.sum(svg, 0)


@triton.jit(do_not_specialize=SIZES)
def norm_sums_of_second(
    v, g, where, x, mean, made, windows, size, number_of, high, broad, height, width, tall, wide,
    C: tl.constexpr, WINDOW: tl.constexpr, STEP: tl.constexpr, COLUMNS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """``tilts`` of a part of the windows to ``made`` [tasks, parts, 5, channels]."""
    part, task = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c, inside = columns(C, COLUMNS)
    images, first = windows // (tall * wide), part * size
    pooled, all_of_x = task * images * height * width * C, task * images * high * broad * C
    m = number(mean + task * C, c, inside, REAL)
    sg, sgx, sv, svx, svg = tilts(
        v + all_of_x, g + pooled, where + pooled, x + all_of_x, m, first, tl.minimum(first + size, windows), c, inside,
        high, broad, height, width, tall, wide, C, WINDOW, STEP, COLUMNS, REAL,
    )  # fmt: skip
    made += (task * number_of + part) * 5 * C
    put(made, c, sg, inside)
    put(made, c + C, sgx, inside)
    put(made, c + 2 * C, sv, inside)
    put(made, c + 3 * C, svx, inside)
    put(made, c + 4 * C, svg, inside)


@triton.jit(do_not_specialize=SIZES)
def norm_second(
    v, a, b, g, x, made, weight, where, mean, var, gg, gx, gweight, windows, number_of, count, high, broad, height, width, tall, wide,
    EPS: tl.constexpr, C: tl.constexpr, WINDOW: tl.constexpr, PARTS: tl.constexpr, STEP: tl.constexpr, PLACES: tl.constexpr,
    COLUMNS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """The second derivative in g and x of some windows, and that in the weight."""
    task = tl.program_id(1).to(tl.int64)
    c, inside = columns(C, COLUMNS)
    images = windows // (tall * wide)
    pooled, small = task * images * height * width * C, task * C
    g, where, gg = g + pooled, where + pooled, gg + pooled
    v, x, gx = v + task * count * C, x + task * count * C, gx + task * count * C
    m = number(mean + small, c, inside, REAL)
    if PARTS == 0:
        sg, sgx, sv, svx, svg = tilts(
            v, g, where, x, m, 0, windows, c, inside, high, broad, height, width, tall, wide, C, WINDOW, STEP, COLUMNS, REAL
        )  # fmt: skip
    else:
        made += task * number_of * 5 * C
        sg = taken(made, c, inside, 0, 5, number_of, C, PARTS, REAL)
        sgx = taken(made, c, inside, 1, 5, number_of, C, PARTS, REAL)
        sv = taken(made, c, inside, 2, 5, number_of, C, PARTS, REAL)
        svx = taken(made, c, inside, 3, 5, number_of, C, PARTS, REAL)
        svg = taken(made, c, inside, 4, 5, number_of, C, PARTS, REAL)
    scale = 1.0 / tl.sqrt(number(var + small, c, inside, REAL) + tl.full([COLUMNS], EPS, REAL))
    w = number(weight + small, c, inside, REAL)
    slope, lean_g, lean_v = w * scale, sgx * scale, svx * scale
    gw = scale * (svg - (sv * sg + lean_v * lean_g) / count)
    if tl.program_id(0) == 0:
        put(gweight + small, c, gw, inside)
    by_g, by_v = number(a + small, c, inside, REAL) - slope * lean_v / count, -slope * lean_g / count
    gc, g0 = by_g * scale, number(b + small, c, inside, REAL) - slope * sv / count
    xg, xv, x0 = scale * by_g, scale * by_v, -scale * (by_g * sg + by_v * sv) / count
    xc = -scale * scale * (by_g * lean_g + by_v * lean_v + w * gw) / count
    place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    r, s, row, live, full, out, grad, at = gradients(
        g, where, place, windows, c, inside, high, broad, height, width, tall, wide, C, WINDOW, REAL
    )  # fmt: skip
    back = tl.zeros([PLACES, COLUMNS], REAL)
    for j in tl.static_range(WINDOW * WINDOW):
        real, here = has(j, r, s, live, high, broad, WINDOW), entry(j, row, c, broad, C, WINDOW)
        other, off = number(v, here, real, REAL), number(x, here, real, REAL) - m[None, :]
        value = tl.where(at == j, grad, 0.0)
        put(gx, here, xg[None, :] * value + xv[None, :] * other + xc[None, :] * off + x0[None, :], real)
        back = tl.where(at == j, slope[None, :] * other + gc[None, :] * off + g0[None, :], back)
    put(gg, out, back, full)


@triton.jit(do_not_specialize=SIZES)
def lift_apply(
    seen, weight, bias, where, y, places, images, high, broad, height, width,
    KNOWN: tl.constexpr, K: tl.constexpr, C: tl.constexpr, WINDOW: tl.constexpr, PLACES: tl.constexpr, COLUMNS: tl.constexpr,
    REAL: tl.constexpr,
):  # fmt: skip
    """weight seen + bias at the places ``where``, if they are ``KNOWN``, else where it is largest, if positive, and where that is."""
    task = tl.program_id(1).to(tl.int64)
    c, inside = columns(C, COLUMNS)
    seen, weight = seen + task * images * high * broad * K, weight + task * K * C
    place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    live = (place < places)[:, None] & inside[None, :]
    out = (task * places + place)[:, None] * C + c[None, :]
    _, _, _, begin = corner(place, height, width, high, broad, WINDOW)
    # For every place anew: large loads are what a compiler lays out all else by, here with several channels to a thread.
    shift = number(bias + task * C, (place * 0)[:, None] + c[None, :], live, REAL)
    best = tl.zeros([PLACES, COLUMNS], REAL)
    found = tl.zeros([PLACES, COLUMNS], tl.int32)
    if KNOWN:
        found = tl.load(where + out, mask=live, other=WINDOW * WINDOW).to(tl.int32)
    for j in tl.static_range(WINDOW * WINDOW):
        at = (begin + (j // WINDOW) * broad + j % WINDOW) * K
        value = shift
        for k in tl.static_range(K):
            value += number(seen, at + k, place < places, REAL)[:, None] * number(weight, c + k * C, inside, REAL)[None, :]
        if KNOWN:
            best = tl.where(found == j, value, best)
        elif j == 0:
            best = value
        else:
            better = (value > best) | (value != value)
            best = tl.where(better, value, best)
            found = tl.where(better, j, found)
    if KNOWN:
        put(y, out, best, live)
    else:
        kept(y, where, task * places, place, c, live, best, found, C, WINDOW)


@triton.jit(do_not_specialize=SIZES)
def lift_collect(
    seen, g, where, made, places, size, number_of, images, high, broad, height, width,
    PRODUCT: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, C: tl.constexpr, WINDOW: tl.constexpr, STEP: tl.constexpr,
    COLUMNS: tl.constexpr, REAL: tl.constexpr,
):  # fmt: skip
    """Sums over a part of the places, of g times each value seen there, and of g: ``made`` [tasks, parts, K + 1, channels].

    ``PRODUCT``: as a matrix product, which takes float32 only.
    """
    part, task = tl.program_id(0), tl.program_id(1).to(tl.int64)
    c, inside = columns(C, COLUMNS)
    seen += task * images * high * broad * K
    k = tl.arange(0, ROWS)
    total = tl.zeros([ROWS, COLUMNS], REAL)
    last = tl.minimum(part * size + size, places)
    for first in range(part * size, last, STEP):
        place = first + tl.arange(0, STEP)
        live = (place < last)[:, None] & inside[None, :]
        out = (task * places + place)[:, None] * C + c[None, :]
        grad, at = number(g, out, live, REAL), tl.load(where + out, mask=live, other=WINDOW * WINDOW)
        _, _, _, begin = corner(place, height, width, high, broad, WINDOW)
        for j in tl.static_range(WINDOW * WINDOW):
            row = begin + (j // WINDOW) * broad + j % WINDOW
            values = number(seen, row[None, :] * K + k[:, None], (place < last)[None, :] & (k < K)[:, None], REAL)
            values = tl.where((k == K)[:, None], 1.0, values)  # so that the last sum is that of g alone
            alive = tl.where(at == j, grad, 0.0)
            if PRODUCT:
                total = tl.dot(values, alive, total, input_precision="ieee")
            else:
                total += tl.sum(values[:, :, None] * alive[None, :, :], 1)
    made += (task * number_of + part) * (K + 1) * C
    put(made, k[:, None] * C + c[None, :], total, (k < K + 1)[:, None] & inside[None, :])


@triton.jit(do_not_specialize=SIZES)
def patches_gather(
    x, seen, places, high, broad, height, width,
    C: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, PLACES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """What one entry of the kernel sees at some places."""
    # Entries of the same places are neighbours in time, so that x comes out of memory once.
    j = tl.program_id(0) % (KERNEL * KERNEL)
    place = tl.program_id(0) // (KERNEL * KERNEL) * PLACES + tl.arange(0, PLACES)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    image, r, s, _ = corner(place, height, width, high, broad, 1)
    down, right = STRIDE * r + j // KERNEL - PADDING, STRIDE * s + j % KERNEL - PADDING
    real = (place < places) & (down >= 0) & (down < high) & (right >= 0) & (right < broad)
    at = ((image.to(tl.int64) * high + down) * broad + right)[:, None] * C + c[None, :]
    value = tl.load(x + at, mask=real[:, None] & (c < C)[None, :], other=0)
    out = (place.to(tl.int64) * (KERNEL * KERNEL) + j)[:, None] * C + c[None, :]
    tl.store(seen + out, value, mask=(place < places)[:, None] & (c < C)[None, :])


@triton.jit(do_not_specialize=SIZES)
def patches_scatter(
    seen, x, places, high, broad, height, width,
    C: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, PLACES: tl.constexpr, COLUMNS: tl.constexpr,
    REAL: tl.constexpr,
):  # fmt: skip
    """The sum, at some places of x, of all that was seen of them."""
    place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    image, down, right, _ = corner(place, high, broad, high, broad, 1)
    total = tl.zeros([PLACES, COLUMNS], REAL)
    for j in tl.static_range(KERNEL * KERNEL):
        r, s = down + PADDING - j // KERNEL, right + PADDING - j % KERNEL
        real = (place < places) & (r >= 0) & (s >= 0) & (r % STRIDE == 0) & (s % STRIDE == 0)
        real = real & (r < STRIDE * height) & (s < STRIDE * width)
        row = (image.to(tl.int64) * height + r // STRIDE) * width + s // STRIDE
        total += number(seen, (row * (KERNEL * KERNEL) + j)[:, None] * C + c[None, :], real[:, None] & (c < C)[None, :], REAL)
    put(x, place.to(tl.int64)[:, None] * C + c[None, :], total, (place < places)[:, None] & (c < C)[None, :])
