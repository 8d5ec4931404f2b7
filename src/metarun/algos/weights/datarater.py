"""DataRater: the worth of an example, read off the example itself by a net that is meta-learned over a population of learners.
Calian et al. 2025, NeurIPS, arXiv:2505.17895."""

from __future__ import annotations

import copy
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn

from metarun import inner
from metarun.algorithm import Footprint
from metarun.algos.optimizers._scratch import Fast
from metarun.algos.weights._weighing import Training, Weighted
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Batch, Context, Task


class DataRater(Weighted):
    """Scores of examples, meta-learned across training sets.

        w_i = n · softmax_i φ_η(x_1), …, φ_η(x_n)                   over a minibatch of n examples
        θ_{k+1} = rule(θ_k, ∇ (1/n) Σ_i w_i ℓ_i(θ_k))
        min_η  mean over learners of L_query(θ_{k+T}(η)),           T = inner_steps, θ_k a constant

    Every place of a meta-batch is a learner of the population, with a training set and random weights of its own. It is trained for
    ``horizon`` steps, and another one takes its place; places are staggered, so that learners of all ages judge the scores. In a test the
    scores only weigh: it needs no clean examples. Equal scores are plain training.

    An example is scored by its input x alone, since the labels of other classes mean nothing here: what is wrong with a picture can be
    told, a wrong label on a good picture cannot.

    Deviations: (1) scores weigh in tests as in training; the paper, in the end, drops what scores least. (2) One Adam takes the mean of
    the learners' meta-gradients; the paper has one for each, and takes the mean of their steps. (3) φ is a copy of the learner's backbone
    with weights and a linear head of its own; the paper's is a Transformer of a size of its own. (4) Each learner has a training set of
    its own; the paper's all have the same one.

    Args:
        net, problem, settings: as of ``Weighted``.
        inner_steps: steps of one meta-update, T.
        horizon: steps of a learner's life in meta-training, a multiple of ``inner_steps``.
    """

    def __init__(
        self, net: Net, problem: Problem, *, inner_steps: Annotated[int, Ge(1)], horizon: Annotated[int, Ge(1)], **settings: Any
    ) -> None:
        if horizon % inner_steps:
            raise ValueError(f"algo.horizon={horizon} is no multiple of algo.inner_steps={inner_steps}")
        own = copy.deepcopy(net)  # before the learner's, which only tells shapes, stops to learn
        super().__init__(net, problem, **settings)
        self.inner_steps, self.unrolls = inner_steps, horizon // inner_steps
        self.rater, self.score = own, nn.Linear(net.features, 1, bias=False)  # softmax does not see a bias

    def scores(self, x: Tensor) -> Tensor:
        """φ(x) [n] of examples x [n, *input_shape]."""
        found: Tensor = self.score(self.rater(x, x))
        return inner.upcast(found[:, 0])

    def weigh(self, state: Training, batch: Batch, context: Context, k: int | Tensor) -> tuple[Tensor, Any]:
        return batch.y.shape[0] * torch.softmax(self.scores(batch.x), 0), state.own

    def slopes(self, fast: Fast, weights: Tensor, batch: Batch) -> Fast:
        found: Fast = inner.gradient(self.weighted_loss, fast, weights, *batch, mode="unroll")
        return found

    def footprint(self, task: Task, train: bool) -> Footprint:
        found = super().footprint(task, train)
        return found._replace(repeated=2 * found.repeated)
