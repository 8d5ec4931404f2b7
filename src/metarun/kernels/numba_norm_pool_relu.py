"""Batch normalisation, max-pooling and ReLU in one operation on a CPU, with its first and second derivative.

All three layers are bound by memory: together they are two passes over it forward, of which the first only reads, and two backward.

Shapes: x [tasks, n, h, w, channels], y and argmax [tasks, n, h / window, w / window, channels], weight, bias, mean and var
[tasks, channels]. ``argmax`` says which entry of its window an output is from, 0 to window² - 1, or window² where ReLU cut it off.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from metarun.kernels.interface import NormPoolReLU
from metarun.kernels.numba_compile import compiled, downcast, inlined, keep_largest, masked, relu, shown, upcast

ROWS = 64  # whose moments are taken at a time, so that they are still in the cache the second time


@compiled
def moments(rows, mean, var):
    """Mean and variance [channels] of rows [n, channels], merged from those of few rows (Chan, Golub & LeVeque 1983)."""
    count, channels = 0, len(mean)
    total, square = np.zeros(channels), np.zeros(channels)
    part, spread = np.empty_like(mean), np.empty_like(mean)
    for first in range(0, len(rows), ROWS):
        size = min(ROWS, len(rows) - first)
        part[:] = 0
        spread[:] = 0
        for i in range(first, first + size):
            for c in range(channels):
                part[c] += upcast(rows[i, c])
        for c in range(channels):
            part[c] /= size
        for i in range(first, first + size):
            for c in range(channels):
                off = upcast(rows[i, c]) - part[c]
                spread[c] += off * off
        for c in range(channels):
            off = part[c] - total[c]
            total[c] += off * size / (count + size)
            square[c] += spread[c] + off * off * count * size / (count + size)
        count += size
    for c in range(channels):
        mean[c] = total[c]
        var[c] = square[c] / count


@compiled
def gradient_sums(g, argmax, x, m, sum_g, sum_gx, window):
    """Sums [channels] over all places of max-pooling's gradient, and of its products with x less the mean m.

    g and argmax [n, h / window, w / window, channels], x [n, h, w, channels], m [channels].
    """
    n, height, width, channels = g.shape
    image_g, image_gx = np.empty_like(m), np.empty_like(m)  # sums of an image in its own precision, those of all in float64
    sum_g[:] = 0
    sum_gx[:] = 0
    for i in range(n):
        image_g[:] = 0
        image_gx[:] = 0
        for r in range(height):
            for s in range(width):
                grad, place = g[i, r, s], argmax[i, r, s]
                for j in range(window * window):
                    row = x[i, window * r + j // window, window * s + j % window]
                    for c in range(channels):
                        value = masked(place[c], j, upcast(grad[c]))
                        image_g[c] += value
                        image_gx[c] += value * (upcast(row[c]) - m[c])
        for c in range(channels):
            sum_g[c] += image_g[c]
            sum_gx[c] += image_gx[c]


@inlined
def uncovered(down, height, width, window):
    """The first column of row ``down`` of an image that no window covers, for height x width windows."""
    return window * width if down < window * height else 0


@cache
def norm_pool_relu(channels: int, window: int) -> NormPoolReLU:
    """The kernels for so many channels and windows of window x window, 1 for no pooling."""
    nothing = window * window

    @compiled
    def forward(x, weight, bias, eps, y, argmax, mean, var):
        """Of x, weight, bias: fills y, argmax, mean and var."""
        tasks, n, height, width, _ = y.shape
        scale, best = np.empty_like(mean[0]), np.empty_like(mean[0])
        for t in range(tasks):
            moments(x[t].reshape(-1, channels), mean[t], var[t])
            m, b = mean[t], bias[t]
            for c in range(channels):
                scale[c] = weight[t, c] / np.sqrt(var[t, c] + eps)
            for i in range(n):
                for r in range(height):
                    for s in range(width):
                        out, place = y[t, i, r, s], argmax[t, i, r, s]
                        for j in range(nothing):
                            row = x[t, i, window * r + j // window, window * s + j % window]
                            for c in range(channels):
                                keep_largest((upcast(row[c]) - m[c]) * scale[c] + b[c], j, c, best, place)
                        relu(best, place, nothing, channels, out)

    @compiled
    def backward(g, x, weight, argmax, mean, var, eps, gx, gweight, gbias):
        """Of the output's gradient g [as y]: fills gx [as x], gweight and gbias [as weight].

        gx is linear in the gradient that max-pooling passes on and in x less its mean: by_g * gradient + by_x * (x - mean) + constant.
        """
        tasks, n, height, width, _ = g.shape
        high, broad = x.shape[2:4]
        count = n * high * broad
        sum_g, sum_gx = np.empty(channels), np.empty(channels)
        by_g, by_x, constant = np.empty_like(mean[0]), np.empty_like(mean[0]), np.empty_like(mean[0])
        for t in range(tasks):
            m = mean[t]
            gradient_sums(g[t], argmax[t], x[t], m, sum_g, sum_gx, window)
            for c in range(channels):
                scale = 1 / np.sqrt(var[t, c] + eps)
                gweight[t, c] = sum_gx[c] * scale
                gbias[t, c] = sum_g[c]
                by_g[c] = weight[t, c] * scale
                by_x[c] = -by_g[c] * scale * scale * sum_gx[c] / count
                constant[c] = -by_g[c] * sum_g[c] / count
            for i in range(n):
                for r in range(height):
                    for s in range(width):
                        grad, place = g[t, i, r, s], argmax[t, i, r, s]
                        for j in range(nothing):
                            down, right = window * r + j // window, window * s + j % window
                            row, out = x[t, i, down, right], gx[t, i, down, right]
                            for c in range(channels):
                                value = masked(place[c], j, upcast(grad[c]))
                                out[c] = downcast(out, by_g[c] * value + by_x[c] * (upcast(row[c]) - m[c]) + constant[c])
                for down in range(high):
                    for right in range(uncovered(down, height, width, window), broad):
                        row, out = x[t, i, down, right], gx[t, i, down, right]
                        for c in range(channels):
                            out[c] = downcast(out, by_x[c] * (upcast(row[c]) - m[c]) + constant[c])

    @compiled
    def double_backward(v, a, b, g, x, weight, argmax, mean, var, eps, gg, gx, gweight):
        """Of the gradients v [as x], a and b [as weight] of what ``backward`` gives: fills gg [as y], gx [as x] and gweight [as weight].

        Both gg and gx are linear in what ``backward`` reads, with coefficients for each channel: g_v is that of v in gg, and so on.
        """
        tasks, n, height, width, _ = g.shape
        high, broad = x.shape[2:4]
        count = n * high * broad
        # Sums of g and v, of their products with x less its mean, and of their product; of v those of an image, too.
        sum_g, sum_gx = np.empty(channels), np.empty(channels)
        sum_v, sum_vx, sum_vg = np.empty(channels), np.empty(channels), np.empty(channels)
        like = mean[0]
        image_v, image_vx, image_vg = np.empty_like(like), np.empty_like(like), np.empty_like(like)
        g_v, g_x, g_1 = np.empty_like(like), np.empty_like(like), np.empty_like(like)
        x_g, x_v, x_x, x_1 = np.empty_like(like), np.empty_like(like), np.empty_like(like), np.empty_like(like)
        for t in range(tasks):
            m = mean[t]
            gradient_sums(g[t], argmax[t], x[t], m, sum_g, sum_gx, window)
            sum_v[:] = 0
            sum_vx[:] = 0
            sum_vg[:] = 0
            for i in range(n):
                image_v[:] = 0
                image_vx[:] = 0
                image_vg[:] = 0
                for down in range(high):
                    for right in range(broad):
                        row, other = x[t, i, down, right], v[t, i, down, right]
                        for c in range(channels):
                            image_v[c] += upcast(other[c])
                            image_vx[c] += upcast(other[c]) * (upcast(row[c]) - m[c])
                for r in range(height):
                    for s in range(width):
                        grad, place = g[t, i, r, s], argmax[t, i, r, s]
                        for j in range(nothing):
                            other = v[t, i, window * r + j // window, window * s + j % window]
                            for c in range(channels):
                                image_vg[c] += masked(place[c], j, upcast(grad[c]) * upcast(other[c]))
                for c in range(channels):
                    sum_v[c] += image_v[c]
                    sum_vx[c] += image_vx[c]
                    sum_vg[c] += image_vg[c]
            for c in range(channels):
                scale = 1 / np.sqrt(var[t, c] + eps)
                slope = weight[t, c] * scale
                along_g, along_v = sum_gx[c] * scale, sum_vx[c] * scale
                gweight[t, c] = scale * (sum_vg[c] - (sum_v[c] * sum_g[c] + along_v * along_g) / count)
                by_g, by_v = a[t, c] - slope * along_v / count, -slope * along_g / count
                g_v[c] = slope
                g_x[c] = by_g * scale
                g_1[c] = b[t, c] - slope * sum_v[c] / count
                x_g[c] = scale * by_g
                x_v[c] = scale * by_v
                x_1[c] = -scale * (by_g * sum_g[c] + by_v * sum_v[c]) / count
                x_x[c] = -scale * scale * (by_g * along_g + by_v * along_v + weight[t, c] * gweight[t, c]) / count
            for i in range(n):
                for r in range(height):
                    for s in range(width):
                        grad, place, back = g[t, i, r, s], argmax[t, i, r, s], gg[t, i, r, s]
                        for c in range(channels):
                            back[c] = 0
                        for j in range(nothing):
                            down, right = window * r + j // window, window * s + j % window
                            row, other, out = x[t, i, down, right], v[t, i, down, right], gx[t, i, down, right]
                            for c in range(channels):
                                here = place[c] == j
                                value, off, w = masked(place[c], j, upcast(grad[c])), upcast(row[c]) - m[c], upcast(other[c])
                                out[c] = downcast(out, x_g[c] * value + x_v[c] * w + x_x[c] * off + x_1[c])
                                if here:
                                    back[c] = downcast(back, g_v[c] * w + g_x[c] * off + g_1[c])
                for down in range(high):
                    for right in range(uncovered(down, height, width, window), broad):
                        row, other, out = x[t, i, down, right], v[t, i, down, right], gx[t, i, down, right]
                        for c in range(channels):
                            out[c] = downcast(out, x_v[c] * upcast(other[c]) + x_x[c] * (upcast(row[c]) - m[c]) + x_1[c])

    return NormPoolReLU(*map(shown, (forward, backward, double_backward)))
