"""What recurrent readers of the support share: the order, labels one step late, answers on the way, weights to begin with."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun import inner
from metarun.algorithm import Algorithm, Metrics
from metarun.nets.base import Net
from metarun.nets.lstm import LSTMCell
from metarun.problem import Problem
from metarun.runtime.private import tree_map
from metarun.task import Context, Task


class Reading(NamedTuple):
    """A support that is read up to somewhere."""

    features: Tensor  # [n, features], f(x_t) in the order of reading
    answers: Tensor  # [n, outputs], y_t likewise: one-hot labels, or targets
    targets: Tensor  # [n] int64 or [n, outputs], as the loss wants them
    last: Tensor  # [outputs], the answer to the example read last, behind its features with ``pairs``; zeros before the first
    memory: Any  # m, what the recurrent net goes on with
    losses: Tensor  # [], summed over the examples read, each answered before its label was seen
    support_x: Tensor  # [n, *input_shape], for nets that normalise queries by the support


class RecurrentReader(Algorithm):
    """A recurrent net R that reads the support example by example and is then asked.

        (o_t, m_t) = R([f(x_t), y_{t−1}], m_{t−1})             (a label comes one step later than its example; arXiv:1605.06065, section 2)
        min  L(o_q, y_q) + mean over t of L(o_t, y_t)          (queries, and the sequence's own answers, as in the paper)

    Inner step k reads example k of a shuffle of the support that the episode's key decides; every query is then asked for itself, after
    the same sequence. A task takes as many steps as its support has examples, and the adaptation curve is the accuracy after so many.

    Args:
        net, problem: the backbone and the data's shape.
        pairs: f(x_{t−1}) comes once more beside y_{t−1}, so that which label belongs to which example need not be remembered to be
            learned; false: the paper's input.
    """

    fixed_way = True
    label_dependent = True
    ordered = True
    encodes = True
    reads = "one_by_one"

    def __init__(self, net: Net, problem: Problem, *, pairs: bool) -> None:
        super().__init__(net, problem)
        self.pairs = pairs
        self.before = net.features * pairs + problem.outputs  # numbers beside f(x_t) in the input
        self.inputs = net.features + self.before

    @abstractmethod
    def blank(self, features: Tensor) -> Any:
        """m before the first example: tensors of the type and on the device of ``features``."""

    @abstractmethod
    def read(self, memory: Any, x: Tensor) -> tuple[Tensor, Any]:
        """R for inputs x [n, inputs], each as the next after ``memory``: answers [n, outputs], and the n memories that follow, stacked."""

    def steps(self, context: Context, train: bool) -> int:
        return context.support.y.shape[0]

    def begin(self, context: Context) -> Reading:
        order = inner.order(context.key, context.support.y.shape[0])
        x, y = context.support.x, context.support.y[order]
        features = inner.upcast(self.net(x, x))[order]
        answers = inner.one_hot(y, self.problem.outputs).to(features.dtype) if self.problem.kind.labelled else y
        return Reading(features, answers, y, features.new_zeros(self.before), self.blank(features), features.new_zeros(()), x)

    def step(self, state: Reading, context: Context, k: int | Tensor) -> Reading:
        n = state.targets.shape[0]
        place = torch.as_tensor(k, device=state.features.device)
        x, y, target = (rows.index_select(0, place.clamp(max=n - 1).reshape(1)) for rows in (state.features, state.answers, state.targets))
        answer, memories = self.read(state.memory, self._inputs(state, x))
        new = Reading(
            *state[:3],
            last=torch.cat([x, y], 1)[0] if self.pairs else y[0],
            memory=tree_map(lambda rows: rows[0], memories),
            losses=state.losses + self.problem.loss(answer, target),
            support_x=state.support_x,
        )
        # Steps beyond the last example change nothing.
        return tree_map(lambda a, b: a if a is b else torch.where(place < n, a, b), new, state)

    def _inputs(self, state: Reading, features: Tensor) -> Tensor:
        """What R sees of n examples of these features [n, features], each as the next one: [n, inputs]."""
        return torch.cat([features, state.last.expand(features.shape[0], -1)], 1)

    def predict(self, state: Reading, x: Tensor) -> Tensor:
        return self.read(state.memory, self._inputs(state, inner.upcast(self.net(x, state.support_x))))[0]

    def objective(self, states: Sequence[Reading], task: Task, progress: float) -> tuple[Tensor, Metrics]:
        loss, metrics = super().objective(states, task, progress)
        return loss + states[-1].losses / len(task.context.support.y), metrics

    @torch.no_grad()
    def heed_labels(self, cells: Sequence[LSTMCell]) -> None:
        """Begin with large weights for labels, small ones for what recurs, and open forget gates.

        That what is remembered depends on labels is then there before it is learned. The first of the cells, each of which is read by the
        next one, sees the inputs, with what recurs behind them.
        """
        read = cells[0].gates.weight.normal_()
        labels = slice(self.inputs - self.problem.outputs, self.inputs)
        read[:, : labels.start] /= math.sqrt(self.net.features)
        read[:, labels] *= 2 if self.problem.kind.labelled else 0.5
        for cell, inputs in zip(cells, (self.inputs, *(cell.hidden for cell in cells))):
            cell.gates.weight[:, inputs:].normal_(0, 0.1 / math.sqrt(cell.hidden))
            cell.gates.bias[cell.hidden : 2 * cell.hidden].fill_(2)  # of the forget gates
