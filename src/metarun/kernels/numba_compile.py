"""How the loops of ``numba_*`` become machine code, what they take for arrays, and the intrinsics that they share.

Arrays have the tasks first and the channels last. bfloat16 comes as its bits, in uint16, and is computed with in float32.
"""

from __future__ import annotations

import math
from contextlib import nullcontext, suppress
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor
from torch.profiler import record_function

from metarun.runtime.private import is_profiling

BITS = ir.IntType(32)
STAMP = Path(__file__).read_bytes()
inlined: Any = njit(inline="always")  # a function whose body takes the place of its calls
instructions: Any = intrinsic  # a function of types that says which instructions take the place of its calls


def compiled(loops: Any) -> Any:
    """The function in machine code, made at its first call with arrays of a type and kept on disk for the next process."""
    # A value that is no number must stay one, so that a run that diverges says so: of the fast-math rules only two are allowed.
    function: Any = njit(nogil=True, error_model="numpy", fastmath={"contract", "nsz"})(loops)
    with suppress(RuntimeError):  # where nothing may be written, every process compiles anew
        function.enable_caching()
        # Numba compiles anew when the file of the loops has changed; this makes it do so when this file has changed as well.
        file = function._cache._cache_file
        file._source_stamp = file._source_stamp, STAMP
    return function


def shown(function: Any) -> Any:
    """The function under its own name in the traces of ``trainer.profile``."""

    name = f"metarun::{function.__qualname__.replace('.<locals>', '')}"

    @wraps(function)
    def call(*arguments: Any) -> None:
        # Torch's own question is about this thread alone, and chunks have threads of their own.
        with record_function(name) if is_profiling() else nullcontext():
            function(*arguments)

    return call


def array(x: Tensor, dims: int) -> np.ndarray[Any, Any]:
    """x [*n, *shape] with ``dims`` axes in ``shape`` as an array [prod(n), *shape], contiguous; bfloat16 as its bits, in uint16.

    By NumPy where it can: an operator of torch lets go of Python's lock, for which threads side by side then wait.
    """
    numbers = memory(x)
    if not numbers.flags.c_contiguous:
        numbers = memory(x.contiguous())
    leading = numbers.ndim - dims
    return numbers if leading == 1 else numbers.reshape(math.prod(numbers.shape[:leading]), *numbers.shape[leading:])


def memory(x: Tensor) -> np.ndarray[Any, Any]:
    """A tensor as an array that shares its memory and strides; bfloat16 as its bits, in uint16."""
    if x.requires_grad:
        x = x.detach()
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


@instructions
def upcast(_context: Any, value: Any) -> Any:
    """A stored number as the type that is computed with: float32 for the bits of a bfloat16, else as it is."""
    if value != types.uint16:
        return value(value), lambda context, builder, signature, args: args[0]

    def emit(_: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> ir.Value:
        return builder.bitcast(builder.shl(builder.zext(args[0], BITS), BITS(16)), ir.FloatType())

    return types.float32(value), emit


@instructions
def downcast(_context: Any, row: Any, value: Any) -> Any:
    """A computed number as the array ``row`` stores it; bfloat16 is rounded to the nearest, ties to even."""
    if row.dtype != types.uint16:
        return row.dtype(row, row.dtype), lambda context, builder, signature, args: args[1]

    def emit(_: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> ir.Value:
        bits = builder.bitcast(args[1], BITS)
        odd = builder.and_(builder.lshr(bits, BITS(16)), BITS(1))
        near = builder.lshr(builder.add(builder.add(bits, BITS(0x7FFF)), odd), BITS(16))
        number = builder.fcmp_ordered("ord", args[1], args[1])
        return builder.trunc(builder.select(number, near, BITS(0x7FC0)), ir.IntType(16))

    return types.uint16(row, types.float32), emit


@instructions
def either(_context: Any, condition: Any, value: Any, other: Any) -> Any:
    """``value`` where the condition holds, else ``other``, of the type of ``value``: without a branch, so that loops become vectors."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.select(args[0], args[1], context.cast(builder, args[2], signature.args[2], signature.args[1]))

    return value(condition, value, other), emit


@inlined
def masked(argmax, j, value):
    """``value`` where ``argmax`` is j, else 0 of the same type."""
    return either(argmax == j, value, 0)


@inlined
def keep_largest(value, j, c, best, argmax):
    """Max-pooling: take ``value``, entry j of a window, for channel c if it is the first, the largest so far, or no number."""
    taken = (j == 0) | (value > best[c]) | (value != value)
    best[c] = either(taken, value, best[c])
    argmax[c] = either(taken, np.uint8(j), argmax[c])


@inlined
def relu(best, argmax, nothing, channels, out):
    """ReLU of the largest numbers ``best`` [channels] into ``out``; where it cuts off, ``argmax`` becomes ``nothing``."""
    for c in range(channels):
        cut = best[c] <= 0
        out[c] = downcast(out, either(not cut, best[c], 0))
        argmax[c] = either(cut, np.uint8(nothing), argmax[c])
