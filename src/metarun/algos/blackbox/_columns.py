"""Columns of a table on one scale, as they are and bent towards a normal distribution, in operations that torch.vmap can batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FARTHEST = 5.0  # deviations from the mean
STILL = 1e-6  # a deviation up to which a column is taken for constant, in parts of its largest number
POWERS = tuple(i / 2 for i in range(-4, 9))  # −2 to 4


class Scale(NamedTuple):
    """What brings columns to mean 0 and variance 1, by their labelled rows."""

    largest: Tensor  # [columns], numbers are first divided by it, since squares of some are beyond the type
    mean: Tensor  # [columns]
    inverse: Tensor  # [columns], one over their deviation; 0 for what is constant

    def __call__(self, rows: Tensor) -> Tensor:
        """Rows [n, columns] on it; zeros where a column is constant."""
        return torch.where(self.inverse > 0, (rows / self.largest - self.mean) * self.inverse, 0.0)


class Columns(NamedTuple):
    """How the columns of a table are read."""

    scale: Scale
    power: Tensor  # [columns], of ``POWERS``, by which they are bent
    bent: Scale  # once they are

    @property
    def size(self) -> Tensor:
        """√(columns / those that are not constant), []."""
        moves = self.scale.inverse > 0
        return (moves.numel() / moves.sum().clamp(min=1).to(self.scale.mean.dtype)).sqrt()

    def looks(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [n, columns] as they are and bent, each of mean 0 and variance 1, what is constant 0, and all drawn into −5..5."""
        plain = self.scale(rows)
        bent = self.bent(bend(plain, self.power))
        return plain.clamp(-FARTHEST, FARTHEST), bent.clamp(-FARTHEST, FARTHEST)


def columns_of(rows: Tensor) -> Columns:
    """How a table is read, by its labelled rows [n, columns], n > 0: a column is bent by that of ``POWERS`` after which its numbers are
    the likeliest for a normal distribution (Yeo, Johnson 2000, "A new family of power transformations to improve normality or symmetry",
    equation 3.1)."""
    scale = scale_of(rows)
    plain = scale(rows)
    powers = rows.new_tensor(POWERS)
    spread = bend(plain, powers[:, None, None]).var(1, correction=0).clamp(min=torch.finfo(rows.dtype).tiny).log()
    stretch = (plain.sign() * plain.abs().log1p()).mean(0)
    power = powers[((powers[:, None] - 1) * stretch - spread / 2).argmax(0)]
    return Columns(scale, power, scale_of(bend(plain, power)))


def scale_of(rows: Tensor) -> Scale:
    """The scale of columns, by their labelled rows [n, columns]."""
    largest = rows.abs().amax(0)
    largest = torch.where(largest > 0, largest, 1.0)
    deviation, mean = torch.std_mean(rows / largest, 0, correction=0)
    moves = deviation > STILL
    return Scale(largest, mean, torch.where(moves, 1 / torch.where(moves, deviation, 1.0), 0.0))


def bend(x: Tensor, power: Tensor) -> Tensor:
    """Numbers bent by a power that broadcasts to them (Yeo, Johnson 2000, equation 2.1). By 1 they are not; less draws in what lies above
    0, and more what lies below."""
    size = x.abs().log1p()
    return torch.where(x >= 0, _bent(size, power), -_bent(size, 2 - power))


def _bent(size: Tensor, power: Tensor) -> Tensor:
    """((1 + x)^power − 1) / power of log (1 + x)."""
    return torch.where(power == 0, size, torch.expm1(power * size) / torch.where(power == 0, 1.0, power))
