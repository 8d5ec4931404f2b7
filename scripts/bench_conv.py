"""Speed of the convolution's partial derivatives, 64 -> 64 channels, kernel 3: torch's operators and ``numba_conv`` in turn.

python scripts/bench_conv.py [--seconds 0.1] [--only bfloat16]

One thread. Gigaflops per second count what borders cut off, too, as multiplied.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from metarun.kernels import numba_conv as direct
from metarun.kernels.form import Form
from metarun.kernels.ops.conv import W, X, Y, operators
from metarun.runtime.allocator import keep_freed_memory

CHANNELS = 64
SIDES = [(14, 2), (7, 2), (4, 2), (14, 1), (7, 1), (3, 1)]
TASKS = [(16, 5), (16, 25), (1, 60), (1, 400)]  # tasks with weights of their own, or one, and images of each
SLOTS = {"forward": Y, "data": X, "weight": W}


def images(*shape: int, dtype: torch.dtype) -> Tensor:
    """Normal numbers [*n, c, h, w], in memory with the channels last."""
    *n, c, h, w = shape
    return torch.randn(*n, h, w, c).to(dtype).movedim(-1, -3)


def seconds_each(functions: list[Callable[[], object]], budget: float) -> list[float]:
    """Median seconds of each, timed in turn for ``budget`` seconds."""
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        function()
    begun = time.thread_time()
    while time.thread_time() - begun < budget or len(times[0]) < 5:
        for taken, function in zip(times, functions):
            start = time.thread_time()
            function()
            taken.append(time.thread_time() - start)
    return [statistics.median(taken) for taken in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.1, help="for each line")
    parser.add_argument("--only", default="", help="lines that begin so")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as in a run
    torch.manual_seed(0)
    print(f"{'precision slot     map     tasks x images':44} torch  direct  ratio")
    for dtype in (torch.float32, torch.bfloat16):
        for name, slot in SLOTS.items():
            for side, stride in SIDES:
                for tasks, n in TASKS:
                    line = f"{str(dtype)[6:]:9} {name:8} {f'{side}x{side}/{stride}':8} {tasks:2} x {n}"
                    if not line.startswith(arguments.only):
                        continue
                    form = Form(3, stride, 1, (side, side))
                    own = (tasks,) if tasks > 1 else ()
                    x = images(*own, n, CHANNELS, side, side, dtype=dtype)
                    w = images(*own, CHANNELS, CHANNELS, 3, 3, dtype=dtype)
                    y = images(*own, n, CHANNELS, *form.places, dtype=dtype)
                    pair = {Y: (x, w), X: (w, y), W: (y, x)}[slot]
                    if not direct.covers(slot, form, *pair):
                        print(f"{line:44} left to torch")
                        continue
                    ways = [functools.partial(way, slot, form, *pair) for way in (operators, direct.partial)]
                    taken = seconds_each(ways, arguments.seconds)
                    work = 2e-9 * tasks * n * prod(form.places) * CHANNELS**2 * 9
                    rates = [work / seconds for seconds in taken]
                    print(f"{line:44} {rates[0]:5.0f} {rates[1]:7.0f} {rates[1] / rates[0]:6.2f}", flush=True)


if __name__ == "__main__":
    main()
