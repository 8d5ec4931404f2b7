"""im2col and col2im on a CPU, between x [n, h, w, channels] and patches [n, h', w', kernel² * channels], channels last in both."""

from __future__ import annotations

from functools import cache

from metarun.kernels.interface import Im2col
from metarun.kernels.numba_compile import compiled, downcast, shown, upcast


@cache
def im2col(channels: int, kernel: int) -> Im2col:
    """The kernels for so many channels, and a kernel of kernel x kernel."""

    @compiled
    def im2col(x, stride, padding, patches):
        """Of x: fills patches."""
        n, height, width, _ = patches.shape
        for i in range(n):
            for r in range(height):
                for s in range(width):
                    for j in range(kernel * kernel):
                        down, right = stride * r + j // kernel - padding, stride * s + j % kernel - padding
                        out = patches[i, r, s, j * channels : (j + 1) * channels]
                        if 0 <= down < x.shape[1] and 0 <= right < x.shape[2]:
                            row = x[i, down, right]
                            for c in range(channels):
                                out[c] = row[c]
                        else:
                            for c in range(channels):
                                out[c] = 0

    @compiled
    def col2im(patches, stride, padding, total, x):
        """Of patches: fills x. ``total`` [channels] is room for a sum, of the type that is computed with."""
        n, height, width, _ = patches.shape
        for i in range(n):
            for down in range(x.shape[1]):
                for right in range(x.shape[2]):
                    total[:] = 0
                    for j in range(kernel * kernel):
                        r, s = down + padding - j // kernel, right + padding - j % kernel
                        if r % stride == 0 and s % stride == 0 and 0 <= r < stride * height and 0 <= s < stride * width:
                            row = patches[i, r // stride, s // stride, j * channels : (j + 1) * channels]
                            for c in range(channels):
                                total[c] += upcast(row[c])
                    out = x[i, down, right]
                    for c in range(channels):
                        out[c] = downcast(out, total[c])

    return Im2col(*map(shown, (im2col, col2im)))
