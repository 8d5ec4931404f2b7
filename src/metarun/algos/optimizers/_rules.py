"""The rules by which nets are trained everywhere, each a memory to begin with and a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun import inner
from metarun.runtime.private import tree_map

Fast = dict[str, Tensor]
Memory = Any


class Rule(NamedTuple):
    """An optimizer of weights by parameter name."""

    begin: Callable[[Fast], Memory]
    step: Callable[[Fast, Fast, Memory, Any, float], tuple[Fast, Memory]]  # weights, gradients, memory, k and rate to weights and memory


def zeros(fast: Fast) -> Fast:
    return tree_map(torch.zeros_like, fast)


def sgd(fast: Fast, grads: Fast, memory: Memory, k: Any, rate: float) -> tuple[Fast, Memory]:
    """θ − rate · g."""
    return inner.sgd(fast, grads, rate), memory


def momentum(fast: Fast, grads: Fast, memory: Fast, k: Any, rate: float) -> tuple[Fast, Fast]:
    """v ← .9 v + g, θ − rate · v (Polyak 1964)."""
    memory = tree_map(lambda v, g: 0.9 * v + g, memory, grads)
    return inner.sgd(fast, memory, rate), memory


def nesterov(fast: Fast, grads: Fast, memory: Fast, k: Any, rate: float) -> tuple[Fast, Fast]:
    """v ← .9 v + g, θ − rate · (g + .9 v) (Sutskever et al. 2013, as torch has it)."""
    memory = tree_map(lambda v, g: 0.9 * v + g, memory, grads)
    return inner.sgd(fast, tree_map(lambda v, g: g + 0.9 * v, memory, grads), rate), memory


def rmsprop(fast: Fast, grads: Fast, memory: Fast, k: Any, rate: float) -> tuple[Fast, Fast]:
    """s ← .99 s + .01 g², θ − rate · g / (√s + 10⁻⁸) (Tieleman & Hinton 2012, as torch has it)."""
    memory = tree_map(lambda s, g: 0.99 * s + 0.01 * g * g, memory, grads)
    return tree_map(lambda w, g, s: w - rate * g / (s.sqrt() + 1e-8), fast, grads, memory), memory


def adam(fast: Fast, grads: Fast, memory: inner.Moments, k: Any, rate: float) -> tuple[Fast, inner.Moments]:
    """Kingma & Ba 2015, arXiv:1412.6980, algorithm 1, with its defaults."""
    return inner.adam(fast, grads, memory, k, rate, beta1=0.9)


RULES = {
    "sgd": Rule(lambda fast: (), sgd),
    "momentum": Rule(zeros, momentum),
    "nesterov": Rule(zeros, nesterov),
    "rmsprop": Rule(zeros, rmsprop),
    "adam": Rule(inner.no_moments, adam),
}
