"""The kernels of ``interface`` for a GPU: how the Triton kernels of ``triton_*`` are launched, with the arguments of those in ``numba_*``.
Sums over places are made in parts that the next launch adds up in order: without atomics, so that equal runs give equal numbers."""

from functools import wraps
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from metarun.kernels import triton_im2col as layout
from metarun.kernels import triton_linear_pool_relu as linear
from metarun.kernels import triton_norm_pool_relu as norm
from metarun.kernels.interface import Im2col, Kernels, LinearPoolReLU, NormPoolReLU
from metarun.kernels.triton_windows import add_parts

PROGRAMS = 512  # in a launch, if there is work for so many: several for each of about a hundred multiprocessors
FEW, MANY = 2, 16  # up to so many steps over all places, or so many parts, every program of the next launch makes the sum itself


class Parts(NamedTuple):
    """How the sums over a task's places are shared out among programs."""

    columns: int  # channels of a program
    step: int  # places that it takes at a time
    number: int  # parts of a task; 0: every program that needs the sums makes them itself
    size: int  # places of a part

    @property
    def constants(self) -> dict[str, int]:
        """Constants of the kernel that adds up the parts."""
        return {"PARTS": power(self.number) if self.number else 0, "STEP": self.step}


def array(x: Tensor, dims: int) -> Tensor:
    """x [*n, *shape] with ``dims`` axes in ``shape`` as a tensor [prod(n), *shape], contiguous."""
    return x.detach().reshape(x.shape[: x.dim() - dims].numel(), *x.shape[x.dim() - dims :]).contiguous()


def power(number: int) -> int:
    """The smallest power of two that is not below ``number``."""
    return 1 << max(number - 1, 0).bit_length()


def per(number: int, size: int) -> int:
    """How many parts of this size ``number`` makes, at least 1."""
    return max(1, -(-number // size))


def real(x: Tensor) -> dict[str, Any]:
    """The constant REAL of a kernel: the type that is computed with for x, float32 or float64."""
    return {"REAL": triton.language.float64 if x.dtype == torch.float64 else triton.language.float32}


def parts(tasks: int, places: int, channels: int, few: int, step: int) -> Parts:
    """How the sums over ``places`` places of each of ``tasks`` tasks are made, for ``channels`` channels.

    Args:
        few: places at a time, of few channels, argmax there are so few places that a launch for the sums is not worth it.
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
    """Room for numbers of the type that is computed with for x."""
    return x.new_empty(shape, dtype=torch.promote_types(x.dtype, torch.float32))


def added(made: Tensor, share: Parts, places: int) -> tuple[Tensor, Parts]:
    """Partial sums ``made`` [tasks, parts, sums, channels], added up to one part if there are more than ``MANY``."""
    if share.number <= MANY:
        return made, share
    tasks, _, *columns = made.shape
    total = room(made, tasks, 1, *columns)
    add(made, total, total)
    return total, share._replace(number=1, size=places)


def add(made: Tensor, first: Tensor, rest: Tensor) -> None:
    """Add up ``made`` [tasks, parts, …] over parts: the first columns fill ``first`` [tasks, …], the others ``rest``."""
    tasks, number, *shape = made.shape
    columns, mine = torch.Size(shape).numel(), first.numel() // tasks
    add_parts[(per(columns, 32), tasks)](
        made, first, rest, number, COLUMNS=columns, FIRST=mine, STEP=min(64, power(number)), WIDTH=32, **real(made)
    )


def tile(tasks: int, places: int, channels: int, columns: int, most: int) -> tuple[int, tuple[int, int, int]]:
    """How many places a program takes, ``most`` unless that makes too few programs, and the grid (places, tasks, channels) of programs."""
    wide = per(channels, columns)
    size = 32 if columns < 64 else most if tasks * per(places, most) * wide >= PROGRAMS else 8
    return size, (per(places, size), tasks, wide)


def sides(x: Tensor, y: Tensor, window: int) -> tuple[int, int, dict[str, int]]:
    """How many windows of a task touch x [tasks, n, h, w, c], how many are in y, and the sides of both as kernels name them."""
    n, high, broad = x.shape[1:4]
    height, width = y.shape[2:4]
    tall, wide = per(high, window), per(broad, window)
    known = {"high": high, "broad": broad, "height": height, "width": width, "tall": tall, "wide": wide}
    return n * tall * wide, n * height * width, known


def norm_forward(
    channels: int, window: int, x: Tensor, weight: Tensor, bias: Tensor, eps: float, y: Tensor, argmax: Tensor, mean: Tensor, var: Tensor
) -> None:
    """As ``forward`` of ``numba_norm_pool_relu``."""
    tasks, rows, (_, places, known) = len(x), x.shape[1:4].numel(), sides(x, y, window)
    share = parts(tasks, rows, channels, 128, 32)
    made, most = room(x, tasks, share.number, 2, channels), {"C": channels, "COLUMNS": share.columns, **real(x)}
    if share.number:
        grid = share.number, tasks, per(channels, share.columns)
        norm.norm_moments[grid](x, made, rows, share.size, share.number, STEP=share.step, **most)
    if share.number > MANY:
        merged = room(x, tasks, 1, 2, channels)
        norm.norm_merge[(tasks, per(channels, 8))](
            made, merged, rows, share.size, share.number, C=channels, COLUMNS=8, PARTS=power(share.number), **real(x)
        )
        made, share = merged, share._replace(number=1, size=rows)
    size, grid = tile(tasks, places, channels, share.columns, 32 // window)
    norm.norm_pool_relu_forward[grid](
        x, made, weight, bias, y, argmax, mean, var, rows, share.size, share.number, places,
        known["high"], known["broad"], max(1, known["height"]), max(1, known["width"]),
        EPS=eps, WINDOW=window, PLACES=size, **share.constants, **most,
    )  # fmt: skip


def norm_backward(
    channels: int, window: int, g: Tensor, x: Tensor, weight: Tensor, argmax: Tensor, mean: Tensor, var: Tensor, eps: float,
    gx: Tensor, gweight: Tensor, gbias: Tensor,
) -> None:  # fmt: skip
    """As ``backward`` of ``numba_norm_pool_relu``."""
    tasks, rows, (windows, _, known) = len(x), x.shape[1:4].numel(), sides(x, g, window)
    share = parts(tasks, windows, channels, 128 // window, 32)
    made, most = room(x, tasks, share.number, 2, channels), {"C": channels, "COLUMNS": share.columns, "WINDOW": window, **real(x)}
    if share.number:
        grid = share.number, tasks, per(channels, share.columns)
        norm.backward_sums[grid](g, argmax, x, mean, made, windows, share.size, share.number, **known, STEP=share.step, **most)
    made, share = added(made, share, windows)
    size, grid = tile(tasks, windows, channels, share.columns, 32 // window)
    norm.norm_pool_relu_backward[grid](
        g, x, made, weight, argmax, mean, var, gx, gweight, gbias, windows, share.number, rows, **known,
        EPS=eps, PLACES=size, **share.constants, **most,
    )  # fmt: skip


def norm_double_backward(
    channels: int, window: int, v: Tensor, a: Tensor, b: Tensor, g: Tensor, x: Tensor, weight: Tensor, argmax: Tensor, mean: Tensor,
    var: Tensor, eps: float, gg: Tensor, gx: Tensor, gweight: Tensor,
) -> None:  # fmt: skip
    """As ``double_backward`` of ``numba_norm_pool_relu``."""
    tasks, rows, (windows, _, known) = len(x), x.shape[1:4].numel(), sides(x, g, window)
    share = parts(tasks, windows, channels, 128 // window, 16)
    made, most = room(x, tasks, share.number, 5, channels), {"C": channels, "COLUMNS": share.columns, "WINDOW": window, **real(x)}
    if share.number:
        grid = share.number, tasks, per(channels, share.columns)
        norm.double_backward_sums[grid](v, g, argmax, x, mean, made, windows, share.size, share.number, **known, STEP=share.step, **most)
    made, share = added(made, share, windows)
    size, grid = tile(tasks, windows, channels, share.columns, 16)
    norm.norm_pool_relu_double_backward[grid](
        v, a, b, g, x, made, weight, argmax, mean, var, gg, gx, gweight, windows, share.number, rows, **known,
        EPS=eps, PLACES=size, **share.constants, **most,
    )  # fmt: skip


def linear_forward(
    inputs: int, channels: int, window: int, patches: Tensor, weight: Tensor, bias: Tensor, y: Tensor, argmax: Tensor
) -> None:
    """As ``forward`` of ``numba_linear_pool_relu``."""
    linear_map(False, inputs, channels, window, patches, weight, bias, argmax, y)


def linear_at_argmax(
    inputs: int, channels: int, window: int, patches: Tensor, weight: Tensor, bias: Tensor, argmax: Tensor, y: Tensor
) -> None:
    """As ``at_argmax`` of ``numba_linear_pool_relu``."""
    linear_map(True, inputs, channels, window, patches, weight, bias, argmax, y)


def linear_map(
    known: bool, inputs: int, channels: int, window: int, patches: Tensor, weight: Tensor, bias: Tensor, argmax: Tensor, y: Tensor
) -> None:
    """Fills y: of the entries that argmax names if it is ``known``, else of the largest, and argmax as well."""
    (tasks, n, high, broad, _), (height, width) = patches.shape, y.shape[2:4]
    places, columns = n * height * width, min(64, power(channels))
    size, grid = tile(tasks, places, channels, columns, 16)
    linear.linear_pool_relu[grid](
        patches, weight, bias, argmax, y, places, n, high, broad, max(1, height), max(1, width),
        KNOWN=known, K=inputs, C=channels, WINDOW=window, PLACES=size, COLUMNS=columns, **real(patches),
    )  # fmt: skip


def linear_backward(
    inputs: int, channels: int, window: int, patches: Tensor, g: Tensor, argmax: Tensor, gweight: Tensor, gbias: Tensor
) -> None:
    """As ``backward`` of ``numba_linear_pool_relu``."""
    (tasks, n, high, broad, _), (height, width) = patches.shape, g.shape[2:4]
    places, exact = n * height * width, patches.dtype == torch.float64
    columns, step = (min(16, power(channels)), 4) if exact else (max(16, min(64, power(channels))), 32)
    steps = per(places, step)
    size = per(steps, min(steps, per(PROGRAMS, tasks * per(channels, columns)))) * step
    made = room(patches, tasks, per(places, size), inputs + 1, channels)
    linear.linear_pool_relu_backward[(made.shape[1], tasks, per(channels, columns))](
        patches, g, argmax, made, places, size, made.shape[1], n, high, broad, max(1, height), max(1, width),
        PRODUCT=not exact, K=inputs, ROWS=max(16, power(inputs + 1)), C=channels, WINDOW=window, STEP=step, COLUMNS=columns,
        **real(patches),
    )  # fmt: skip
    add(made, gweight, gbias)


def im2col(channels: int, kernel: int, x: Tensor, stride: int, padding: int, patches: Tensor) -> None:
    """As ``im2col`` of ``numba_im2col``."""
    (n, height, width, _), columns = patches.shape, min(64, power(channels))
    layout.im2col[(per(n * height * width, 32) * kernel**2, per(channels, columns))](
        x, patches, n * height * width, *x.shape[1:3], height, width,
        C=channels, KERNEL=kernel, STRIDE=stride, PADDING=padding, PLACES=32, COLUMNS=columns,
    )  # fmt: skip


def col2im(channels: int, kernel: int, patches: Tensor, stride: int, padding: int, total: Tensor, x: Tensor) -> None:
    """As ``col2im`` of ``numba_im2col``; it needs no room for a ``total``."""
    (n, high, broad, _), columns = x.shape, min(64, power(channels))
    size = 32 if per(n * high * broad, 32) >= PROGRAMS else 8
    layout.col2im[(per(n * high * broad, size), per(channels, columns))](
        patches, x, n * high * broad, high, broad, *patches.shape[1:3],
        C=channels, KERNEL=kernel, STRIDE=stride, PADDING=padding, PLACES=size, COLUMNS=columns, **real(x),
    )  # fmt: skip


def placed(launch: Any, *constants: int) -> Any:
    """The launch with these constants as its first arguments, on the device of its tensors."""

    @wraps(launch)
    def call(x: Tensor, *arguments: Any) -> None:
        with torch.cuda.device_of(x):
            launch(*constants, x, *arguments)

    return call


def norm_pool_relu(channels: int, window: int) -> NormPoolReLU:
    """As ``numba_norm_pool_relu.norm_pool_relu``."""
    return NormPoolReLU(*(placed(launch, channels, window) for launch in (norm_forward, norm_backward, norm_double_backward)))


def linear_pool_relu(inputs: int, channels: int, window: int) -> LinearPoolReLU:
    """As ``numba_linear_pool_relu.linear_pool_relu``."""
    return LinearPoolReLU(*(placed(launch, inputs, channels, window) for launch in (linear_forward, linear_at_argmax, linear_backward)))


def im2col_kernels(channels: int, kernel: int) -> Im2col:
    """As ``numba_im2col.im2col``."""
    return Im2col(*(placed(launch, channels, kernel) for launch in (im2col, col2im)))


def works(device: torch.device) -> bool:
    """True, or an error of Triton's own: the device is too old, or there is no C compiler for its launchers."""
    x, patches = torch.ones(1, 1, 1, 1, device=device), torch.empty(1, 1, 1, 1, device=device)
    im2col_kernels(1, 1).im2col(x, 1, 0, patches)
    return True


GPU = Kernels(array, norm_pool_relu, linear_pool_relu, im2col_kernels, None)
