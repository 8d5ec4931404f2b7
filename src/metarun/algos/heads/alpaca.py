"""ALPaCA: Bayesian linear regression on learned features, with a learned prior; its answers bear their uncertainty.
Harrison, Sharma, Pavone 2018, arXiv:1807.08912."""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import torch
from annotated_types import Gt
from torch import Tensor, nn

from metarun import inner
from metarun.abilities import AnswersTogether
from metarun.algorithm import Algorithm
from metarun.nets.base import Net
from metarun.problem import Gaussian, JointGaussian, Problem
from metarun.task import Context


class Posterior(NamedTuple):
    """What is known of the last layer's weights, in units of the prior: K = K_0 + L weight, covariance L precision⁻¹ Lᵀ ⊗ Σ."""

    weight: Tensor  # [features + 1, outputs]
    precision: Tensor  # [features + 1, features + 1]
    support_x: Tensor  # [shot, *input_shape], for nets that normalise queries by the support


class ALPaCA(AnswersTogether, Algorithm):
    """Adaptive learning for probabilistic connectionist architectures.

        prior      y = Kᵀ φ(x) + ε,   ε ~ N(0, Σ),   K ~ MN(K_0, Λ_0⁻¹, Σ)
        posterior  Λ = Φᵀ Φ + Λ_0,   K̄ = Λ⁻¹ (Φᵀ Y + Λ_0 K_0)                (Φ, Y: the support)
        answer     N(K̄ᵀ φ(x), (1 + φ(x)ᵀ Λ⁻¹ φ(x)) Σ)
        min_{θ, K_0, Λ_0, Σ}  mean over tasks, and over how much of the support is seen, of −log p(query | support)

    In meta-training every episode draws how many of its support points are seen, from none to all; evaluation shows all.

    Deviations: (1) Λ_0⁻¹ = L Lᵀ with L lower triangular is learned, not a factor of Λ_0: features in units of the prior are then Lᵀ φ and
    nothing has to be inverted. (2) φ has a last component of one. (3) Σ is diagonal, and learned by its logarithm.

    Args:
        net, problem: the backbone and the data's shape.
        noise: the variances in Σ before meta-training, in units of the squared targets.
        prior: L before meta-training is this multiple of the identity; K_0 begins at zero.
    """

    kinds = frozenset({"regression"})

    def __init__(self, net: Net, problem: Problem, *, noise: Annotated[float, Gt(0)], prior: Annotated[float, Gt(0)]) -> None:
        super().__init__(net, problem)
        self.mean = nn.Parameter(torch.zeros(net.features + 1, problem.outputs))
        self.factor = nn.Parameter(prior * torch.eye(net.features + 1))
        self.log_noise = nn.Parameter(torch.full((problem.outputs,), math.log(noise)))

    def features(self, x: Tensor, support_x: Tensor) -> tuple[Tensor, Tensor]:
        """φ [n, features + 1] of x, and the same in units of the prior, Lᵀ φ."""
        phi = inner.with_ones(inner.upcast(self.net(x, support_x)))
        return phi, phi @ self.factor.tril()

    def begin(self, context: Context) -> Posterior:
        x, y = context.support
        phi, scaled = self.features(x, x)
        if self.training:
            seen = torch.arange(len(x), device=x.device) < ((len(x) + 1) * inner.uniform(context.key, (1,))).floor()
            scaled = scaled * seen[:, None]  # a point whose features are zero says nothing of the weights
        unit = scaled.new_ones(())
        return Posterior(inner.ridge(scaled, y - phi @ self.mean, unit), inner.precision_matrix(scaled, unit), x)

    def predict(self, state: Posterior, x: Tensor) -> Gaussian:
        phi, scaled = self.features(x, state.support_x)
        unsure = 1 + (scaled * inner.solve(state.precision, scaled.T).T).sum(1, keepdim=True)
        return Gaussian(phi @ self.mean + scaled @ state.weight, unsure * self.log_noise.exp())

    def together(self, state: Posterior, x: Tensor) -> JointGaussian:
        phi, scaled = self.features(x, state.support_x)
        known = torch.eye(len(x), dtype=phi.dtype, device=x.device) + scaled @ inner.solve(state.precision, scaled.T)
        return JointGaussian(phi @ self.mean + scaled @ state.weight, self.log_noise.exp()[:, None, None] * known)
