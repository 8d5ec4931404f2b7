"""The candidates of a search."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.inner import uniform


@dataclass(frozen=True)
class Space:
    """What a search chooses from: every candidate is a word of decisions.

    Attributes:
        options: how many each decision has, 2 or more.
    """

    options: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many candidates there are."""
        return math.prod(self.options)

    def index(self, words: Tensor) -> Tensor:
        """The places [...] int64 of candidates [..., decisions] in a table of all, whose last decision turns fastest."""
        place = torch.zeros_like(words[..., 0])
        for decision, options in enumerate(self.options):
            place = options * place + words[..., decision]
        return place

    def draw(self, key: Tensor) -> Tensor:
        """A random candidate [decisions] int64, determined by the key [] int64."""
        options = torch.tensor(self.options, device=key.device)
        return (uniform(key, (len(self.options),)) * options).long()

    def value(self, table: Tensor, words: Tensor) -> Tensor:
        """Of a table [candidates] the rows [...] of candidates [..., decisions]."""
        index = self.index(words)
        return table.gather(0, index.flatten()).view(index.shape)
