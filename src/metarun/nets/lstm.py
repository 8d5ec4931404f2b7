"""One step of an LSTM in elementary operations: torch's fused cells have no rule for vmap.
Hochreiter & Schmidhuber 1997, with a forget gate (Gers, Schmidhuber, Cummins 2000)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Memory(NamedTuple):
    """What an LSTM has at hand after some steps."""

    output: Tensor  # [..., hidden]
    cell: Tensor  # [..., hidden]


class LSTMCell(nn.Module):
    """One step; what recurs besides the cell is up to the caller, who appends it to the input.

    Args:
        inputs: length of the input, recurrent part included.
        hidden: length of the output and of the cell.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.gates = nn.Linear(inputs, 4 * hidden)

    def forward(self, x: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Output and new cell [..., hidden], from x [..., inputs] and the cell [..., hidden]."""
        read, forget, write, new = self.gates(x).chunk(4, dim=-1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(read) * torch.tanh(new)
        return torch.sigmoid(write) * torch.tanh(cell), cell
