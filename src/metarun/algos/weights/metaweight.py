"""Meta-Weight-Net: the weight of an example as a learned function of its loss.
Shu et al. 2019, NeurIPS, arXiv:1902.07379."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.func import functional_call

from metarun import inner
from metarun.algos.optimizers._scratch import Fast
from metarun.algos.weights._weighing import Training, Weighted, to_mean_one
from metarun.nets.base import Net, draw
from metarun.problem import Problem
from metarun.runtime.private import tree_map
from metarun.task import Batch, Context

OWN = 2  # added to a task's key, for the weighting net's random weights


class WeightNet(NamedTuple):
    """A weighting net in training."""

    weights: Fast  # Θ by parameter name
    moments: inner.Moments  # of Adam


class MetaWeight(Weighted):
    """Meta-Weight-Net.

        V(ℓ; Θ) = σ(MLP_Θ(ℓ)),  1-hidden-1
        θ̂(Θ) = θ − rate · ∇_θ (1/n) Σ_i V(ℓ_i; Θ) ℓ_i(θ)           a step that is only tried   (equation 3)
        Θ ← Adam(Θ, ∇_Θ L_clean(θ̂(Θ)))                                                      (equation 4)
        θ ← rule(θ, ∇_θ (1/n) Σ_i V(ℓ_i; Θ) ℓ_i(θ))                with the new Θ            (equation 5)

    V's input is a constant: its gradient in θ does not count. Θ begins at random in every task and is learned along with θ; there is
    nothing to meta-learn across tasks, and a run goes straight to its test. A constant V is plain training (at rate · V, if it is not
    ``normalised``).

    Deviations: (1) the rate stays as it is; the paper divides it by 10 twice. (2) With ``normalised`` a minibatch's values are divided by
    their mean, in both places: Θ then learns which examples count for more, not that larger steps lower the loss, by which V soon is 1 for
    all. Without, it is the paper's.

    Args:
        net, problem, settings: as of ``Weighted``.
        hidden: units of the weighting net.
        meta_rate: of Adam.
        meta_decay: weight decay of Θ, an L2 penalty as in torch's Adam.
        normalised: see above.
    """

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        hidden: Annotated[int, Ge(1)],
        meta_rate: Annotated[float, Gt(0)],
        meta_decay: Annotated[float, Ge(0)],
        normalised: bool,
        **settings: Any,
    ) -> None:
        super().__init__(net, problem, **settings)
        self.meta_rate, self.meta_decay, self.normalised = meta_rate, meta_decay, normalised
        self.weigher = nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, 1), nn.Sigmoid()).requires_grad_(False)

    def ready(self, context: Context) -> WeightNet:
        weights = draw(self.weigher, context.key + OWN)
        return WeightNet(weights, inner.no_moments(weights))

    def values(self, weights: Fast, losses: Tensor) -> Tensor:
        """The weights [n] of examples with these losses [n]."""
        found: Tensor = functional_call(self.weigher, weights, (losses[:, None],))
        return to_mean_one(found[:, 0]) if self.normalised else found[:, 0]

    def ahead_by(self, weights: Fast, losses: Tensor, fast: Fast, batch: Batch, clean: Batch) -> Tensor:
        """The loss on clean examples after a step by this weighting net; pure, differentiable in its ``weights``."""
        return self.ahead(self.values(weights, losses), fast, batch, clean)

    def weigh(self, state: Training, batch: Batch, context: Context, k: int | Tensor) -> tuple[Tensor, WeightNet]:
        fast, (theta, moments) = inner.constant(state.fast), inner.constant(state.own)
        losses = self.losses(fast, *batch).to(next(iter(theta.values())).dtype)
        slope = inner.gradient(self.ahead_by, theta, losses, fast, batch, self.clean(context, batch, k), mode="none")
        grads = tree_map(lambda g, w: g.detach() + self.meta_decay * w, slope, theta)
        theta, moments = inner.adam(theta, grads, moments, k, self.meta_rate, beta1=0.9)
        return self.values(theta, losses), WeightNet(theta, moments)
