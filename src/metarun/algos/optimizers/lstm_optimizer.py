"""Gradient descent as an LSTM: a small recurrent net, the same for every coordinate, turns gradients into updates.
Andrychowicz et al. 2016, "Learning to learn by gradient descent by gradient descent", arXiv:1606.04474."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from metarun import inner
from metarun.algorithm import Metrics
from metarun.algos.optimizers._scratch import Fast, FromScratch, flat, shaped
from metarun.nets.base import Net
from metarun.nets.lstm import LSTMCell
from metarun.problem import Problem
from metarun.task import Context, Task


class Training(NamedTuple):
    """A net in training."""

    fast: Fast  # weights by parameter name
    support_x: Tensor  # [n, *input_shape] of the support, for nets that normalise queries by the support
    outputs: Tensor  # h [layers, coordinates, hidden]
    cells: Tensor  # c [layers, coordinates, hidden]


class LSTMOptimizer(FromScratch):
    """LSTM optimizer.

        (u_k, h_{k+1}) = LSTM_ω(pre(∇f(θ_k)), h_k),   θ_{k+1} = θ_k + scale · u_k            (section 2, for every coordinate alike)
        min_ω  mean over tasks of Σ_k f(θ_k)                                                (equation 3, all weights 1)

    Gradients are constants (the dashed edges of figure 2). The sum is cut after every ``inner_steps`` steps, and goes on in the next
    meta-update from where it was: ``horizon`` steps in all. Two cells, the second on top of the first, are the paper's net.

    Deviations: (1) The loss that is summed is that of the query, which for ``data=quadratics`` is the function itself. (2) The last layer
    begins at a tenth of torch's size, so that training begins with small steps.

    Args:
        net, problem, settings: as of ``FromScratch``.
        hidden: units of a cell.
        layers: cells on top of each other.
        scale: of the updates: 1 for quadratics, 0.01 for nets.
        preprocess: p of section 3's footnote: gradients come as the logarithm of their size over p, and their sign; 0: as they are.
        inner_steps: steps of one meta-update.
        horizon: steps of a training task, a multiple of ``inner_steps``.
    """

    every_state = True

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        hidden: Annotated[int, Ge(1)],
        layers: Annotated[int, Ge(1)],
        scale: Annotated[float, Gt(0)],
        preprocess: Annotated[float, Ge(0)],
        inner_steps: Annotated[int, Ge(1)],
        horizon: Annotated[int, Ge(1)],
        **settings: Any,
    ) -> None:
        if horizon % inner_steps:
            raise ValueError(f"algo.horizon={horizon} is no multiple of algo.inner_steps={inner_steps}")
        super().__init__(net, problem, **settings)
        self.hidden, self.scale, self.preprocess, self.inner_steps, self.unrolls = (
            hidden,
            scale,
            preprocess,
            inner_steps,
            horizon // inner_steps,
        )
        sizes = [2 if preprocess else 1, *[hidden] * (layers - 1)]
        self.cells = nn.ModuleList(LSTMCell(size + hidden, hidden) for size in sizes)
        self.update = nn.Linear(hidden, 1)
        with torch.no_grad():
            for weight in self.update.parameters():
                weight.mul_(0.1)

    def begin(self, context: Context) -> Training:
        fast = self.weights(context.key)
        weights = flat(fast)
        none = weights.new_zeros(len(self.cells), len(weights), self.hidden)
        return Training(fast, self.norms_by(context), none, none)

    def step(self, state: Training, context: Context, k: int) -> Training:
        x = self.inputs(flat(self.slope(state.fast, context, k)))
        outputs, cells = [], []
        for cell, output, memory in zip(self.cells, state.outputs, state.cells):
            x, memory = cell(torch.cat([x, output], -1), memory)
            outputs.append(x)
            cells.append(memory)
        weights = flat(state.fast) + self.scale * self.update(x).squeeze(-1)
        return state._replace(fast=shaped(weights, state.fast), outputs=torch.stack(outputs), cells=torch.stack(cells))

    def inputs(self, gradient: Tensor) -> Tensor:
        """A gradient [coordinates] as the first cell sees it, [coordinates, 1 or 2]."""
        return inner.log_and_sign(gradient, self.preprocess) if self.preprocess else gradient[:, None]

    def objective(self, states: Sequence[Training], task: Task, progress: float) -> tuple[Tensor, Metrics]:
        answers = [self.predict(state, task.query.x) for state in states[1:]]
        losses = torch.stack([self.problem.loss(answer, task.query.y) for answer in answers])
        return losses.sum(), {"loss": losses[-1], self.problem.metric: self.problem.score(answers[-1], task.query.y)}
