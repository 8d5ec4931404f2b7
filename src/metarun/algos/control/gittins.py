"""The arm of the largest Gittins index: the rule that is optimal where later rewards count less and less, for ever.
Gittins 1979 (J. R. Statist. Soc. B 41)."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Gt, Lt
from torch import Tensor

from metarun.algos.control._lives import Counts, IndexRule, posterior_mean
from metarun.nets.base import Net
from metarun.problem import Problem

MOST = 400  # pulls of an arm from which on its index is its mean
PRICES = 400  # of the grid of constant rewards that an index is looked for in


class Gittins(IndexRule):
    """An arm's index ν is the sure reward at every pull that is worth as much as the arm, if one may change over to it whenever one likes:

        ν / (1 − γ) = p + γ E[V'],   V(wins, losses) = max(ν / (1 − γ), p + γ (p V(wins + 1, losses) + (1 − p) V(wins, losses + 1)))

    with p = (wins + 1) / (pulls + 2), after a uniform prior.

    Deviation: an episode ends after ``horizon`` pulls, where the rule is an approximation; with γ = 1 − 1 / horizon a good one.

    Args:
        net, problem: as of ``IndexRule``.
        discount: γ.
    """

    table: Tensor  # [most, most], by wins and losses

    def __init__(self, net: Net, problem: Problem, *, discount: Annotated[float, Gt(0), Lt(1)]) -> None:
        super().__init__(net, problem)
        most = min(MOST, self.shape[0] * (problem.most_support + 1))
        self.register_buffer("table", torch.from_numpy(indices(most, discount)), persistent=False)

    def index(self, counts: Counts, chance: Any) -> Tensor:
        most = self.table.shape[0]
        wins, losses = (n.long().clamp(max=most - 1) for n in (counts.wins, counts.pulls - counts.wins))
        return torch.where(counts.pulls < most, self.table[wins, losses], posterior_mean(counts))


def indices(most: int, discount: float) -> np.ndarray:
    """Gittins indices [most, most] of Bernoulli arms by wins and losses, of fewer than ``most`` pulls; others are zeros.

    By dynamic programming, back from arms that were pulled so often that no more can be learned of them; at all prices at once, between
    which the index is interpolated.
    """
    depth = most + int(3 / (1 - discount))
    prices = np.linspace(0, 1, PRICES + 1)[:, None]
    stop = prices / (1 - discount)
    value = np.maximum(prices, (np.arange(depth + 1) + 1) / (depth + 2)) / (1 - discount)  # [prices, wins] of ``depth`` pulls
    table = np.zeros((most, most))
    for pulls in range(depth - 1, -1, -1):
        wins = np.arange(pulls + 1)
        p = (wins + 1) / (pulls + 2)
        go_on = p * (1 + discount * value[:, 1:]) + (1 - p) * discount * value[:, :-1]
        value = np.maximum(go_on, stop)
        if pulls < most:
            gain = go_on - stop  # falls with the price
            above = np.clip((gain > 0).sum(0), 1, PRICES)  # the first price at which to stop
            left, right = gain[above - 1, wins], gain[above, wins]
            table[wins, pulls - wins] = (above - 1 + left / (left - right)) / PRICES
    return table
