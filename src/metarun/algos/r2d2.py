"""R2-D2: a ridge regression, solved in closed form, is the head of every task, and the net learns features for it.
Bertinetto, Henriques, Torr, Vedaldi 2019, arXiv:1805.08136."""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import torch
from annotated_types import Gt
from torch import Tensor, nn

from metarun import inner
from metarun.algorithm import Algorithm
from metarun.nets.base import Net
from metarun.task import Context, Problem


class Solved(NamedTuple):
    """The solution of the ridge regression."""

    weight: Tensor  # [features + 1, way], the bias last
    support_x: Tensor  # [way * shot, *input_shape], for nets that normalise queries by the support


class R2D2(Algorithm):
    """Ridge regression differentiable discriminator.

        W = argmin (1/n) ‖Z W − Y‖² + λ ‖W‖² = Zᵀ(Z Zᵀ + nλ I)⁻¹ Y          (equation 6; Z: features and a column of ones, Y: one-hot)
        logits(x) = α (f(x), 1) W + β                                       (equation 7)
        min_{θ, α, β, λ}  mean over tasks of L_query

    The factor 1/n is that of the authors' code, and as there the bias is penalised like all weights. Any number of classes.

    Deviations: (1) λ is learned by its logarithm, which keeps it positive, while the authors' code keeps it fixed by default. (2) β is
    one number for all classes as in the paper, so a softmax over the logits does not see it. (3) Nets, shots and ways are the run's;
    the authors train with more ways than they test, and draw the shots of every training task from 1 to 10.

    Args:
        net, problem: the backbone and the data's shape.
        penalty: λ before meta-training.
        scale: α before meta-training; the regression's answers lie near 0..1, flat for a softmax.
    """

    kinds = frozenset({"classification"})
    encodes = True

    def __init__(self, net: Net, problem: Problem, *, penalty: Annotated[float, Gt(0)], scale: Annotated[float, Gt(0)]) -> None:
        super().__init__(net, problem)
        self.log_penalty = nn.Parameter(torch.tensor(math.log(penalty)))
        self.scale, self.bias = nn.Parameter(torch.tensor(scale)), nn.Parameter(torch.tensor(0.0))

    def begin(self, context: Context) -> Solved:
        x, y = context.support
        z = inner.with_ones(inner.widen(self.net(x, x)))
        target = inner.one_hot(y, context.classes.shape[0]).to(z.dtype)
        return Solved(inner.ridge(z, target, len(y) * self.log_penalty.exp()), x)

    def predict(self, state: Solved, x: Tensor) -> Tensor:
        z = inner.with_ones(inner.widen(self.net(x, state.support_x)))
        return self.scale * (z @ state.weight) + self.bias
