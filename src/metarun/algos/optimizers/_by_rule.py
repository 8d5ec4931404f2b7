"""Learners from scratch whose weights move by a rule of the gradient: of old, learned, or found by a search."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from metarun.abilities import UpdateRule
from metarun.algos.optimizers._scratch import Fast, FromScratch
from metarun.task import Context

Memory = Any  # what a rule keeps of the past, nested tensors


class Training(NamedTuple):
    """A net in training."""

    fast: Fast  # weights by parameter name
    support_x: Tensor  # [n, *input_shape] of the support, for nets that normalise queries by the support
    memory: Memory  # of the rule


class ByRule(FromScratch, UpdateRule):
    """θ_0 random,   (θ_{k+1}, memory) = rule(θ_k, ∇L_{minibatch k}(θ_k), memory, k), the gradients being constants.

    ``remember`` and ``advance`` are the rule. They see nothing but weights and gradients, of whatever net.
    """

    @classmethod
    def lasting(cls, weights: Fast) -> Fast:
        """All but the net's and the head's weights, which only tell shapes."""
        return {name: w for name, w in weights.items() if not name.startswith(cls.parts)}

    def begin(self, context: Context) -> Training:
        fast = self.weights(context.key)
        return Training(fast, self.norms_by(context), self.remember(fast))

    def step(self, state: Training, context: Context, k: int | Tensor) -> Training:
        fast, memory = self.advance(state.fast, self.slope(state.fast, context, k), state.memory, k)
        return state._replace(fast=fast, memory=memory)
