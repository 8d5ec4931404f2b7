"""Plain supervised training of a net from random weights, by a rule of old: what every learned way to learn is measured against.
Robbins & Monro 1951; the rules: Polyak 1964, Sutskever et al. 2013, Tieleman & Hinton 2012, Kingma & Ba 2015 (arXiv:1412.6980)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Gt
from torch import Tensor

from metarun.algos.optimizers._by_rule import ByRule, Memory
from metarun.algos.optimizers._rules import RULES
from metarun.algos.optimizers._scratch import Fast
from metarun.nets.base import Net
from metarun.problem import Problem


class Supervised(ByRule):
    """Supervised training.

        θ_0 random,   θ_{k+1} = rule(θ_k, ∇L_{minibatch k}(θ_k))

    There is nothing to meta-learn: a run goes straight to its test, whose curve is that of training. Tune ``rate`` on development
    tasks (``metarun -m algo=supervised algo.rate=0.001,0.01,0.1``).

    Args:
        net, problem, settings: as of ``FromScratch``.
        rule: ``sgd``, ``momentum`` (.9), ``nesterov`` (.9), ``rmsprop`` (.99) or ``adam`` (.9, .999).
        rate: learning rate.
    """

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        rule: Literal["sgd", "momentum", "nesterov", "rmsprop", "adam"],
        rate: Annotated[float, Gt(0)],
        **settings: Any,
    ) -> None:
        super().__init__(net, problem, **settings)
        self.rule, self.rate = rule, rate

    def remember(self, fast: Fast) -> Memory:
        return RULES[self.rule].begin(fast)

    def advance(self, fast: Fast, grads: Fast, memory: Memory, k: int | Tensor) -> tuple[Fast, Memory]:
        return RULES[self.rule].step(fast, grads, memory, k, self.rate)
