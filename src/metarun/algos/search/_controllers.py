"""Distributions over candidates that a search learns: decisions apart from each other, or one after the other by an LSTM.
Zoph & Le 2017, arXiv:1611.01578, has the LSTM."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.nets.lstm import LSTMCell
from metarun.problem import Space


def chosen(scores: Tensor, noise: Tensor, options: int) -> tuple[Tensor, Tensor]:
    """The option [] int64 that scores [most] and Gumbel noise [most] draw from softmax over the first ``options``, and its log p."""
    logs = F.log_softmax(scores[:options], 0)
    option = (logs.detach() + noise[:options]).argmax(0, keepdim=True)
    return option.squeeze(0), logs.gather(0, option).squeeze(0)


class Logits(nn.Module):
    """A softmax for every decision, uniform at the start."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.options = space.options
        self.logits = nn.Parameter(torch.zeros(len(space.options) * max(space.options)))

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """A word [decisions] int64 and its log probability [], for Gumbel noise [decisions, most options]."""
        drawn = [chosen(*decision) for decision in zip(self.logits.view_as(noise), noise, self.options)]
        words, logs = zip(*drawn)
        return torch.stack(words), torch.stack(logs).sum()


class Recurrent(nn.Module):
    """An LSTM that reads the decision before and scores the options of the next.

    Args:
        space: of the words.
        hidden: units of the cell, and length of what stands for an option.
    """

    def __init__(self, space: Space, hidden: int) -> None:
        super().__init__()
        self.options, most = space.options, max(space.options)
        self.cell = LSTMCell(2 * hidden, hidden)
        self.embed = nn.Linear(most * len(space.options), hidden)
        self.heads = nn.ModuleList(nn.Linear(hidden, most) for _ in space.options)

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """As of ``Logits``."""
        decisions, most = noise.shape
        output = memory = noise.new_zeros(self.embed.out_features)
        seen = noise.new_zeros(decisions * most)
        words, logs = [], []
        for i, head in enumerate(self.heads):
            output, memory = self.cell(torch.cat([self.embed(seen), output]), memory)
            option, log = chosen(head(output), noise[i], self.options[i])
            seen = (torch.arange(decisions * most, device=noise.device) == i * most + option).to(noise.dtype)
            words.append(option)
            logs.append(log)
        return torch.stack(words), torch.stack(logs).sum()
