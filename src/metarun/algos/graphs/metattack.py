"""Metattack: the graph as a hyperparameter of the training of whoever learns from it, and its gradient through all of that training.
Zügner, Günnemann 2019, arXiv:1902.08412."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun import inner
from metarun.algos.graphs._attack import Attacked
from metarun.algos.graphs._informed import Informed
from metarun.algos.graphs._propagation import Hop
from metarun.algos.graphs._surrogate import Weights
from metarun.nets.base import Net
from metarun.problem import Problem


class Metattack(Informed):
    """Meta-gradient attack.

        A ← A with the pair flipped that has the largest  (1 − 2 A_ij) ∂/∂A_ij L_atk(A, θ_T(A)),   θ_{t+1} = θ_t − α ∇L_train(A, θ_t)
                                                                                                          (equations 5 and 8)

    The surrogate is trained anew at every step, from weights of its own. ``target`` says what L_atk is: ``self``, the loss on the
    unlabelled nodes with the classes that a surrogate of the clean graph tells (Meta-Self); ``train``, the loss on the labelled nodes
    (Meta-Train); or ``both``, their mean.

    With ``first_order`` the weights count as given, and the gradients of L_atk(A, θ_t) of all training steps are summed (A-Meta-Self and
    so on, section 4.4 of the paper).

    Deviations: (1) An edge is not flipped back, see ``Attack``. (2) The test of the degrees' power law is left out, as it is in the
    authors' demonstration. (3) The first-order variants train as the others do; the authors' code has Adam there.

    Args:
        net, problem, settings: as of ``Informed``.
        target, first_order: see above.
    """

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        target: Literal["self", "train", "both"],
        first_order: bool,
        **settings: Any,
    ) -> None:
        super().__init__(net, problem, **settings)
        self.target, self.first_order = target, first_order

    def choose(self, state: Attacked, linked: Tensor, allowed: Tensor, k: int | Tensor) -> Tensor:
        features, support = state.context.shared.features, state.context.support
        key = inner.fold_in(self.key(state.context), k)
        start = Weights.drawn(key, features, self.surrogate.hidden, self.problem.outputs)
        share = self.share(support.x, len(features)).to(features.dtype)
        real = linked.to(features.dtype)
        slope = inner.gradient(self.loss, real, features, *support, state.labels, share, start, mode="none")
        return torch.where(allowed, (slope + slope.T) * (1 - 2 * real), -torch.inf).argmax()

    def share(self, x: Tensor, nodes: int) -> Tensor:
        """What every node counts in L_atk [nodes], together 1; x are the labelled ones."""
        known = torch.zeros(nodes, dtype=torch.bool, device=x.device).scatter(0, x, True)
        train = {"self": 0.0, "train": 1.0, "both": 0.5}[self.target]
        return torch.where(known, train / x.shape[0], (1 - train) / (nodes - x.shape[0]))

    def loss(self, linked: Tensor, features: Tensor, x: Tensor, y: Tensor, labels: Tensor, share: Tensor, start: Weights) -> Tensor:
        """L_atk of a graph ``linked`` [nodes, nodes] of any symmetric numbers, on whose labelled nodes x, y the surrogate is trained."""
        hop = Hop.along(linked)
        seen = self.surrogate.seen(hop, features, x)
        if not self.first_order:
            trained = self.surrogate.trained(seen, y, start)
            logits = hop.spread(hop.spread(features @ self.surrogate.weights(seen, trained.parts, start)))
            return share @ F.cross_entropy(logits, labels, reduction="none")
        seen = seen.detach()
        _, parts = self.surrogate.trained(seen, y, start, read=lambda state: state.parts)
        weights = self.surrogate.weights(seen, parts, start).movedim(0, 2)
        logits = hop.spread(hop.spread(features @ weights.flatten(1))).unflatten(1, weights.shape[1:])
        return share @ F.cross_entropy(logits, labels[:, None].expand(-1, logits.shape[2]), reduction="none").sum(1)
