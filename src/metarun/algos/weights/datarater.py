"""DataRater: a rater of training data, meta-learned over a population of learners.
Calian et al. 2025, "DataRater: Meta-learned dataset curation", arXiv:2505.17895."""

from __future__ import annotations

import copy
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from metarun import inner
from metarun.algos.weights._weighing import Training, Weighted
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Batch, Context


class DataRater(Weighted):
    """DataRater.

        w_i = n · softmax_i(φ_η(x_i, ℓ_i))                                  over the minibatch (section 3)
        θ_{k+1} = θ_k − rate · ∇ (1/n) Σ_i w_i ℓ_i(θ_k)                     the learner's step
        min_η  mean over learners of L_held-out(θ_{k + inner_steps})        through these steps

    The learners of a meta-batch are the population: each has random weights of its own and trains for ``horizon`` steps, the gradient in η
    being cut after every ``inner_steps``. The rater sees the image through a net like the learner's, beside the logarithm of its loss under
    the learner, for labels are numbers that mean something else in every task.

    Deviations: (1) the loss beside the image: the paper's raters see text, which is its own label. (2) The held-out examples are the task's
    query. (3) The learner's rule is plain SGD or momentum, through which the gradient goes. (4) Nothing is dropped at test: examples weigh.

    Args:
        net, problem, settings: as of ``Weighted``.
        sees: what of an example the rater sees: its ``image``, its ``loss``, or ``both``.
        inner_steps: steps of one meta-update.
        horizon: steps of a learner of the population, a multiple of ``inner_steps``.
    """

    mode = "unroll"

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        rule: Literal["sgd", "momentum"],
        sees: Literal["image", "loss", "both"],
        inner_steps: Annotated[int, Ge(1)],
        horizon: Annotated[int, Ge(1)],
        **settings: Any,
    ) -> None:
        if horizon % inner_steps:
            raise ValueError(f"algo.horizon={horizon} is no multiple of algo.inner_steps={inner_steps}")
        super().__init__(net, problem, rule=rule, **settings)
        self.sees, self.inner_steps, self.unrolls = sees, inner_steps, horizon // inner_steps
        self.eyes = None if sees == "loss" else copy.deepcopy(net).requires_grad_()
        self.rater = nn.Sequential(nn.Linear(net.features * (sees != "loss") + (sees != "image"), 32), nn.ReLU(), nn.Linear(32, 1))
        with torch.no_grad():
            for weight in self.rater[-1].parameters():
                weight.zero_()  # all examples weigh the same at first

    def scores(self, x: Tensor, losses: Tensor) -> Tensor:
        """φ [n] of images x [n, *input_shape] with these losses [n]."""
        seen = [self.eyes(x, x)] if self.eyes else []
        if self.sees != "image":
            seen.append(torch.log(losses + 1e-3)[:, None])
        found: Tensor = self.rater(torch.cat(seen, -1))
        return found[:, 0]

    def weigh(self, state: Training, batch: Batch, context: Context, k: int | Tensor) -> tuple[Tensor, Any]:
        losses = self.losses(inner.constant(state.fast), *batch).detach()
        return len(losses) * self.scores(batch.x, losses.to(batch.x.dtype)).softmax(0), state.own
