"""The arm that paid best so far, the rule that never explores on purpose.
As the greedy row of Duan et al. 2016, arXiv:1611.02779, section 3.1."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from metarun.algos.control._lives import Counts, IndexRule, posterior_mean


class Greedy(IndexRule):
    """Pull the arm of the largest posterior mean (wins + 1) / (pulls + 2), after a uniform prior."""

    def index(self, counts: Counts, chance: Any) -> Tensor:
        return posterior_mean(counts)
