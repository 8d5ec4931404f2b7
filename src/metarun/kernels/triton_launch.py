"""What ``kernels`` has for a CPU's arrays, for tensors of a GPU: the same operations of the same arguments, launched from here.
Sums over places are made in parts that the next launch adds up in order: without atomics, so that equal runs give equal numbers."""

from functools import wraps
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from metarun.kernels import triton_loops as loops
from metarun.kernels.interface import Block, Kernels, Lift, Patches

PROGRAMS = 512  # at a time: several for each of about a hundred multiprocessors
FEW, MANY = 2, 16  # steps over all places of a task, or parts of them, that every program of the next launch takes itself


class Parts(NamedTuple):
    """How the sums over a task's places are shared out among programs."""

    columns: int  # channels of a program
    step: int  # places that it takes at a time
    number: int  # parts of a task; none: those who want the sums make them
    size: int  # places of a part

    @property
    def constants(self) -> dict[str, int]:
        """What the kernel that takes the sums is compiled for."""
        return {"PARTS": power(self.number) if self.number else 0, "STEP": self.step}


def array(x: Tensor, dims: int) -> Tensor:
    """x with all but its last ``dims`` axes as one, in memory as they are written."""
    return x.detach().reshape(x.shape[: x.dim() - dims].numel(), *x.shape[x.dim() - dims :]).contiguous()


def power(number: int) -> int:
    """The next power of two."""
    return 1 << max(number - 1, 0).bit_length()


def per(number: int, size: int) -> int:
    """How many of this size it takes, and one at least."""
    return max(1, -(-number // size))


def real(x: Tensor) -> dict[str, Any]:
    """The type that is computed with, for a kernel."""
    return {"REAL": triton.language.float64 if x.dtype == torch.float64 else triton.language.float32}


def parts(tasks: int, places: int, channels: int, few: int, step: int) -> Parts:
    """For ``places`` of each task.

    Args:
        few: places at a time, of few channels, where there are so few places that a launch for the sums is not worth it.
        step: places at a time otherwise.
    """
    if places <= FEW * few:
        return Parts(min(16, power(channels)), few, 0, places)
    columns = min(64, power(channels))
    steps = per(places, step)
    number = min(steps, per(PROGRAMS, tasks * per(channels, columns)))
    size = per(steps, number) * step
    return Parts(columns, step, per(places, size), size)


def room(x: Tensor, *shape: int) -> Tensor:
    """For numbers that are computed with."""
    return x.new_empty(shape, dtype=torch.promote_types(x.dtype, torch.float32))


def added(made: Tensor, share: Parts, places: int) -> tuple[Tensor, Parts]:
    """Sums ``made`` [tasks, parts, sums, channels], as one part where there are many."""
    if share.number <= MANY:
        return made, share
    tasks, _, *columns = made.shape
    total = room(made, tasks, 1, *columns)
    add(made, total, total)
    return total, share._replace(number=1, size=places)


def add(made: Tensor, first: Tensor, rest: Tensor) -> None:
    """Sums ``made`` [tasks, parts, …] over parts: [tasks, …], as many as it holds into ``first``, the others into ``rest``."""
    tasks, number, *shape = made.shape
    columns, mine = torch.Size(shape).numel(), first.numel() // tasks
    loops.add_parts[(per(columns, 32), tasks)](
        made, first, rest, number, COLUMNS=columns, FIRST=mine, STEP=min(64, power(number)), WIDTH=32, **real(made)
    )


def tile(tasks: int, places: int, channels: int, columns: int, most: int) -> tuple[int, tuple[int, int, int]]:
    """Places of a program, ``most`` of them unless there are few programs then or few channels, and a grid of such programs."""
    wide = per(channels, columns)
    size = 32 if columns < 64 else most if tasks * per(places, most) * wide >= PROGRAMS else 8
    return size, (per(places, size), tasks, wide)


def sides(x: Tensor, y: Tensor, window: int) -> tuple[int, int, dict[str, int]]:
    """Windows of x [tasks, n, h, w, c] in all, those that reach beyond it included; of y; and what a kernel is to know of both."""
    n, high, broad = x.shape[1:4]
    height, width = y.shape[2:4]
    tall, wide = per(high, window), per(broad, window)
    known = {"high": high, "broad": broad, "height": height, "width": width, "tall": tall, "wide": wide}
    return n * tall * wide, n * height * width, known


def forward(
    channels: int, window: int, x: Tensor, weight: Tensor, bias: Tensor, eps: float, y: Tensor, where: Tensor, mean: Tensor, var: Tensor
) -> None:
    """As ``kernels.block(channels, window).forward``."""
    tasks, rows, (_, places, known) = len(x), x.shape[1:4].numel(), sides(x, y, window)
    share = parts(tasks, rows, channels, 128, 32)
    made, most = room(x, tasks, share.number, 2, channels), {"C": channels, "COLUMNS": share.columns, **real(x)}
    if share.number:
        grid = share.number, tasks, per(channels, share.columns)
        loops.norm_moments[grid](x, made, rows, share.size, share.number, STEP=share.step, **most)
    if share.number > MANY:
        merged = room(x, tasks, 1, 2, channels)
        loops.norm_merge[(tasks, per(channels, 8))](
            made, merged, rows, share.size, share.number, C=channels, COLUMNS=8, PARTS=power(share.number), **real(x)
        )
        made, share = merged, share._replace(number=1, size=rows)
    size, grid = tile(tasks, places, channels, share.columns, 32 // window)
    loops.norm_apply[grid](
        x, made, weight, bias, y, where, mean, var, rows, share.size, share.number, places,
        known["high"], known["broad"], max(1, known["height"]), max(1, known["width"]),
        EPS=eps, WINDOW=window, PLACES=size, **share.constants, **most,
    )  # fmt: skip


def backward(
    channels: int, window: int, g: Tensor, x: Tensor, weight: Tensor, where: Tensor, mean: Tensor, var: Tensor, eps: float,
    gx: Tensor, gweight: Tensor, gbias: Tensor,
) -> None:  # fmt: skip
    """As ``kernels.block(channels, window).backward``."""
    tasks, rows, (windows, _, known) = len(x), x.shape[1:4].numel(), sides(x, g, window)
    share = parts(tasks, windows, channels, 128 // window, 32)
    made, most = room(x, tasks, share.number, 2, channels), {"C": channels, "COLUMNS": share.columns, "WINDOW": window, **real(x)}
    if share.number:
        grid = share.number, tasks, per(channels, share.columns)
        loops.norm_sums[grid](g, where, x, mean, made, windows, share.size, share.number, **known, STEP=share.step, **most)
    made, share = added(made, share, windows)
    size, grid = tile(tasks, windows, channels, share.columns, 32 // window)
    loops.norm_first[grid](
        g, x, made, weight, where, mean, var, gx, gweight, gbias, windows, share.number, rows, **known,
        EPS=eps, PLACES=size, **share.constants, **most,
    )  # fmt: skip


def second(
    channels: int, window: int, v: Tensor, a: Tensor, b: Tensor, g: Tensor, x: Tensor, weight: Tensor, where: Tensor, mean: Tensor,
    var: Tensor, eps: float, gg: Tensor, gx: Tensor, gweight: Tensor,
) -> None:  # fmt: skip
    """As ``kernels.block(channels, window).second``."""
    tasks, rows, (windows, _, known) = len(x), x.shape[1:4].numel(), sides(x, g, window)
    share = parts(tasks, windows, channels, 128 // window, 16)
    made, most = room(x, tasks, share.number, 5, channels), {"C": channels, "COLUMNS": share.columns, "WINDOW": window, **real(x)}
    if share.number:
        grid = share.number, tasks, per(channels, share.columns)
        loops.norm_sums_of_second[grid](v, g, where, x, mean, made, windows, share.size, share.number, **known, STEP=share.step, **most)
    made, share = added(made, share, windows)
    size, grid = tile(tasks, windows, channels, share.columns, 16)
    loops.norm_second[grid](
        v, a, b, g, x, made, weight, where, mean, var, gg, gx, gweight, windows, share.number, rows, **known,
        EPS=eps, PLACES=size, **share.constants, **most,
    )  # fmt: skip


def lift_forward(inputs: int, channels: int, window: int, seen: Tensor, weight: Tensor, bias: Tensor, y: Tensor, where: Tensor) -> None:
    """As ``kernels.lift(inputs, channels, window).forward``."""
    mapped(False, inputs, channels, window, seen, weight, bias, where, y)


def pick(inputs: int, channels: int, window: int, seen: Tensor, weight: Tensor, bias: Tensor, where: Tensor, y: Tensor) -> None:
    """As ``kernels.lift(inputs, channels, window).pick``."""
    mapped(True, inputs, channels, window, seen, weight, bias, where, y)


def mapped(
    known: bool, inputs: int, channels: int, window: int, seen: Tensor, weight: Tensor, bias: Tensor, where: Tensor, y: Tensor
) -> None:
    """y of the places ``where``, if ``known``; else these as well."""
    (tasks, n, high, broad, _), (height, width) = seen.shape, y.shape[2:4]
    places, columns = n * height * width, min(64, power(channels))
    size, grid = tile(tasks, places, channels, columns, 16)
    loops.lift_apply[grid](
        seen, weight, bias, where, y, places, n, high, broad, max(1, height), max(1, width),
        KNOWN=known, K=inputs, C=channels, WINDOW=window, PLACES=size, COLUMNS=columns, **real(seen),
    )  # fmt: skip


def collect(inputs: int, channels: int, window: int, seen: Tensor, g: Tensor, where: Tensor, gweight: Tensor, gbias: Tensor) -> None:
    """As ``kernels.lift(inputs, channels, window).collect``."""
    (tasks, n, high, broad, _), (height, width) = seen.shape, g.shape[2:4]
    places, exact = n * height * width, seen.dtype == torch.float64
    columns, step = (min(16, power(channels)), 4) if exact else (max(16, min(64, power(channels))), 32)
    steps = per(places, step)
    size = per(steps, min(steps, per(PROGRAMS, tasks * per(channels, columns)))) * step
    made = room(seen, tasks, per(places, size), inputs + 1, channels)
    loops.lift_collect[(made.shape[1], tasks, per(channels, columns))](
        seen, g, where, made, places, size, made.shape[1], n, high, broad, max(1, height), max(1, width),
        PRODUCT=not exact, K=inputs, ROWS=max(16, power(inputs + 1)), C=channels, WINDOW=window, STEP=step, COLUMNS=columns, **real(seen),
    )  # fmt: skip
    add(made, gweight, gbias)


def gather(channels: int, kernel: int, x: Tensor, stride: int, padding: int, seen: Tensor) -> None:
    """As ``kernels.patches(channels, kernel).gather``."""
    (n, height, width, _), columns = seen.shape, min(64, power(channels))
    loops.patches_gather[(per(n * height * width, 32) * kernel**2, per(channels, columns))](
        x, seen, n * height * width, *x.shape[1:3], height, width,
        C=channels, KERNEL=kernel, STRIDE=stride, PADDING=padding, PLACES=32, COLUMNS=columns,
    )  # fmt: skip


def scatter(channels: int, kernel: int, seen: Tensor, stride: int, padding: int, total: Tensor, x: Tensor) -> None:
    """As ``kernels.patches(channels, kernel).scatter``; it needs no room for a ``total``."""
    (n, high, broad, _), columns = x.shape, min(64, power(channels))
    size = 32 if per(n * high * broad, 32) >= PROGRAMS else 8
    loops.patches_scatter[(per(n * high * broad, size), per(channels, columns))](
        seen, x, n * high * broad, high, broad, *seen.shape[1:3],
        C=channels, KERNEL=kernel, STRIDE=stride, PADDING=padding, PLACES=size, COLUMNS=columns, **real(x),
    )  # fmt: skip


def placed(launch: Any, *constants: int) -> Any:
    """A launch for these constants, on the device of its tensors."""

    @wraps(launch)
    def call(x: Tensor, *arguments: Any) -> None:
        with torch.cuda.device_of(x):
            launch(*constants, x, *arguments)

    return call


def block(channels: int, window: int) -> Block:
    """As ``kernels.block``."""
    return Block(*(placed(launch, channels, window) for launch in (forward, backward, second)))


def lift(inputs: int, channels: int, window: int) -> Lift:
    """As ``kernels.lift``."""
    return Lift(*(placed(launch, inputs, channels, window) for launch in (lift_forward, pick, collect)))


def patches(channels: int, kernel: int) -> Patches:
    """As ``kernels.patches``."""
    return Patches(*(placed(launch, channels, kernel) for launch in (gather, scatter)))


def works(device: torch.device) -> bool:
    """True, unless Triton fails in a way of its own: the device is too old, or there is no C compiler for its launchers."""
    x, seen = torch.ones(1, 1, 1, 1, device=device), torch.empty(1, 1, 1, 1, device=device)
    patches(1, 1).gather(x, 1, 0, seen)
    return True


GPU = Kernels(array, block, lift, patches, None)
