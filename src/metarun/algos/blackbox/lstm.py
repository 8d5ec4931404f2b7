"""An LSTM that reads the support example by example and is then asked: learning to learn as nothing but a recurrent net.
Hochreiter, Younger, Conwell 2001 (ICANN); as the baseline of Santoro et al. 2016, arXiv:1605.06065."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge
from torch import Tensor, nn

from metarun.algos.blackbox._reader import RecurrentReader
from metarun.nets.base import Net
from metarun.nets.lstm import LSTMCell
from metarun.problem import Problem


class Memory(NamedTuple):
    """What the LSTM goes on with."""

    outputs: Tensor  # h [layers, hidden]
    cells: Tensor  # c [layers, hidden]


class LSTM(RecurrentReader):
    """LSTM reader.

        (o_t, h_t) = LSTM([f(x_t), y_{t−1}], h_{t−1})

    Deviations: (1) The paper's sequences have no queries apart: its score at the k-th instance of a class is that of the running answers
    (``protocol=presentations``). (2) A net f makes features of images; the paper reads pixels. (3) With ``pairs`` f(x_{t−1}) comes once
    more beside y_{t−1}. (4) Labels have large initial weights and recurrence has small ones, and the forget gates begin open.

    Args:
        net, problem, pairs: as of ``RecurrentReader``.
        hidden: units of a cell.
        layers: cells on top of each other.
    """

    def __init__(self, net: Net, problem: Problem, *, hidden: Annotated[int, Ge(1)], layers: Annotated[int, Ge(1)], pairs: bool) -> None:
        super().__init__(net, problem, pairs=pairs)
        self.hidden = hidden
        cells = [LSTMCell(size + hidden, hidden) for size in (self.inputs, *[hidden] * (layers - 1))]
        self.cells, self.head = nn.ModuleList(cells), nn.Linear(hidden, problem.outputs)
        self.heed_labels(cells)

    def blank(self, features: Tensor) -> Memory:
        none = features.new_zeros(len(self.cells), self.hidden)
        return Memory(none, none)

    def read(self, memory: Memory, x: Tensor) -> tuple[Tensor, Memory]:
        n, outputs, cells = x.shape[0], [], []
        for cell, output, held in zip(self.cells, *memory):
            x, held = cell(torch.cat([x, output.expand(n, -1)], -1), held.expand(n, -1))
            outputs.append(x)
            cells.append(held)
        return self.head(x), Memory(torch.stack(outputs, 1), torch.stack(cells, 1))
