"""An LSTM that reads the support example by example and is then asked: learning to learn as nothing but a recurrent net.
Hochreiter, Younger, Conwell 2001 (ICANN); as the baseline of Santoro et al. 2016, arXiv:1605.06065."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge
from torch import Tensor, nn

from metarun import inner
from metarun.algorithm import Algorithm, Metrics
from metarun.nets.base import Net
from metarun.nets.lstm import LSTMCell
from metarun.problem import Problem
from metarun.task import Context, Task


class Reading(NamedTuple):
    """A support that is read up to somewhere."""

    features: Tensor  # [n, features], f(x_t) in the order of reading
    answers: Tensor  # [n, outputs], y_t likewise: one-hot labels, or targets
    targets: Tensor  # [n] int64 or [n, outputs], as the loss wants them
    last: Tensor  # [outputs], the answer to the example read last, behind its features with ``pairs``; zeros before the first
    outputs: Tensor  # h [layers, hidden]
    cells: Tensor  # c [layers, hidden]
    losses: Tensor  # [], summed over the examples read, each answered before its label was seen
    support_x: Tensor  # [n, *input_shape], for nets that normalise queries by the support


class LSTM(Algorithm):
    """LSTM reader.

        (o_t, h_t) = LSTM([f(x_t), y_{t−1}], h_{t−1})          (a label comes one step later than its example, section 2)
        min  L(o_q, y_q) + mean over t of L(o_t, y_t)          (queries, and the sequence's own answers, as in the paper)

    Inner step k reads example k of a shuffle of the support that the episode's key decides; every query is then asked for itself, after
    the same sequence. A task takes as many steps as its support has examples, and the adaptation curve is the accuracy after so many.

    Deviations: (1) The paper's sequences have no queries apart: its score at the k-th instance of a class is that of the running answers.
    (2) A net f makes features of images; the paper reads pixels. (3) With ``pairs`` f(x_{t−1}) comes once more beside y_{t−1}, so that
    which label belongs to which example need not be remembered to be learned. (4) Labels have large initial weights and recurrence has
    small ones, and the forget gates begin open: that the memory depends on labels is then there before it is learned.

    Args:
        net, problem: the backbone and the data's shape.
        hidden: units of a cell.
        layers: cells on top of each other.
        pairs: see deviation 3; false: the paper's input.
    """

    fixed_way = True
    label_dependent = True
    ordered = True
    encodes = True

    def __init__(self, net: Net, problem: Problem, *, hidden: Annotated[int, Ge(1)], layers: Annotated[int, Ge(1)], pairs: bool) -> None:
        super().__init__(net, problem)
        self.hidden, self.pairs = hidden, pairs
        features, answers = net.features * (1 + pairs), problem.outputs
        self.before = features + answers - net.features  # numbers beside f(x_t) in the input
        cells = [LSTMCell(size + hidden, hidden) for size in (features + answers, *[hidden] * (layers - 1))]
        self.cells, self.head = nn.ModuleList(cells), nn.Linear(hidden, answers)
        with torch.no_grad():
            read = cells[0].gates.weight.normal_()
            read[:, :features] /= math.sqrt(net.features)
            read[:, features : features + answers] *= 2 if problem.kind.labelled else 0.5
            for cell in cells:
                cell.gates.weight[:, -hidden:].normal_(0, 0.1 / math.sqrt(hidden))
                cell.gates.bias[hidden : 2 * hidden].fill_(2)  # of the forget gates

    def steps(self, context: Context, train: bool) -> int:
        return context.support.y.shape[0]

    def begin(self, context: Context) -> Reading:
        order = inner.uniform(context.key, context.support.y.shape[:1]).argsort()
        x, y = context.support.x, context.support.y[order]
        features = inner.upcast(self.net(x, x))[order]
        answers = inner.one_hot(y, self.problem.outputs).to(features.dtype) if self.problem.kind.labelled else y
        none = features.new_zeros(len(self.cells), self.hidden)
        return Reading(features, answers, y, features.new_zeros(self.before), none, none, none.sum(), x)

    def step(self, state: Reading, context: Context, k: int) -> Reading:
        if k >= state.targets.shape[0]:  # all has been read
            return state
        answer, outputs, cells = self.read(state, state.features[k : k + 1])
        loss = self.problem.loss(answer, state.targets[k : k + 1])
        last = torch.cat([state.features[k], state.answers[k]]) if self.pairs else state.answers[k]
        return state._replace(last=last, outputs=outputs.squeeze(1), cells=cells.squeeze(1), losses=state.losses + loss)

    def read(self, state: Reading, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Answers [n, outputs] to n examples of these features [n, features], each as the next one; h and c [layers, n, hidden]."""
        n = features.shape[0]
        x, outputs, cells = torch.cat([features, state.last.expand(n, -1)], -1), [], []
        for cell, output, memory in zip(self.cells, state.outputs, state.cells):
            x, memory = cell(torch.cat([x, output.expand(n, -1)], -1), memory.expand(n, -1))
            outputs.append(x)
            cells.append(memory)
        return self.head(x), torch.stack(outputs), torch.stack(cells)

    def predict(self, state: Reading, x: Tensor) -> Tensor:
        return self.read(state, inner.upcast(self.net(x, state.support_x)))[0]

    def objective(self, states: Sequence[Reading], task: Task, progress: float) -> tuple[Tensor, Metrics]:
        loss, metrics = super().objective(states, task, progress)
        return loss + states[-1].losses / len(task.context.support.y), metrics
