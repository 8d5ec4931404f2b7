"""The arm that could be best: its mean so far and a bonus for what is not known of it.
Auer, Cesa-Bianchi, Fischer 2002 (Machine Learning 47), figure 1."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from metarun.algos.control._lives import Counts, IndexRule
from metarun.nets.base import Net
from metarun.problem import Problem


class UCB1(IndexRule):
    """Pull every arm once, and then the arm of the largest

        wins / pulls + width sqrt(ln(pulls of all arms) / pulls)

    Deviation: ``width`` is √2 in the paper, for which its bound of the regret is proved; a smaller one does better in a hundred pulls.

    Args:
        net, problem: as of ``IndexRule``.
        width: of the bonus.
    """

    def __init__(self, net: Net, problem: Problem, *, width: Annotated[float, Ge(0)]) -> None:
        super().__init__(net, problem)
        self.width = width

    def index(self, counts: Counts, chance: Any) -> Tensor:
        pulls = counts.pulls.clamp(min=1)
        bonus = (counts.pulls.sum(-1, keepdim=True).clamp(min=1).log() / pulls).sqrt()
        return torch.where(counts.pulls > 0, counts.wins / pulls + self.width * bonus, NEVER)


NEVER = 1e3  # more than any index: of arms that were not pulled yet
