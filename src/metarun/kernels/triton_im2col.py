"""im2col and col2im on a GPU: see ``numba_im2col``."""

import triton
import triton.language as tl

from metarun.kernels.triton_windows import SIZES, load, store, window_origin


@triton.jit(do_not_specialize=SIZES)
def im2col(
    x, patches, places, high, broad, height, width,
    C: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, PLACES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """What one entry of the kernel sees at some places: fills patches [n, h', w', kernel² * channels] from x [n, h, w, channels]."""
    # Programs for the entries of the same places follow each other, so that x is read from memory once and then from the cache.
    j = tl.program_id(0) % (KERNEL * KERNEL)
    place = tl.program_id(0) // (KERNEL * KERNEL) * PLACES + tl.arange(0, PLACES)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    image, r, s, _ = window_origin(place, height, width, high, broad, 1)
    down, right = STRIDE * r + j // KERNEL - PADDING, STRIDE * s + j % KERNEL - PADDING
    real = (place < places) & (down >= 0) & (down < high) & (right >= 0) & (right < broad)
    at = ((image.to(tl.int64) * high + down) * broad + right)[:, None] * C + c[None, :]
    value = tl.load(x + at, mask=real[:, None] & (c < C)[None, :], other=0)
    out = (place.to(tl.int64) * (KERNEL * KERNEL) + j)[:, None] * C + c[None, :]
    tl.store(patches + out, value, mask=(place < places)[:, None] & (c < C)[None, :])


@triton.jit(do_not_specialize=SIZES)
def col2im(
    patches, x, places, high, broad, height, width,
    C: tl.constexpr, KERNEL: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr, PLACES: tl.constexpr, COLUMNS: tl.constexpr,
    REAL: tl.constexpr,
):  # fmt: skip
    """Adds up patches [n, h', w', kernel² * channels] at some places of x [n, h, w, channels]: fills x there."""
    place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    image, down, right, _ = window_origin(place, high, broad, high, broad, 1)
    total = tl.zeros([PLACES, COLUMNS], REAL)
    for j in tl.static_range(KERNEL * KERNEL):
        r, s = down + PADDING - j // KERNEL, right + PADDING - j % KERNEL
        real = (place < places) & (r >= 0) & (s >= 0) & (r % STRIDE == 0) & (s % STRIDE == 0)
        real = real & (r < STRIDE * height) & (s < STRIDE * width)
        row = (image.to(tl.int64) * height + r // STRIDE) * width + s // STRIDE
        total += load(patches, (row * (KERNEL * KERNEL) + j)[:, None] * C + c[None, :], real[:, None] & (c < C)[None, :], REAL)
    store(x, place.to(tl.int64)[:, None] * C + c[None, :], total, (place < places)[:, None] & (c < C)[None, :])
