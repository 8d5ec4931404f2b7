"""DICE: disconnect internally, connect externally. Flips by what is known of classes, without a gradient.
Waniek, Michalak, Rahwan, Wooldridge 2018, arXiv:1608.00375; as a rival of Zügner, Günnemann 2019, arXiv:1902.08412."""

from __future__ import annotations

import torch
from torch import Tensor

from metarun import inner
from metarun.algos.graphs._attack import Attacked, drawn
from metarun.algos.graphs._informed import Informed

COIN = 2**31  # stream of the side on which a coin falls, beside those of steps


class GraphDICE(Informed):
    """At every step a coin decides: an edge is removed within a class, or one is added between two classes; which, chance says.

    Where there is none left of the one, it is of the other.

    Deviations: (1) The paper hides a community from whoever looks for it, and only that community's links are touched; this is the form
    of the attack's rivals. (2) There the classes of all nodes are known; here only labels are, and the classes of other nodes are those
    that a surrogate of the clean graph tells, as for Metattack.

    Args:
        net, problem, settings: as of ``Informed``.
    """

    def choose(self, state: Attacked, linked: Tensor, allowed: Tensor, k: int | Tensor) -> Tensor:
        key, same = self.key(state.context), state.labels[:, None] == state.labels
        internal, external = allowed & linked & same, allowed & ~linked & ~same
        remove = ((inner.uniform(key, (), COIN + k) < 0.5) | ~external.any()) & internal.any()
        return drawn(torch.where(remove, internal, external), key, k)
