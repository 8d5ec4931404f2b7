"""Random weights, other ones in every step (the rival of arXiv:1803.09050, section 4.1)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from metarun import inner
from metarun.algos.weights._weighing import Training, Weighted, to_mean_one
from metarun.task import Batch, Context

CHANCE = 2  # added to a task's key, for the weights


class RandomWeights(Weighted):
    """Random example weights.

        w_i = max(z_i, 0) / Σ_j max(z_j, 0),   z ~ N(0, I)

    Nothing is learned: what learned weights that are no better do, too.

    Args:
        net, problem, settings: as of ``Weighted``.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.ordered = True  # whatever the minibatch: a place has its weight

    def weigh(self, state: Training, batch: Batch, context: Context, k: int | Tensor) -> tuple[Tensor, Any]:
        drawn = inner.normal(inner.fold_in(context.key + CHANCE, k), tuple(batch.y.shape))
        return to_mean_one(drawn.to(state.total.dtype).clamp(min=0)), state.own
