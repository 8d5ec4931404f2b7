"""R2-D2: a ridge regression, solved in closed form, is the head of every task, and the net learns features for it.
Bertinetto, Henriques, Torr, Vedaldi 2019, arXiv:1805.08136."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from metarun import inner
from metarun.learners import SolvedHead
from metarun.task import Context


class Solved(NamedTuple):
    """The solution of the ridge regression."""

    weight: Tensor  # [features + 1, way], the bias last
    support_x: Tensor  # [way * shot, *input_shape], for nets that normalise queries by the support


class R2D2(SolvedHead):
    """Ridge regression differentiable discriminator.

        W = argmin (1/n) ‖Z W − Y‖² + λ ‖W‖² = Zᵀ(Z Zᵀ + nλ I)⁻¹ Y          (equation 6; Z: features and a column of ones, Y: one-hot)
        logits(x) = α (f(x), 1) W + β                                       (equation 7)
        min_{θ, α, β, λ}  mean over tasks of L_query

    The factor 1/n is that of the authors' code, and as there the bias is penalised like all weights. Any number of classes.

    Deviations: (1) λ is learned by its logarithm, which keeps it positive, while the authors' code keeps it fixed by default. (2) β is
    one number for all classes as in the paper, so a softmax over the logits does not see it. (3) Nets, shots and ways are the run's;
    the authors train with more ways than they test, and draw the shots of every training task from 1 to 10. (4) Default: λ begins at
    0.1; their code has 50, for the many features of a wider net.

    Args:
        as of ``SolvedHead``.
    """

    def begin(self, context: Context) -> Solved:
        x, y = context.support
        z = self.rows(x, x)
        target = inner.one_hot(y, context.classes.shape[0]).to(z.dtype)
        return Solved(inner.ridge(z, target, self.penalty(len(y))), x)
