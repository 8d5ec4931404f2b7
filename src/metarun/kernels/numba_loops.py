"""Loops over memory that torch's operators would pass over many times, compiled by Numba for the machine they run on.

What a block does behind its convolution, normalisation over a batch, max-pooling and ReLU, is bound by memory: here it is two passes
forward, of which the first only reads, and two on the way back. Arrays have the tasks first and the channels last; bfloat16 comes as its
bits, in uint16, and is computed with in float32. ``where`` says what an output was made of: a place of its window, 0 to window² - 1, or
window² where ReLU cut it off.
"""

from __future__ import annotations

from contextlib import nullcontext, suppress
from functools import cache, wraps
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor
from torch.profiler import record_function

from metarun.kernels.interface import Block, Kernels, Lift, Patches
from metarun.runtime.private import is_profiling

inlined: Any = intrinsic
BITS = ir.IntType(32)
ROWS = 64  # whose moments are taken at a time, so that they are still in the cache the second time
SPAN, LANES = 128, 16  # rows whose products are summed up at a time, and how many of them apart, side by side in vectors


def compiled(loops: Any) -> Any:
    """The function in machine code, made at its first call with arrays of a type and kept on disk for the next process."""
    # No licence to ignore what is no number: a run that diverges is to say so.
    function: Any = njit(nogil=True, error_model="numpy", fastmath={"contract", "nsz"})(loops)
    with suppress(RuntimeError):  # where nothing may be written, every process compiles anew
        function.enable_caching()
    return function


def shown(function: Any) -> Any:
    """The function under its own name in the traces of ``trainer.profile``."""

    name = f"metarun::{function.__qualname__.replace('.<locals>', '')}"

    @wraps(function)
    def call(*arguments: Any) -> None:
        with record_function(name) if is_profiling() else nullcontext():
            function(*arguments)

    return call


def array(x: Tensor, dims: int) -> np.ndarray[Any, Any]:
    """x with all but its last ``dims`` axes as one, in memory as they are written; bfloat16 as its bits."""
    x = x.detach().reshape(x.shape[: x.dim() - dims].numel(), *x.shape[x.dim() - dims :]).contiguous()
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


@inlined
def wide(_context: Any, value: Any) -> Any:
    """A stored number as it is computed with."""
    if value != types.uint16:
        return value(value), lambda context, builder, signature, args: args[0]

    def widen(_: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> ir.Value:
        return builder.bitcast(builder.shl(builder.zext(args[0], BITS), BITS(16)), ir.FloatType())

    return types.float32(value), widen


@inlined
def as_in(_context: Any, row: Any, value: Any) -> Any:
    """A computed number as this array stores it."""
    if row.dtype != types.uint16:
        return row.dtype(row, row.dtype), lambda context, builder, signature, args: args[1]

    def narrow(_: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> ir.Value:
        bits = builder.bitcast(args[1], BITS)
        odd = builder.and_(builder.lshr(bits, BITS(16)), BITS(1))
        near = builder.lshr(builder.add(builder.add(bits, BITS(0x7FFF)), odd), BITS(16))  # to the nearest, ties to even
        number = builder.fcmp_ordered("ord", args[1], args[1])
        return builder.trunc(builder.select(number, near, BITS(0x7FC0)), ir.IntType(16))

    return types.uint16(row, types.float32), narrow


@inlined
def only(_context: Any, place: Any, j: Any, value: Any) -> Any:
    """A value where an output is from place j of its window, else 0; ``value if place == j else 0`` would be a float64."""

    def select(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        here = builder.icmp_unsigned("==", args[0], context.cast(builder, args[1], signature.args[1], types.uint8))
        return builder.select(here, args[2], ir.Constant(args[2].type, 0.0))

    return value(place, j, value), select


@compiled
def moments(rows, mean, var):
    """Mean and variance of rows [n, channels], merged from those of few rows (Chan, Golub & LeVeque 1983)."""
    count, channels = 0, len(mean)
    total, square = np.zeros(channels), np.zeros(channels)
    part, spread = np.empty_like(mean), np.empty_like(mean)
    for first in range(0, len(rows), ROWS):
        size = min(ROWS, len(rows) - first)
        part[:] = 0
        spread[:] = 0
        for i in range(first, first + size):
            for c in range(channels):
                part[c] += wide(rows[i, c])
        for c in range(channels):
            part[c] /= size
        for i in range(first, first + size):
            for c in range(channels):
                off = wide(rows[i, c]) - part[c]
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
def sums(g, where, x, m, total, lean, window):
    """Of g, and of g times x less its mean."""
    n, height, width, channels = g.shape
    part, tilt = np.empty_like(m), np.empty_like(m)
    total[:] = 0
    lean[:] = 0
    for i in range(n):
        part[:] = 0
        tilt[:] = 0
        for r in range(height):
            for s in range(width):
                grad, place = g[i, r, s], where[i, r, s]
                for j in range(window * window):
                    row = x[i, window * r + j // window, window * s + j % window]
                    for c in range(channels):
                        value = only(place[c], j, wide(grad[c]))
                        part[c] += value
                        tilt[c] += value * (wide(row[c]) - m[c])
        for c in range(channels):
            total[c] += part[c]
            lean[c] += tilt[c]


@cache
def block(channels: int, window: int) -> Block:
    """Kernels for x [tasks, n, h, w, channels], y [tasks, n, h / window, w / window, channels] and weights [tasks, channels]."""
    nothing = window * window

    @compiled
    def forward(x, weight, bias, eps, y, where, mean, var):
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
                        out, place = y[t, i, r, s], where[t, i, r, s]
                        for j in range(nothing):
                            row = x[t, i, window * r + j // window, window * s + j % window]
                            for c in range(channels):
                                value = (wide(row[c]) - m[c]) * scale[c] + b[c]
                                if j == 0 or value > best[c] or value != value:
                                    best[c] = value
                                    place[c] = j
                        for c in range(channels):
                            dead = best[c] <= 0
                            out[c] = as_in(out, 0 if dead else best[c])
                            place[c] = nothing if dead else place[c]

    @compiled
    def backward(g, x, weight, where, mean, var, eps, gx, gweight, gbias):
        tasks, n, height, width, _ = g.shape
        high, broad = x.shape[2:4]
        count = n * high * broad
        total, lean = np.empty(channels), np.empty(channels)
        slope, along, flat = np.empty_like(mean[0]), np.empty_like(mean[0]), np.empty_like(mean[0])
        for t in range(tasks):
            m = mean[t]
            sums(g[t], where[t], x[t], m, total, lean, window)
            for c in range(channels):
                scale = 1 / np.sqrt(var[t, c] + eps)
                gweight[t, c] = lean[c] * scale
                gbias[t, c] = total[c]
                slope[c] = weight[t, c] * scale
                along[c] = -slope[c] * scale * scale * lean[c] / count
                flat[c] = -slope[c] * total[c] / count
            for i in range(n):
                for r in range(height):
                    for s in range(width):
                        grad, place = g[t, i, r, s], where[t, i, r, s]
                        for j in range(nothing):
                            down, right = window * r + j // window, window * s + j % window
                            row, out = x[t, i, down, right], gx[t, i, down, right]
                            for c in range(channels):
                                value = only(place[c], j, wide(grad[c]))
                                out[c] = as_in(out, slope[c] * value + along[c] * (wide(row[c]) - m[c]) + flat[c])
                for down in range(high):  # what no window covers
                    for right in range(window * width if down < window * height else 0, broad):
                        row, out = x[t, i, down, right], gx[t, i, down, right]
                        for c in range(channels):
                            out[c] = as_in(out, along[c] * (wide(row[c]) - m[c]) + flat[c])

    @compiled
    def second(v, a, b, g, x, weight, where, mean, var, eps, gg, gx, gweight):
        tasks, n, height, width, _ = g.shape
        high, broad = x.shape[2:4]
        count = n * high * broad
        # Sums of g and v, of their products with x less its mean, and of their product.
        sg, sgx, sv, svx, svg = np.empty(channels), np.empty(channels), np.empty(channels), np.empty(channels), np.empty(channels)
        like = mean[0]
        pv, pvx, pvg = np.empty_like(like), np.empty_like(like), np.empty_like(like)
        gv, gc, g0 = np.empty_like(like), np.empty_like(like), np.empty_like(like)
        xg, xv, xc, x0 = np.empty_like(like), np.empty_like(like), np.empty_like(like), np.empty_like(like)
        for t in range(tasks):
            m = mean[t]
            sums(g[t], where[t], x[t], m, sg, sgx, window)
            sv[:] = 0
            svx[:] = 0
            svg[:] = 0
            for i in range(n):
                pv[:] = 0
                pvx[:] = 0
                pvg[:] = 0
                for down in range(high):
                    for right in range(broad):
                        row, other = x[t, i, down, right], v[t, i, down, right]
                        for c in range(channels):
                            pv[c] += wide(other[c])
                            pvx[c] += wide(other[c]) * (wide(row[c]) - m[c])
                for r in range(height):
                    for s in range(width):
                        grad, place = g[t, i, r, s], where[t, i, r, s]
                        for j in range(nothing):
                            other = v[t, i, window * r + j // window, window * s + j % window]
                            for c in range(channels):
                                pvg[c] += only(place[c], j, wide(grad[c]) * wide(other[c]))
                for c in range(channels):
                    sv[c] += pv[c]
                    svx[c] += pvx[c]
                    svg[c] += pvg[c]
            for c in range(channels):
                scale = 1 / np.sqrt(var[t, c] + eps)
                slope = weight[t, c] * scale
                lean_g, lean_v = sgx[c] * scale, svx[c] * scale
                gweight[t, c] = scale * (svg[c] - (sv[c] * sg[c] + lean_v * lean_g) / count)
                gv[c] = slope
                gc[c] = (a[t, c] - slope * lean_v / count) * scale
                g0[c] = b[t, c] - slope * sv[c] / count
                by_g, by_v = a[t, c] - slope * lean_v / count, -slope * lean_g / count
                xg[c] = scale * by_g
                xv[c] = scale * by_v
                x0[c] = -scale * (by_g * sg[c] + by_v * sv[c]) / count
                xc[c] = -scale * scale * (by_g * lean_g + by_v * lean_v + weight[t, c] * gweight[t, c]) / count
            for i in range(n):
                for r in range(height):
                    for s in range(width):
                        grad, place, back = g[t, i, r, s], where[t, i, r, s], gg[t, i, r, s]
                        for c in range(channels):
                            back[c] = 0
                        for j in range(nothing):
                            down, right = window * r + j // window, window * s + j % window
                            row, other, out = x[t, i, down, right], v[t, i, down, right], gx[t, i, down, right]
                            for c in range(channels):
                                here = place[c] == j
                                value, off, w = only(place[c], j, wide(grad[c])), wide(row[c]) - m[c], wide(other[c])
                                out[c] = as_in(out, xg[c] * value + xv[c] * w + xc[c] * off + x0[c])
                                if here:
                                    back[c] = as_in(back, gv[c] * w + gc[c] * off + g0[c])
                for down in range(high):  # what no window covers
                    for right in range(window * width if down < window * height else 0, broad):
                        row, other, out = x[t, i, down, right], v[t, i, down, right], gx[t, i, down, right]
                        for c in range(channels):
                            out[c] = as_in(out, xv[c] * wide(other[c]) + xc[c] * (wide(row[c]) - m[c]) + x0[c])

    return Block(*map(shown, (forward, backward, second)))


@cache
def lift(inputs: int, channels: int, window: int) -> Lift:
    """Kernels for seen [tasks, n, h, w, inputs], weight [tasks, inputs, channels], y [tasks, n, h / window, w / window, channels]."""
    nothing = window * window

    @compiled
    def forward(seen, weight, bias, y, where):
        tasks, n, height, width, _ = y.shape
        best = np.empty_like(bias[0])
        for t in range(tasks):
            # Of the type that is computed with.
            w = np.empty((inputs, channels), bias.dtype)
            for k in range(inputs):
                for c in range(channels):
                    w[k, c] = weight[t, k, c]
            b = bias[t]
            for i in range(n):
                for r in range(height):
                    for s in range(width):
                        out, place = y[t, i, r, s], where[t, i, r, s]
                        for j in range(nothing):
                            row = seen[t, i, window * r + j // window, window * s + j % window]
                            for c in range(channels):
                                value = b[c]
                                for k in range(inputs):
                                    value += wide(row[k]) * w[k, c]
                                if j == 0 or value > best[c] or value != value:
                                    best[c] = value
                                    place[c] = j
                        for c in range(channels):
                            dead = best[c] <= 0
                            out[c] = as_in(out, 0 if dead else best[c])
                            place[c] = nothing if dead else place[c]

    @compiled
    def pick(seen, weight, bias, where, y):
        tasks, n, height, width, _ = y.shape
        found = np.empty_like(bias[0])
        for t in range(tasks):
            w, b = weight[t], bias[t]
            for i in range(n):
                for r in range(height):
                    for s in range(width):
                        out, place = y[t, i, r, s], where[t, i, r, s]
                        found[:] = 0
                        for j in range(nothing):
                            row = seen[t, i, window * r + j // window, window * s + j % window]
                            for c in range(channels):
                                value = b[c]
                                for k in range(inputs):
                                    value += wide(row[k]) * w[k, c]
                                found[c] = value if place[c] == j else found[c]
                        for c in range(channels):
                            out[c] = as_in(out, found[c])

    @compiled
    def collect(seen, g, where, gweight, gbias):
        tasks, n, height, width, _ = g.shape
        alive, values = np.empty((nothing, channels), gbias.dtype), np.empty(nothing, gbias.dtype)
        part, flat = np.empty((inputs, channels), gbias.dtype), np.empty_like(gbias[0])
        for t in range(tasks):
            total, level = np.zeros((inputs, channels)), np.zeros(channels)
            for i in range(n):
                part[:] = 0
                flat[:] = 0
                for r in range(height):
                    for s in range(width):
                        grad, place = g[t, i, r, s], where[t, i, r, s]
                        for j in range(nothing):
                            for c in range(channels):
                                alive[j, c] = only(place[c], j, wide(grad[c]))
                                flat[c] += alive[j, c]
                        for k in range(inputs):
                            for j in range(nothing):
                                values[j] = wide(seen[t, i, window * r + j // window, window * s + j % window, k])
                            for c in range(channels):
                                value = part[k, c]
                                for j in range(nothing):
                                    value += values[j] * alive[j, c]
                                part[k, c] = value
                for c in range(channels):
                    level[c] += flat[c]
                    for k in range(inputs):
                        total[k, c] += part[k, c]
            for c in range(channels):
                gbias[t, c] = level[c]
                for k in range(inputs):
                    gweight[t, k, c] = total[k, c]

    return Lift(*map(shown, (forward, pick, collect)))


@cache
def covariance(inputs: int) -> Any:
    """A kernel for the mean [tasks, inputs] and covariance [tasks, inputs, inputs], in float64, of rows [tasks, n, inputs]."""

    @compiled
    def covariance(rows, mean, spread):
        tasks, n, _ = rows.shape
        values = np.empty((inputs, SPAN))  # some rows, as columns
        part, flat = np.empty((inputs, inputs, LANES)), np.empty((inputs, LANES))
        for t in range(tasks):
            part[:] = 0
            flat[:] = 0
            for first in range(0, n, SPAN):
                if n - first < SPAN:
                    values[:] = 0
                for j in range(min(SPAN, n - first)):
                    for k in range(inputs):
                        values[k, j] = wide(rows[t, first + j, k])
                for a in range(inputs):
                    for c in range(LANES):
                        value = flat[a, c]
                        for j in range(0, SPAN, LANES):
                            value += values[a, j + c]
                        flat[a, c] = value
                    for b in range(a, inputs):
                        for c in range(LANES):
                            value = part[a, b, c]
                            for j in range(0, SPAN, LANES):
                                value += values[a, j + c] * values[b, j + c]
                            part[a, b, c] = value
            for a in range(inputs):
                mean[t, a] = flat[a].sum() / n
            for a in range(inputs):
                for b in range(a, inputs):
                    spread[t, a, b] = part[a, b].sum() / n - mean[t, a] * mean[t, b]
                    spread[t, b, a] = spread[t, a, b]

    return shown(covariance)


@cache
def patches(channels: int, kernel: int) -> Patches:
    """Kernels for x [n, h, w, channels] and seen [n, h', w', kernel² * channels]."""

    @compiled
    def gather(x, stride, padding, seen):
        n, height, width, _ = seen.shape
        for i in range(n):
            for r in range(height):
                for s in range(width):
                    for j in range(kernel * kernel):
                        down, right = stride * r + j // kernel - padding, stride * s + j % kernel - padding
                        out = seen[i, r, s, j * channels : (j + 1) * channels]
                        if 0 <= down < x.shape[1] and 0 <= right < x.shape[2]:
                            row = x[i, down, right]
                            for c in range(channels):
                                out[c] = row[c]
                        else:
                            for c in range(channels):
                                out[c] = 0

    @compiled
    def scatter(seen, stride, padding, total, x):
        """``total`` [channels] is room for a sum, of the type that is computed with."""
        n, height, width, _ = seen.shape
        for i in range(n):
            for down in range(x.shape[1]):
                for right in range(x.shape[2]):
                    total[:] = 0
                    for j in range(kernel * kernel):
                        r, s = down + padding - j // kernel, right + padding - j % kernel
                        if r % stride == 0 and s % stride == 0 and 0 <= r < stride * height and 0 <= s < stride * width:
                            row = seen[i, r // stride, s // stride, j * channels : (j + 1) * channels]
                            for c in range(channels):
                                total[c] += wide(row[c])
                    out = x[i, down, right]
                    for c in range(channels):
                        out[c] = as_in(out, total[c])

    return Patches(*map(shown, (gather, scatter)))


CPU = Kernels(array, block, lift, patches, covariance)
