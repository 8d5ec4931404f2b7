"""Flipped edges at random: what a budget does to a graph without any thought. The row against which attacks are measured.
As in Zügner, Günnemann 2019, arXiv:1902.08412."""

from __future__ import annotations

from torch import Tensor

from metarun.algos.graphs._attack import Attack, Attacked, drawn


class RandomFlips(Attack):
    """Of all pairs of nodes that may be flipped one, each as likely as another: in a sparse graph, nearly always a new edge.

    Args:
        net, problem, settings: as of ``Attack``.
    """

    def choose(self, state: Attacked, linked: Tensor, allowed: Tensor, k: int | Tensor) -> Tensor:
        return drawn(allowed, self.key(state.context), k)
