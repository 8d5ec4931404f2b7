"""Class-ratio weights: an example counts for as much more as its class is rarer (the "proportion" of arXiv:1803.09050, section 4.1)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from metarun import inner
from metarun.algos.weights._weighing import Training, Weighted
from metarun.task import Batch, Context


class Ratio(Weighted):
    """Inverse class frequencies.

        w_i = n / (way · n_c),   c the class of example i, n_c of the n training examples

    Nothing is learned; the rival of learned weights under imbalance.

    Deviation: the weights of a training set have the mean 1; the released code of the paper leaves them unnormalised.

    Args:
        net, problem, settings: as of ``Weighted``.
    """

    def weigh(self, state: Training, batch: Batch, context: Context, k: int | Tensor) -> tuple[Tensor, Any]:
        way, y = context.classes.shape[0], context.support.y
        counts = inner.one_hot(y, way).to(state.total.dtype).sum(0)
        return (y.shape[0] / (way * counts.clamp(min=1)))[batch.y], state.own
