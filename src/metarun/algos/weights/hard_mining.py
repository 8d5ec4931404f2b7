"""Hard mining: of every class only its hardest examples, as many as the rarest class has (the rival of arXiv:1803.09050, section 4.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metarun import inner
from metarun.algos.weights._weighing import Training, Weighted, to_mean_one
from metarun.task import Batch, Context


class HardMining(Weighted):
    """Hard example mining.

        m = max(1, the minibatch's examples of the class that is rarest in the training set)
        w_i ∝ [example i is among the m of its class with the largest loss]

    Nothing is learned; the rival of learned weights under imbalance, and a bad choice under wrong labels.

    Deviation: for any number of classes; the paper has two, and all examples of the rarer one.

    Args:
        net, problem, settings: as of ``Weighted``.
    """

    def weigh(self, state: Training, batch: Batch, context: Context, k: int | Tensor) -> tuple[Tensor, Any]:
        way = context.classes.shape[0]
        everywhere, here = (inner.one_hot(y, way).sum(0) for y in (context.support.y, batch.y))
        most = here.gather(0, everywhere.argmin()[None]).clamp(min=1)
        losses = self.losses(inner.constant(state.fast), *batch)
        before = torch.arange(len(losses), device=losses.device)
        ahead = (losses > losses[:, None]) | ((losses == losses[:, None]) & (before < before[:, None]))  # [n, n], of the one in the column
        rank = (ahead & (batch.y == batch.y[:, None])).sum(1)
        return to_mean_one((rank < most).to(losses.dtype)), state.own
