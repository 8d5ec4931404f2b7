"""LR-D2: a logistic regression, solved by a few of Newton's steps, is the head of every task, and the net learns features for it.
Bertinetto, Henriques, Torr, Vedaldi 2019, arXiv:1805.08136."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import torch
from annotated_types import Ge
from torch import Tensor

from metarun import inner
from metarun.learners import SolvedHead
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Context


class Solving(NamedTuple):
    """One logistic regression per class, on features that were computed once."""

    weight: Tensor  # [features + 1, way], the bias last
    z: Tensor  # [way * shot, features + 1], features of the support and a column of ones
    support_x: Tensor  # [way * shot, *input_shape], for nets that normalise queries by the support


class LRD2(SolvedHead):
    """Logistic regression differentiable discriminator, each class against the rest.

        w_c = argmin (1/n) Σ_i log(1 + exp(−t_i z_i w_c)) + λ/2 ‖w_c‖²     (t_i = 1 in class c, else −1; z: features and a one)
        Newton's step is a weighted ridge regression (IRLS, section 3.2), from w_c = 0:
            η = Z w_c,   s = σ(η) σ(−η),   target = η + t / σ(t η),   w_c ← Zᵀ(Z Zᵀ + nλ diag(1/s))⁻¹ target
        logits(x) = α (f(x), 1) (w_1 … w_way) + β
        min_{θ, α, β, λ}  mean over tasks of L_query

    The adaptation curve shows the accuracy after 0, 1, 2 … Newton steps. Any number of classes.

    Deviations: those of R2-D2, and (4) an episode's loss is the softmax's cross-entropy of the regressions' logits, also with two classes,
    where the authors need one regression only. (5) The penalty is for the mean over examples, nλ, as in R2-D2; theirs is λ.
    (6) Default: λ begins at 0.1, as in R2-D2.

    Args:
        net, problem: the backbone and the data's shape.
        inner_steps, test_steps: Newton steps in meta-training, and in validation and test.
        penalty, scale: as of ``SolvedHead``.
    """

    def __init__(
        self, net: Net, problem: Problem, *, inner_steps: Annotated[int, Ge(0)], test_steps: Annotated[int, Ge(0)], **settings: Any
    ) -> None:
        super().__init__(net, problem, **settings)
        self.inner_steps, self.test_steps = inner_steps, test_steps

    def begin(self, context: Context) -> Solving:
        x = context.support.x
        z = self.rows(x, x)
        return Solving(z.new_zeros(z.shape[1], context.classes.shape[0]), z, x)

    def step(self, state: Solving, context: Context, k: int) -> Solving:
        weight, z, _ = state
        sign = 2 * inner.one_hot(context.support.y, weight.shape[1]).to(z.dtype) - 1
        logits = z @ weight
        # (y − μ) / s is t / σ(t η): written so, an example that is surely wrong does not become 0 / 0.
        target = logits + sign / torch.sigmoid(sign * logits)
        noise = self.penalty(len(z)) / (torch.sigmoid(logits) * torch.sigmoid(-logits))
        return state._replace(weight=torch.vmap(inner.ridge, in_dims=(None, 1, 1), out_dims=1)(z, target, noise))
