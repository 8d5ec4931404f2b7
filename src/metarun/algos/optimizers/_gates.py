"""A step of gradient descent as the cell of an LSTM, whose state is the weights: the input gate is the rate, the forget gate the decay.
Ravi & Larochelle 2017, "Optimization as a model for few-shot learning", section 3.1."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Gates(nn.Module):
    """The cell, for every coordinate alike:

        i_k = σ(W_I [x_k, θ_{k−1}, i_{k−1}] + b_I),   f_k = σ(W_F [x_k, θ_{k−1}, f_{k−1}] + b_F),   θ_k = f_k ∘ θ_{k−1} − i_k ∘ ∇_k

    Begins near gradient descent of a small rate: W uniform within ±0.01, b_F in 4..5 and b_I in −5..−4 (the authors' code).

    Args:
        inputs: length of x.
    """

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.rate, self.decay = nn.Linear(inputs + 2, 1), nn.Linear(inputs + 2, 1)
        for gate, low in ((self.rate, -5.0), (self.decay, 4.0)):
            nn.init.uniform_(gate.weight, -0.01, 0.01)
            nn.init.uniform_(gate.bias, low, low + 1)

    def begin(self, weights: Tensor) -> Tensor:
        """The gates [2, coordinates] before the first step: those of a step that left the weights [coordinates] alone."""
        return torch.stack([torch.zeros_like(weights), torch.ones_like(weights)])

    def forward(self, x: Tensor, weights: Tensor, gradient: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
        """The new weights [coordinates] and gates [2, coordinates], from x [coordinates, inputs], weights, gradient and gates."""
        rate, decay = (
            torch.sigmoid(gate(torch.cat([x, weights[:, None], before[:, None]], -1))).squeeze(-1)
            for gate, before in zip((self.rate, self.decay), gates)
        )
        return decay * weights - rate * gradient, torch.stack([rate, decay])
