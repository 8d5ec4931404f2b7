"""A linear map of few inputs, max-pooling and ReLU in one operation on a CPU: a first layer with its norm folded in, on patches of images.

Shapes: patches [tasks, n, h, w, inputs], weight [tasks, inputs, channels], bias [tasks, channels], y and argmax
[tasks, n, h / window, w / window, channels], argmax as in ``numba_norm_pool_relu``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from metarun.kernels.interface import LinearPoolReLU
from metarun.kernels.numba_compile import compiled, downcast, inlined, keep_largest, masked, relu, shown, upcast

SPAN, LANES = 128, 16  # rows whose products are summed up at a time, and how many of them apart, side by side in vectors


@inlined
def linear(row, weight, bias, inputs, c):
    """bias + row · weight, output c, of row [inputs], weight [inputs, channels] and bias [channels]."""
    value = bias[c]
    for k in range(inputs):
        value += upcast(row[k]) * weight[k, c]
    return value


@cache
def linear_pool_relu(inputs: int, channels: int, window: int) -> LinearPoolReLU:
    """The kernels for so many inputs and channels, and windows of window x window, 1 for no pooling."""
    nothing = window * window

    @compiled
    def forward(patches, weight, bias, y, argmax):
        """Of patches, weight and bias: fills y and argmax."""
        tasks, n, height, width, _ = y.shape
        best = np.empty_like(bias[0])
        for t in range(tasks):
            w = np.empty((inputs, channels), bias.dtype)  # of the type that is computed with
            for k in range(inputs):
                for c in range(channels):
                    w[k, c] = weight[t, k, c]
            b = bias[t]
            for i in range(n):
                for r in range(height):
                    for s in range(width):
                        out, place = y[t, i, r, s], argmax[t, i, r, s]
                        for j in range(nothing):
                            row = patches[t, i, window * r + j // window, window * s + j % window]
                            for c in range(channels):
                                keep_largest(linear(row, w, b, inputs, c), j, c, best, place)
                        relu(best, place, nothing, channels, out)

    @compiled
    def at_argmax(patches, weight, bias, argmax, y):
        """The linear map for the entries that argmax names, 0 where ReLU cut off: fills y. Linear in weight and bias."""
        tasks, n, height, width, _ = y.shape
        found = np.empty_like(bias[0])
        for t in range(tasks):
            w, b = weight[t], bias[t]
            for i in range(n):
                for r in range(height):
                    for s in range(width):
                        out, place = y[t, i, r, s], argmax[t, i, r, s]
                        found[:] = 0
                        for j in range(nothing):
                            row = patches[t, i, window * r + j // window, window * s + j % window]
                            for c in range(channels):
                                value = linear(row, w, b, inputs, c)
                                found[c] = value if place[c] == j else found[c]
                        for c in range(channels):
                            out[c] = downcast(out, found[c])

    @compiled
    def backward(patches, g, argmax, gweight, gbias):
        """Of the output's gradient g [as y]: fills gweight and gbias; the transpose of ``at_argmax``."""
        tasks, n, height, width, _ = g.shape
        alive, values = np.empty((nothing, channels), gbias.dtype), np.empty(nothing, gbias.dtype)
        image_weight, image_bias = np.empty((inputs, channels), gbias.dtype), np.empty_like(gbias[0])
        for t in range(tasks):
            sum_weight, sum_bias = np.zeros((inputs, channels)), np.zeros(channels)
            for i in range(n):
                image_weight[:] = 0
                image_bias[:] = 0
                for r in range(height):
                    for s in range(width):
                        grad, place = g[t, i, r, s], argmax[t, i, r, s]
                        for j in range(nothing):
                            for c in range(channels):
                                alive[j, c] = masked(place[c], j, upcast(grad[c]))
                                image_bias[c] += alive[j, c]
                        for k in range(inputs):
                            for j in range(nothing):
                                values[j] = upcast(patches[t, i, window * r + j // window, window * s + j % window, k])
                            for c in range(channels):
                                value = image_weight[k, c]
                                for j in range(nothing):
                                    value += values[j] * alive[j, c]
                                image_weight[k, c] = value
                for c in range(channels):
                    sum_bias[c] += image_bias[c]
                    for k in range(inputs):
                        sum_weight[k, c] += image_weight[k, c]
            for c in range(channels):
                gbias[t, c] = sum_bias[c]
                for k in range(inputs):
                    gweight[t, k, c] = sum_weight[k, c]

    return LinearPoolReLU(*map(shown, (forward, at_argmax, backward)))


@cache
def covariance(inputs: int) -> Any:
    """The kernel for the mean [tasks, inputs] and covariance [tasks, inputs, inputs], in float64, of rows [tasks, n, inputs]."""

    @compiled
    def covariance(rows, mean, spread):
        """Of rows: fills ``mean`` and the covariance ``spread``."""
        tasks, n, _ = rows.shape
        values = np.empty((inputs, SPAN))  # some rows, as columns
        products, sums = np.empty((inputs, inputs, LANES)), np.empty((inputs, LANES))
        for t in range(tasks):
            products[:] = 0
            sums[:] = 0
            for first in range(0, n, SPAN):
                if n - first < SPAN:
                    values[:] = 0
                for j in range(min(SPAN, n - first)):
                    for k in range(inputs):
                        values[k, j] = upcast(rows[t, first + j, k])
                for a in range(inputs):
                    for c in range(LANES):
                        value = sums[a, c]
                        for j in range(0, SPAN, LANES):
                            value += values[a, j + c]
                        sums[a, c] = value
                    for b in range(a, inputs):
                        for c in range(LANES):
                            value = products[a, b, c]
                            for j in range(0, SPAN, LANES):
                                value += values[a, j + c] * values[b, j + c]
                            products[a, b, c] = value
            for a in range(inputs):
                mean[t, a] = sums[a].sum() / n
            for a in range(inputs):
                for b in range(a, inputs):
                    spread[t, a, b] = products[a, b].sum() / n - mean[t, a] * mean[t, b]
                    spread[t, b, a] = spread[t, a, b]

    return shown(covariance)
