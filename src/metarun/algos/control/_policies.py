"""How the answer of a net is a policy: numbers drawn around it, or one of several choices drawn by its logits."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun import inner
from metarun.nets.base import Net
from metarun.problem import Problem


class Gaussian(NamedTuple):
    """Actions are numbers: N(mean, diag exp(log_std)²)."""

    mean: Tensor  # [..., size]
    log_std: Tensor  # [size]

    def draw(self, noise: Tensor) -> Tensor:
        """An action [..., size] for standard normal ``noise`` [..., size]."""
        return self.mean + self.log_std.exp() * noise

    def log_prob(self, action: Tensor) -> Tensor:
        """Its log-density [...]."""
        score = (action - self.mean) / self.log_std.exp()
        return -(0.5 * score.square() + self.log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    @property
    def entropy(self) -> Tensor:
        """[...], in nats."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum().expand(self.mean.shape[:-1])


class Categorical(NamedTuple):
    """Actions are choices, int64."""

    logits: Tensor  # [..., choices]

    def draw(self, noise: Tensor) -> Tensor:
        """An action [...] for standard Gumbel ``noise`` [..., choices] (Maddison, Tarlow, Minka 2014, arXiv:1411.0030)."""
        return (self.logits + noise).argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Its log-probability [...]."""
        return F.log_softmax(self.logits, -1).gather(-1, action[..., None]).squeeze(-1)

    @property
    def entropy(self) -> Tensor:
        """[...], in nats."""
        logs = F.log_softmax(self.logits, -1)
        return -(logs.exp() * logs).sum(-1)


Policy = Gaussian | Categorical


def check(net: Net) -> None:
    """Can a net be a policy's?

    Raises:
        ValueError: it normalises over examples.
    """
    if net.norm in ("batch", "support", "running"):
        raise ValueError(f"net.norm={net.norm} is not for policies, which act one observation at a time: choose none, layer or group")


def policy(answer: Tensor, log_std: Tensor | None) -> Policy:
    """The policy of a net's answer [..., outputs]; with ``log_std`` [outputs] it is a mean, without they are logits."""
    return Categorical(answer) if log_std is None else Gaussian(answer, log_std)


def noise(problem: Problem, keys: Tensor) -> Tensor:
    """What ``draw`` takes at every time of the episodes of keys [n]: [n, horizon, outputs] float32."""
    assert problem.simulator
    shape = (problem.simulator.horizon, problem.outputs)

    def of(key: Tensor) -> Tensor:
        return -torch.log(-torch.log(inner.uniform(key, shape))) if problem.choices else inner.normal(key, shape)

    return torch.vmap(of)(keys)
