"""Meta-LSTM: the learner's weights are the cell state of an LSTM, so that it learns how to update them, and where to begin.
Ravi & Larochelle 2017, "Optimization as a model for few-shot learning" (ICLR)."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from metarun import inner
from metarun.algos.optimizers._gates import Gates
from metarun.algos.optimizers._scratch import Fast, flat, shaped
from metarun.learners import GradientLearner
from metarun.nets.base import Net
from metarun.nets.lstm import LSTMCell
from metarun.problem import Problem
from metarun.runtime.private import tree_map
from metarun.task import Batch, Context


class Learning(NamedTuple):
    """A learner on its way."""

    fast: Fast  # weights by parameter name: the state of the upper cell
    support_x: Tensor  # [way * shot, *input_shape], for nets that normalise queries by the support
    output: Tensor  # h [coordinates, hidden] of the lower cell
    cell: Tensor  # c [coordinates, hidden] of the lower cell
    gates: Tensor  # [2, coordinates] of the upper cell, see ``Gates``


class MetaLSTM(GradientLearner):
    """Meta-LSTM.

        h_k = LSTM(pre(∇_k), pre(L_k)),   L_k the loss of minibatch k at θ_{k−1}              (for every coordinate alike)
        θ_k = f_k ∘ θ_{k−1} − i_k ∘ ∇_k,   gates of (h_k, θ_{k−1}, i_{k−1} or f_{k−1})        (equations 5 and 6, see ``Gates``)
        min over both cells and θ_0:  mean over tasks of L_query(θ_K)                         (algorithm 1)

    Losses and gradients are constants to the cells (section 3.3).

    Deviations: (1) Whose statistics normalise is ``net.norm``'s to say; the paper's are the batch's in training, and at test those
    collected on the support: ``net.norm=support``. (2) The paper clips the meta-gradient at 0.25: ``optim.clip_norm=0.25``. (3) Before the
    first step i = 0 and f = 1.

    Args:
        net, problem: the backbone and the data's shape.
        hidden: units of the lower cell.
        preprocess: p, by which losses and gradients come as logarithm of their size, and sign.
        batch: examples of the support in a minibatch; 0 for all of them.
        inner_steps, test_steps: minibatches in meta-training, and in validation and test.
    """

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        hidden: Annotated[int, Ge(1)],
        preprocess: Annotated[float, Gt(0), Le(80)],
        batch: Annotated[int, Ge(0)],
        inner_steps: Annotated[int, Ge(0)],
        test_steps: Annotated[int, Ge(0)],
    ) -> None:
        super().__init__(net, problem)
        self.preprocess, self.batch, self.inner_steps, self.test_steps = preprocess, batch, inner_steps, test_steps
        self.ordered = batch > 0
        self.cell, self.gates = LSTMCell(4 + hidden, hidden), Gates(hidden)

    def begin(self, context: Context) -> Learning:
        fast = self.learner()
        weights = flat(fast)
        none = weights.new_zeros(len(weights), self.cell.hidden)
        return Learning(fast, context.support.x, none, none, self.gates.begin(weights))

    def step(self, state: Learning, context: Context, k: int | Tensor) -> Learning:
        loss, gradient = self.slope(state.fast, self.examples(context, k))
        seen = [inner.log_and_sign(values, self.preprocess) for values in (gradient, loss.expand_as(gradient))]
        output, cell = self.cell(torch.cat([*seen, state.output], -1), state.cell)
        weights, gates = self.gates(output, flat(state.fast), gradient, state.gates)
        return Learning(shaped(weights, state.fast), state.support_x, output, cell, gates)

    def examples(self, context: Context, k: int | Tensor) -> Batch:
        """Minibatch k of the support."""
        return context.examples(inner.places(context.key, context.support.y.shape[0], self.batch, k))

    def slope(self, fast: Fast, examples: Batch) -> tuple[Tensor, Tensor]:
        """The loss [] of examples and its gradient [coordinates], as constants."""
        fast = inner.constant(fast)
        grads = inner.gradient(self.support_loss, fast, {}, *examples, mode="none")
        return self.support_loss(fast, {}, *examples).detach(), flat(tree_map(lambda g: g.detach(), grads))
