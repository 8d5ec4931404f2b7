"""Views of an image: itself, and itself moved, turned, slanted and scaled a little, the same ones for every image.
Features that are averaged over views say less of how a thing happens to lie."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from metarun.data.changes import affine, warp

GOLDEN = 1.1347241384015194  # the root of g^6 = g + 1, for five numbers (Roberts 2018)
TURN, SIZE, SLANT, MOVE = math.radians(10), 0.15, 0.2, 0.06  # at most, either way: radians, logarithm, tangent, part of the side


def amounts(number: int) -> Tensor:
    """By how much views differ from the image, [number, 5] in −1..1, evenly spread; the first by nothing."""
    powers = GOLDEN ** -torch.arange(1.0, 6.0, dtype=torch.float64)
    return (2 * ((0.5 + torch.arange(number)[:, None] * powers) % 1) - 1).float()


def views(x: Tensor, number: int) -> Iterator[Tensor]:
    """So many views of images x [n, channels, height, width], each of their shape; x itself is the first."""
    yield x
    for row in amounts(number)[1:]:
        angle, size, slant, right, down = row.to(x)[:, None].expand(-1, len(x))
        side = torch.ones_like(angle)
        theta = affine(TURN * angle, torch.exp(SIZE * size), SLANT * slant, MOVE * right, MOVE * down, side, x.shape[-2] / x.shape[-1])
        yield warp(x, theta)
