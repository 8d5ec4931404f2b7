"""PLATIPUS and probabilistic MAML: a learned distribution over where gradient steps start; several starts give several readings of a task.
Finn, Xu, Levine 2018, arXiv:1806.02817."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from metarun import inner
from metarun.algorithm import Metrics, State
from metarun.algos.bayes._several import Several, SeveralLearner
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Context, Task

OF_ENCODER = 1  # the number that makes its own random key of a task's


class PLATIPUS(SeveralLearner):
    """Probabilistic latent model for incorporating priors and uncertainty in few-shot learning.

        prior      p(θ | support) = N(μ − γ_p ∇L_support(μ), σ²)                         (section 4.2)
        encoder    q(θ | query)   = N(μ − γ_q ∇L_query(μ), v²)                           (section 4.1)
        inner loop φ_0 = θ,   φ_{k+1} = φ_k − α ∘ ∇L_support(φ_k)
        min        E_{θ ~ q} of −log p(query | φ_K) + divergence · KL(q ‖ p) / queries     (algorithm 1)
        test       θ ~ p, and the mean probability of what the φ_K answer                (algorithm 2)

    Each number has its own σ and v, each tensor its own γ. No sample of q is ever made at test, as it knows the query's labels.

    Without the encoder it is PMAML (``encoder: false``): meta-training draws θ from p as a test does, and descends
    −log of the mean probability of the query; nothing keeps σ from vanishing but that it may help.

    Deviations: (1) The divergence is weighted by ``divergence``, below 1 by default, as is done in practice. (2) γ is one number a
    tensor, not one a weight; α is one number, or, where it is learned, one a weight, as Meta-SGD's. (3) A regression's likelihood has
    the fixed ``noise``; its inner loop descends squared errors as MAML's.

    Args:
        net, problem: the backbone and the data's shape.
        inner_lr: α, on the mean support loss; where it is learned, before meta-training.
        learn_lr: whether meta-training learns α, one for every weight.
        inner_steps, test_steps: K in meta-training, and in validation and test.
        samples, test_samples: of θ, likewise.
        deviation: σ and v before meta-training.
        centre_lr: γ_p and γ_q before meta-training.
        divergence: weight of the divergence.
        clip: largest absolute value of a number of an inner gradient; null for none.
        encoder: false for PMAML.
        noise: of a regression's targets around the answer of a sample, a standard deviation.
        mode: how second derivatives are computed, ``unroll`` or ``mixed`` (see ``inner.gradient``).
    """

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        samples: Annotated[int, Ge(1)],
        test_samples: Annotated[int, Ge(1)],
        deviation: Annotated[float, Gt(0)],
        centre_lr: Annotated[float, Ge(0)],
        divergence: Annotated[float, Ge(0)],
        encoder: bool,
        learn_lr: bool = False,
        clip: Annotated[float, Gt(0)] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(net, problem, **settings)
        self.drawn, self.test_drawn, self.divergence, self.encoder = samples, test_samples, divergence, encoder
        self.clip = clip
        weights = [*self.learner().values()]

        def spread() -> nn.ParameterList:
            return nn.ParameterList(torch.full_like(w, math.log(deviation)) for w in weights)

        self.log_deviation, self.centre_lrs = spread(), nn.Parameter(torch.full((len(weights),), centre_lr))
        self.rates = nn.ParameterList(torch.full_like(w, self.inner_lr) for w in weights) if learn_lr else None
        if encoder:
            self.encoder_log_deviation, self.encoder_lrs = spread(), nn.Parameter(torch.full((len(weights),), centre_lr))

    def steps(self, context: Context, train: bool) -> int:
        """None before the objective, which draws from the encoder and takes them."""
        return 0 if train and self.encoder else super().steps(context, train)

    def begin(self, context: Context) -> Several:
        centre = self.centre(context, self.centre_lrs)
        if self.training and self.encoder:
            return Several({name: w[None] for name, w in centre.items()}, context.support.x)
        return Several(draw(centre, self.log_deviation, context.key, self.sets(self.training)), context.support.x)

    def centre(self, context: Context, rates: Tensor) -> dict[str, Tensor]:
        """The mean of starts for the examples of ``context.support``: a gradient step from μ."""
        means = self.learner()
        grads = self.clipped(self.support_gradient(means, context, self.mode))
        return {name: w - rate * grads[name] for (name, w), rate in zip(means.items(), rates)}

    def step(self, state: Several, context: Context, k: int) -> Several:
        grads = self.clipped(inner.gradient(self.sum_of_losses, state.fast, *context.support, mode=self.mode))
        rates = self.inner_lr if self.rates is None else dict(zip(grads, self.rates))
        return state._replace(fast=inner.sgd(state.fast, grads, rates))

    def clipped(self, grads: dict[str, Tensor]) -> dict[str, Tensor]:
        """Inner gradients without what ``clip`` forbids: one steep task would else throw its weights, and meta-training, far away."""
        return grads if self.clip is None else {name: g.clamp(-self.clip, self.clip) for name, g in grads.items()}

    def objective(self, states: Sequence[State], task: Task, progress: float) -> tuple[Tensor, Metrics]:
        if not self.encoder:
            return super().objective(states, task, progress)
        context, (x, y) = task.context, task.query
        prior = {name: w[0] for name, w in states[-1].fast.items()}
        posterior = self.centre(context._replace(support=task.query), self.encoder_lrs)
        starts = draw(posterior, self.encoder_log_deviation, inner.fold_in(context.key, OF_ENCODER), self.drawn)
        begun = states[-1]._replace(fast=starts)
        state = inner.loop(lambda state, k: self.step(state, context, k), begun, self.inner_steps, kept=inner.kept_by(self.mode))
        answers = self.members(state.fast, x, state.support_x)
        surprise = torch.stack([self.problem.loss(self.samples(answer[None]), y) for answer in answers]).mean()
        apart = kl(posterior, self.encoder_log_deviation, prior, self.log_deviation)
        loss, score = (judge(self.samples(answers), y) for judge in (self.problem.loss, self.problem.score))
        metrics = {"loss": loss, self.problem.metric: score, "divergence": apart}
        return surprise + self.divergence * apart / len(y), metrics

    def sets(self, train: bool) -> int:
        return self.drawn if train else self.test_drawn


def draw(centre: dict[str, Tensor], log_deviation: nn.ParameterList, key: Tensor, n: int) -> dict[str, Tensor]:
    """n samples of independent Gaussians, [n, *shape] by name; the numbers of a tensor depend on ``key`` and its place."""
    return {
        name: mean + log_scale.exp() * inner.normal(key, (n, *mean.shape), place).to(mean)
        for place, ((name, mean), log_scale) in enumerate(zip(centre.items(), log_deviation))
    }


def kl(mean: dict[str, Tensor], log_scale: nn.ParameterList, other: dict[str, Tensor], other_log_scale: nn.ParameterList) -> Tensor:
    """KL(N(mean, scale²) ‖ N(other, other_scale²)) [], over all numbers."""
    parts = [
        (s - r + ((2 * r).exp() + (m - o).square()) / (2 * (2 * s).exp()) - 0.5).sum()
        for m, r, o, s in zip(mean.values(), log_scale, other.values(), other_log_scale)
    ]
    return torch.stack(parts).sum()
