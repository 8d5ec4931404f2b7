"""Random search: what every cleverer search has to beat.
Bergstra & Bengio 2012; for architectures Li & Talwalkar 2019, arXiv:1902.07638."""

from __future__ import annotations

from torch import Tensor

from metarun.algos.search._searcher import Memory, Searcher


class RandomSearch(Searcher):
    """Random search: every candidate is drawn uniformly, with replacement.

    Args:
        net, problem, test_steps: as of ``Searcher``.
    """

    def propose(self, memory: Memory, key: Tensor, k: int | Tensor) -> Tensor:
        return self.space.draw(key)
