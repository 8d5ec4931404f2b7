"""Waves of every frequency as features of plain numbers, so that what follows need not learn to bend quickly.
Tancik et al. 2020, arXiv:2006.10739, with even frequencies in place of random ones."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from metarun.nets.base import Net


class Fourier(Net):
    """[x, sin 2π f_k x, cos 2π f_k x] for f_k = highest · k / bands, k = 1 … bands, of every number of an example; nothing is learned.

    Args:
        input_shape: [d], plain numbers.
        bands: how many frequencies.
        highest: of them, in waves per unit of x.

    Raises:
        ValueError: the examples are not vectors.
    """

    def __init__(self, input_shape: tuple[int, ...], *, bands: Annotated[int, Ge(1)], highest: Annotated[float, Gt(0)]) -> None:
        super().__init__()
        if len(input_shape) != 1:
            raise ValueError(f"net=fourier needs plain numbers, these examples have shape {list(input_shape)}; use net=conv4 or net=mlp")
        self.bands, self.highest = bands, highest
        self.norm, self.modulated = "none", ""
        self.features = input_shape[0] * (1 + 2 * bands)
        self.map_shape = (self.features, 1, 1)

    def layers(self, x: Tensor, n_support: int | None) -> Tensor:
        angular = 2 * math.pi * self.highest / self.bands * torch.arange(1, self.bands + 1, dtype=x.dtype, device=x.device)
        angles = (x[..., None] * angular).flatten(1)
        return torch.cat([x, angles.sin(), angles.cos()], 1)
