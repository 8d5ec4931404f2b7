"""The arm that is best in a world drawn from the posterior.
Thompson 1933 (Biometrika 25); Chapelle & Li 2011 (NIPS)."""

from __future__ import annotations

import torch
from torch import Tensor

from metarun import inner
from metarun.algos.control._lives import Counts, IndexRule

TRIES = 8  # of the rejection sampler, which takes one of at least 95 %: all fail once in 10^10


class Thompson(IndexRule):
    """Draw a mean for each arm from its posterior Beta(wins + 1, losses + 1), after a uniform prior, and pull the arm of the largest.

    A Beta variable is G_1 / (G_1 + G_2) of two Gamma variables, which are drawn as Marsaglia & Tsang 2000 do (ACM TOMS 26); as chance has
    to be drawn beforehand, so many times, the last of ``TRIES`` tries is taken if all are rejected.
    """

    def chance(self, key: Tensor) -> tuple[Tensor, Tensor]:
        shape = (*self.shape, 2, TRIES)
        return inner.normal(key, shape, 10), inner.uniform(key, shape, 11)

    def index(self, counts: Counts, chance: tuple[Tensor, Tensor]) -> Tensor:
        after = torch.stack([counts.wins, counts.pulls - counts.wins], -1) + 1
        drawn = gamma(after, *chance)
        return drawn[..., 0] / drawn.sum(-1)


def gamma(shape: Tensor, normal: Tensor, uniform: Tensor) -> Tensor:
    """Gamma variables of these shape parameters [...] >= 1 and scale 1, of normal and uniform numbers [..., tries]."""
    d = shape[..., None] - 1 / 3
    v = (1 + normal / (9 * d).sqrt()).pow(3)
    right = 0.5 * normal.square() + d - d * v + d * v.clamp(min=1e-30).log()
    taken = (v > 0) & (uniform.log() < right)
    taken[..., -1] = True
    first = taken.to(torch.int64).argmax(-1, keepdim=True)
    return (d * v).gather(-1, first).squeeze(-1).clamp(min=1e-30)
