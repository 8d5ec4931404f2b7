"""The shape of a convolution, beside its operands."""

from __future__ import annotations

from typing import NamedTuple


class Form(NamedTuple):
    """Square kernels with one stride and zero padding, on images of one size."""

    kernel: int
    stride: int
    padding: int
    size: tuple[int, int]  # height and width of the input

    @property
    def places(self) -> tuple[int, int]:
        """Height and width of the output."""
        height, width = ((side + 2 * self.padding - self.kernel) // self.stride + 1 for side in self.size)
        return height, width
