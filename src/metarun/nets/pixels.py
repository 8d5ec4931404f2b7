"""No net at all: the features of an image are its pixels. For baselines that compare images as they are, whatever ``net`` says.
It has neither weights nor statistics, so such a method has nothing to learn."""

from __future__ import annotations

from math import prod

from torch import Tensor

from metarun.nets.base import Net


class Pixels(Net):
    """The identity, flattened."""

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.features, self.norm = prod(input_shape), "none"
        self.map_shape = (self.features, 1, 1)

    def layers(self, x: Tensor, n_support: int | None) -> Tensor:
        return x.flatten(1)
