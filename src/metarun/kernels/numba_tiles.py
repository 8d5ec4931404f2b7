"""Machine code for ``numba_conv``: the micro-kernel of a matrix product, a tile of results in registers at a time, and the loops around it.
Instructions and loops are in one file, as Numba compiles anew when the file of the loops has changed."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from metarun.kernels.numba_compile import BITS, compiled, shown

inlined: Any = intrinsic(prefer_literal=True)
LONG, REAL, ANYWHERE = ir.IntType(64), ir.FloatType(), ir.PointerType()
ROWS = 6  # of a tile. By 4 vectors of 16, with those and one more, they take 29 of AVX-512's 32 registers; by 2, 15 of AVX2's 16
NEAR = 1 << 16  # words of images that are gone through together: as many as stay in a core's cache beside the weights
LOW, HIGH, HALF = np.uint32(0xFFFF), np.uint32(0xFFFF0000), np.uint32(16)


class BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"


class Site:
    """Where an intrinsic's instructions go, and its arguments there: arrays as addresses, numbers as 64 bits."""

    def __init__(self, context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> None:
        self.context, self.builder, self.kinds, self.args = context, builder, signature.args, args

    def address(self, i: int) -> ir.Value:
        data = self.context.make_array(self.kinds[i])(self.context, self.builder, self.args[i]).data
        return self.builder.inttoptr(self.builder.ptrtoint(data, LONG), ANYWHERE)

    def number(self, i: int) -> ir.Value:
        return self.context.cast(self.builder, self.args[i], self.kinds[i], types.int64)

    def at(self, address: ir.Value, offset: ir.Value | int, kind: ir.Type = BITS) -> ir.Value:
        """The address so many of a kind further on."""
        return self.builder.gep(address, [LONG(offset) if isinstance(offset, int) else offset], source_etype=kind)

    def integer(self, address: ir.Value, i: int) -> ir.Value:
        """Entry i of an array of int64."""
        return self.builder.load(self.at(address, i, LONG), align=8, typ=LONG)


@inlined
def tile(_context: Any, lanes: Any, vectors: Any, pairs: Any, rows: Any, a: Any, at: Any, b: Any, start: Any, moves: Any, count: Any,
         depth: Any, step_a: Any, step_b: Any, out: Any, to: Any, more: Any) -> Any:  # fmt: skip
    """out[to[r] + c] = Σ a[at[r] + moves[m, 0] + k step_a] b[start + moves[m, 1] + k step_b + c] over m < count and k < depth.

    For r < rows ≤ ``ROWS`` and c < vectors * lanes, which are in registers all the while. Arrays are flat. Words of a and b are float32 or,
    in ``pairs``, two bfloat16 each, whose products are added up; out is float32 as uint32, to which ``more`` adds, or bfloat16 as uint16.
    """
    width, wide, two, narrow = lanes.literal_value, vectors.literal_value, bool(pairs.literal_value), out.dtype == types.uint16
    reals, words = ir.VectorType(REAL, width), ir.VectorType(BITS, width)
    operand = ir.VectorType(BFloat(), 2 * width) if two else reals
    kind = ir.IntType(16) if narrow else BITS

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        site = Site(context, builder, signature, args)
        a, at, b, moves, out, to = map(site.address, (4, 5, 6, 8, 13, 14))
        rows, start, count, depth, step_a, step_b = map(site.number, (3, 7, 9, 10, 11, 12))
        name = "llvm.x86.avx512bf16.dpbf16ps.512" if two else f"llvm.fma.v{width}f32"
        fused = builder.module.declare_intrinsic(name, fnty=ir.FunctionType(reals, [reals, operand, operand]))

        def everywhere(address: ir.Value) -> ir.Value:
            """The word there, in every lane."""
            none = ir.Constant(words, ir.Undefined)
            one = builder.insert_element(none, builder.load(address, align=4, typ=BITS), BITS(0))
            return builder.bitcast(builder.shuffle_vector(one, none, ir.Constant(words, [0] * width)), operand)

        def case(rows: int) -> None:
            """The loops for so many rows, after the present block."""
            before = builder.block
            outer, enter, inner, onward, leave = map(builder.append_basic_block, ("outer", "enter", "inner", "onward", "leave"))
            firsts = [site.at(a, site.integer(at, r)) for r in range(rows)]
            ends = [site.at(site.at(out, site.integer(to, r), kind), v * width, kind) for r in range(rows) for v in range(wide)]
            builder.branch(outer)

            builder.position_at_end(outer)
            m, totals = builder.phi(LONG), [builder.phi(reals) for _ in ends]
            builder.cbranch(builder.icmp_signed("<", m, count), enter, leave)

            builder.position_at_end(enter)
            move = site.at(moves, builder.shl(m, LONG(1)), LONG)
            by_a, by_b = site.integer(move, 0), builder.add(start, site.integer(move, 1))
            lines, column = [site.at(first, by_a) for first in firsts], site.at(b, by_b)
            builder.branch(inner)

            builder.position_at_end(inner)
            (k, to_a, to_b), sums = (builder.phi(LONG) for _ in range(3)), [builder.phi(reals) for _ in ends]
            here = site.at(column, to_b)
            weights = [builder.load(site.at(here, v * width), align=4, typ=operand) for v in range(wide)]
            values = [everywhere(site.at(line, to_a)) for line in lines]
            results = [builder.call(fused, [one, x, y] if two else [x, y, one]) for one, (x, y) in zip(sums, product(values, weights))]
            ahead = [builder.add(now, by) for now, by in ((k, LONG(1)), (to_a, step_a), (to_b, step_b))]
            builder.cbranch(builder.icmp_signed("<", ahead[0], depth), inner, onward)

            builder.position_at_end(onward)
            following = builder.add(m, LONG(1))
            builder.branch(outer)

            zero = ir.Constant(reals, [0.0] * width)
            joins = [(m, {before: LONG(0), onward: following})]
            joins += [(total, {before: zero, onward: new}) for total, new in zip(totals, results)]
            joins += [(now, {enter: LONG(0), inner: then}) for now, then in zip((k, to_a, to_b), ahead)]
            joins += [(one, {enter: total, inner: new}) for one, total, new in zip(sums, totals, results)]
            for phi, origins in joins:
                for block, value in origins.items():
                    phi.add_incoming(value, block)

            builder.position_at_end(leave)
            for total, end in zip(totals, ends):
                if narrow:
                    builder.store(builder.fptrunc(total, ir.VectorType(BFloat(), width)), end, align=2)
                else:  # added at the end, as sums of sums are the more exact ones
                    with_old = builder.fadd(total, builder.load(end, align=4, typ=reals))
                    builder.store(builder.select(builder.trunc(args[15], ir.IntType(1)), with_old, total), end, align=4)

        done = builder.append_basic_block("done")
        switch = builder.switch(rows, done)
        for r in range(1, ROWS + 1):
            block = builder.append_basic_block(f"rows{r}")
            switch.add_case(LONG(r), block)
            builder.position_at_end(block)
            case(r)
            builder.branch(done)
        builder.position_at_end(done)
        return context.get_dummy_value()

    return types.void(lanes, vectors, pairs, rows, a, at, b, start, moves, count, depth, step_a, step_b, out, to, more), emit


@inlined
def transpose(_context: Any, lanes: Any, source: Any, start: Any, step: Any, out: Any, to: Any, onward: Any) -> Any:
    """out[to + j onward + i] = source[start + i step + j] for i, j < lanes, in exchanges of rows 1, 2, 4, … apart; arrays are flat."""
    width = lanes.literal_value
    words = ir.VectorType(BITS, width)

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        site = Site(context, builder, signature, args)
        source, out = map(site.address, (1, 4))
        start, step, to, onward = map(site.number, (2, 3, 5, 6))
        spots = [site.at(source, builder.add(start, builder.mul(step, LONG(i)))) for i in range(width)]
        rows = [builder.load(spot, align=4, typ=words) for spot in spots]
        for apart in (1 << i for i in range(width.bit_length() - 1)):
            first = ir.Constant(words, [j + width - apart if j & apart else j for j in range(width)])
            second = ir.Constant(words, [j + width if j & apart else j + apart for j in range(width)])
            for i in (i for i in range(width) if not i & apart):
                both = rows[i], rows[i + apart]
                rows[i], rows[i + apart] = builder.shuffle_vector(*both, first), builder.shuffle_vector(*both, second)
        for j, row in enumerate(rows):
            builder.store(row, site.at(out, builder.add(to, builder.mul(onward, LONG(j)))), align=4)
        return context.get_dummy_value()

    return types.void(lanes, source, start, step, out, to, onward), emit


@compiled
def interleave(first, second, length, out):
    """Two rows of bfloat16, ``length`` words each, as one row of pairs with a value of both."""
    for j in range(length):
        one, other = first[j], second[j]
        out[2 * j] = (one & LOW) | (other << HALF)
        out[2 * j + 1] = (one >> HALF) | (other & HIGH)


@compiled
def inside(entry, stride, padding, seen, places):
    """First and last, along one axis, of the places for which this entry of the kernel meets the image and not its padding."""
    return max(0, (padding - entry + stride - 1) // stride), min(places, (seen - 1 + padding - entry) // stride + 1)


class Convolution(NamedTuple):
    """Kernels for many tasks: the convolution, which transposed gives the gradient in the images, and the gradient in the weights."""

    convolve: Any
    weight_gradient: Any


@cache
def convolution(lanes: int, vectors: int, pairs: bool) -> Convolution:
    """The kernels for results with a multiple of lanes * vectors channels; words are float32 or, in ``pairs``, two bfloat16."""
    block, per = lanes * vectors, 2 if pairs else 1

    @compiled
    def convolve(a, b, places, classes, taps, n, size, depth, step, packing, packed, out):
        """out [tasks, n * places * channels] from rows a [tasks, words] and weights b [tasks, words], by the tables of ``numba_conv.plan``.

        ``size``: words of an image in a, values of one in out, and channels of out. ``packing``: rows and columns of the weights in b, in
        words, and whether ``packed`` has room for their transpose (1) or for their rows in pairs (2), or they are used as they lie (0).
        """
        (size_a, size_out, channels), (high, broad, how) = size, packing
        at, to = np.empty(ROWS, np.int64), np.empty(ROWS, np.int64)
        group = max(1, NEAR // max(size_a, size_out))
        for t in range(len(a)):
            seen, weights, result = a[t], b[t], out[t]
            if how == 1:
                for i in range(0, high, lanes):
                    for j in range(0, broad, lanes):
                        column = min(j, broad - lanes)  # the last block may do again what the one before it did
                        transpose(lanes, weights, i * broad + column, broad, packed, column * high + i, high)
            elif how == 2:
                for i in range(0, high, 2):
                    interleave(weights[i * broad :], weights[(i + 1) * broad :], broad, packed[i * broad :])
            if how > 0:
                weights = packed
            for begin in range(0, n, group):
                end = min(begin + group, n)
                for first, last, early, late in classes:
                    moves, total = taps[2 * early : 2 * late], (last - first) * (end - begin)
                    tiles = (total + ROWS - 1) // ROWS
                    place, image = first, begin
                    for i in range(tiles):
                        rows = total // tiles + (i < total % tiles)  # about as many in each
                        for r in range(rows):
                            at[r] = image * size_a + places[place, 0]
                            to[r] = image * size_out + places[place, 1]
                            image += 1
                            if image == end:
                                place, image = place + 1, begin
                        for o in range(0, channels, block):
                            tile(lanes, vectors, pairs, rows, seen, at, weights, o, moves, late - early, depth, 1, step, result, to, False)
                            for r in range(rows):
                                to[r] += block

    @compiled
    def weight_gradient(g, x, n, group, form, size, channels, g_pairs, x_pairs, moves, out):
        """out [tasks, channels of g * kernel² * channels of x] from g [tasks, words] and x [tasks, words].

        ``group``: images that are summed up together, an even number. ``form``: kernel, stride, padding, height and width of x and of g.
        ``size``: words of an image in g and in x. In pairs, which are of images, those of a group have room in ``g_pairs`` and ``x_pairs``.
        """
        (kernel, stride, padding, high, broad, down, wide), (size_g, size_x), (outputs, inputs) = form, size, channels
        at, to = np.empty(ROWS, np.int64), np.empty(ROWS, np.int64)
        tiles = (outputs + ROWS - 1) // ROWS
        for t in range(len(g)):
            result = out[t]
            for begin in range(0, n, group):
                images = min(group, n - begin)
                grads, seen = g[t, begin * size_g :], x[t, begin * size_x :]
                if pairs:
                    for i in range(0, images, 2):
                        other = min(i + 1, images - 1)
                        interleave(grads[i * size_g :], grads[other * size_g :], size_g, g_pairs[i * size_g :])
                        interleave(seen[i * size_x :], seen[other * size_x :], size_x, x_pairs[i * size_x :])
                    if images % 2:  # the last one has no other, and 0 times anything in x might be no number
                        for i in range((images - 1) * size_g, (images + 1) * size_g):
                            g_pairs[i] &= LOW
                        for i in range((images - 1) * size_x, (images + 1) * size_x):
                            x_pairs[i] &= LOW
                    grads, seen = g_pairs, x_pairs
                for tap in range(kernel * kernel):
                    i, j = tap // kernel, tap % kernel
                    top, bottom = inside(i, stride, padding, high, down)
                    left, right = inside(j, stride, padding, broad, wide)
                    # The longer of a row of places and the images is the inner loop.
                    along = images >= per * (right - left)
                    count = 0
                    for image in range(0, 1 if along else images, per):
                        for r in range(top, bottom):
                            for s in range(left, right if along else min(left + 1, right)):
                                low, over = r * stride + i - padding, s * stride + j - padding
                                moves[2 * count] = image * size_g + (r * wide + s) * outputs
                                moves[2 * count + 1] = image * size_x + (low * broad + over) * inputs
                                count += 1
                    if along:
                        depth, step_g, step_x = (images + per - 1) // per, per * size_g, per * size_x
                    else:
                        depth, step_g, step_x = right - left, outputs, stride * inputs
                    for c in range(0, inputs, block):
                        o = 0
                        for k in range(tiles):
                            rows = outputs // tiles + (k < outputs % tiles)
                            for r in range(rows):
                                at[r] = o
                                to[r] = (o * kernel * kernel + tap) * inputs + c
                                o += 1
                            more = begin > 0
                            tile(lanes, vectors, pairs, rows, grads, at, seen, c, moves, count, depth, step_g, step_x, result, to, more)

    return Convolution(*map(shown, (convolve, weight_gradient)))
