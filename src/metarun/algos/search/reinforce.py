"""Architecture search by reinforcement learning: a controller draws candidates, and what proved good becomes more likely.
Zoph & Le 2017, arXiv:1611.01578; REINFORCE: Williams 1992."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor
from torch.func import functional_call

from metarun import inner
from metarun.algos.search._controllers import Logits, Recurrent
from metarun.algos.search._searcher import Searcher
from metarun.nets.base import Net, draw
from metarun.problem import Problem
from metarun.runtime.private import tree_map


class Policy(NamedTuple):
    """A controller in training."""

    fast: dict[str, Tensor]  # its weights by parameter name
    moments: inner.Moments  # of Adam
    total: Tensor  # [] Σ_j m^(k−1−j) r_j of the accuracies r_j so far
    weight: Tensor  # [] Σ_j m^(k−1−j), so that total / weight is the baseline


class Reinforce(Searcher):
    """REINFORCE.

        word_k ~ π_φ,   φ ← Adam(φ, −(r_k − b_k) ∇ log π_φ(word_k)),   b_k: moving average of r_0 … r_{k−1}; b_0 = r_0

    Deviations: (1) The reward is the validation accuracy, the paper's its cube. (2) One candidate an update. (3) The default controller is
    a softmax for every decision, as in the benchmark of NAS-Bench-201; ``lstm`` is the paper's, with one layer. (4) Defaults: a rate of 0.1
    and a baseline of momentum 0.9, for hundreds of candidates; the paper has 0.0006 for 12,800.

    Args:
        net, problem, settings: as of ``Searcher``.
        controller: ``logits``, a softmax for every decision; or ``lstm``, whose decisions depend on those before.
        hidden: units of the LSTM.
        rate: Adam's.
        momentum: m of the moving average.
    """

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        controller: Literal["logits", "lstm"],
        hidden: Annotated[int, Ge(1)],
        rate: Annotated[float, Gt(0)],
        momentum: Annotated[float, Ge(0), Lt(1)],
        **settings: Any,
    ) -> None:
        super().__init__(net, problem, **settings)
        self.controller = Logits(self.space) if controller == "logits" else Recurrent(self.space, hidden)
        for weight in self.controller.parameters():  # every search begins with weights of its own
            weight.requires_grad_(False)
        self.rate, self.momentum = rate, momentum

    def remember(self, key: Tensor, value: Tensor) -> Policy:
        fast = {name: weight.clone() for name, weight in draw(self.controller, key).items()}
        return Policy(fast, inner.no_moments(fast), torch.zeros_like(value), torch.zeros_like(value))

    def sample(self, fast: dict[str, Tensor], key: Tensor) -> tuple[Tensor, Tensor]:
        """The word [decisions] int64 that the key draws, and its log probability []."""
        uniform = inner.uniform(key, (len(self.space.options), max(self.space.options)))
        noise = -torch.log(-torch.log(uniform)).to(next(iter(fast.values())).dtype)
        word, log = functional_call(self.controller, fast, (noise,))
        return word, log

    def propose(self, memory: Policy, key: Tensor, k: int | Tensor) -> Tensor:
        return self.sample(memory.fast, key)[0]

    def learn(self, memory: Policy, word: Tensor, value: Tensor, key: Tensor, k: int | Tensor) -> Policy:
        slope = inner.gradient(lambda fast: self.sample(fast, key)[1], memory.fast, mode="none")
        first = memory.weight == 0
        advantage = value - torch.where(first, value, memory.total / torch.where(first, 1.0, memory.weight))
        downwards = tree_map(lambda g: -advantage * g.detach(), slope)
        fast, moments = inner.adam(memory.fast, downwards, memory.moments, k, self.rate, beta1=0.9)
        return Policy(fast, moments, self.momentum * memory.total + value, self.momentum * memory.weight + 1)
