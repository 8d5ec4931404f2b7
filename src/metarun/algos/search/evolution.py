"""Regularised, or ageing, evolution: the best of a few has a child, and the oldest dies, however good it is.
Real, Aggarwal, Huang, Le 2019, arXiv:1802.01548."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import torch
from annotated_types import Ge
from torch import Tensor

from metarun import inner
from metarun.algos.search._searcher import Searcher
from metarun.nets.base import Net
from metarun.problem import Problem


class Population(NamedTuple):
    """Candidates; number k of all that were tried is in place k mod P, so that a new one takes the place of the oldest."""

    words: Tensor  # [population, decisions] int64
    values: Tensor  # [population] their validation accuracies


class Evolution(Searcher):
    """Ageing evolution (algorithm 1).

        the first P candidates are random;
        then: the best of S members, drawn without replacement, is copied, one of its decisions changed at random to another option

    Deviations: (1) The sample is drawn without replacement, on which the paper is silent, so that S = P is a greedy search.
    (2) Defaults: P = 10 and S = 3, for hundreds of candidates; the paper has 100 and 25 for 20,000.

    Args:
        net, problem, settings: as of ``Searcher``.
        population: P.
        sample: S, 1 to P; 1 mutates whomever.
    """

    def __init__(
        self, net: Net, problem: Problem, *, population: Annotated[int, Ge(1)], sample: Annotated[int, Ge(1)], **settings: Any
    ) -> None:
        if sample > population:
            raise ValueError(f"algo.sample={sample} cannot be drawn from algo.population={population}; choose sample <= population")
        super().__init__(net, problem, **settings)
        self.population, self.sample = population, sample
        self.register_buffer("options", torch.tensor(self.space.options), persistent=False)
        self.options: Tensor

    def remember(self, key: Tensor, value: Tensor) -> Population:
        words = self.options.new_zeros(self.population, len(self.options))
        return Population(words, value.expand(self.population).clone())

    def propose(self, memory: Population, key: Tensor, k: int | Tensor) -> Tensor:
        grown = torch.as_tensor(k, device=key.device) >= self.population
        return torch.where(grown, self.child(memory, inner.fold_in(key, 0)), self.space.draw(key))

    def child(self, members: Population, key: Tensor) -> Tensor:
        """A mutation [decisions] of the best of a sample."""
        sample = inner.uniform(key, (self.population,)).argsort()[: self.sample]
        best = sample[members.values[sample].argmax()[None]]
        word = members.words[best].squeeze(0)
        where, what = inner.uniform(key, (2,), 1)
        at = torch.arange(len(word), device=key.device) == (where * len(word)).long()
        ahead = 1 + (what * (self.options - 1)).long()  # 1 to options - 1: never back to where it was
        return torch.where(at, (word + ahead) % self.options, word)

    def learn(self, memory: Population, word: Tensor, value: Tensor, key: Tensor, k: int | Tensor) -> Population:
        oldest = torch.arange(self.population, device=key.device) == k % self.population
        return Population(torch.where(oldest[:, None], word, memory.words), torch.where(oldest, value, memory.values))
