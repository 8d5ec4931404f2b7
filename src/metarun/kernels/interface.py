"""What a set of kernels offers: the same functions of the same arguments for a CPU (Numba) and for a GPU (Triton).

Arguments are what ``Kernels.array`` makes of tensors; outputs are the last ones, which are filled. Shapes and meanings stand in
``numba_norm_pool_relu``, ``numba_linear_pool_relu`` and ``numba_im2col``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor


class NormPoolReLU(NamedTuple):
    """Batch norm, max-pooling and ReLU: the operation, its derivative, and the derivative of that."""

    forward: Callable[..., None]
    backward: Callable[..., None]
    double_backward: Callable[..., None]


class LinearPoolReLU(NamedTuple):
    """A linear map, max-pooling and ReLU: the operation, the same for known places of the largest, and the transpose of that."""

    forward: Callable[..., None]
    at_argmax: Callable[..., None]
    backward: Callable[..., None]


class Im2col(NamedTuple):
    """What a convolution sees at every place, laid out side by side, and the transpose."""

    im2col: Callable[..., None]
    col2im: Callable[..., None]


class Kernels(NamedTuple):
    """All there are for a kind of device.

    Attributes:
        array: of a tensor [*n, *shape] with so many axes in ``shape``: [prod(n), *shape], contiguous, as the kernels take it.
        norm_pool_relu: of the number of channels, and the side of a window.
        linear_pool_relu: of the numbers of inputs and channels, and the side of a window.
        im2col: of the number of channels, and the side of a convolution's kernel.
        covariance: of the number of inputs; None: torch's own operations are as fast.
    """

    array: Callable[[Tensor, int], Any]
    norm_pool_relu: Callable[[int, int], NormPoolReLU]
    linear_pool_relu: Callable[[int, int, int], LinearPoolReLU]
    im2col: Callable[[int, int], Im2col]
    covariance: Callable[[int], Callable[..., None]] | None

    def images(self, x: Tensor) -> Any:
        """x [*tasks, n, c, h, w] as [tasks, n, h, w, c], which is how it lies in memory."""
        return self.array(x.movedim(-3, -1), 4)
