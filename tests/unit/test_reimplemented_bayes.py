"""PLATIPUS, PMAML and PACOH against their equations written out a second time: losses, gradients in all parameters, answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers import Builder, in_float64, regression, small
from reimplemented import Weights, close, jittered, parameters, same_objective
from torch import Tensor

from metarun import inner
from metarun.algos.bayes.platipus import OF_ENCODER, PLATIPUS
from metarun.contract.measures import answers
from metarun.task import Task, select

MLP = ["net=mlp", "net.sizes=[6,5]", "net.norm=none", "net.activation=tanh"]


def images(algo: str, *words: str) -> dict[str, Any]:
    return small(f"algo={algo}", *words)


def answer(layers: Sequence[Tensor], x: Tensor) -> Tensor:
    """Of a multilayer perceptron with hyperbolic tangents, given as weight, bias, weight, bias, …"""
    x = x.flatten(1)
    for i in range(0, len(layers), 2):
        x = (torch.tanh(x) if i else x) @ layers[i].T + layers[i + 1]
    return x


class Probabilistic:
    """Algorithms 1 and 2 of arXiv:1806.02817 for one task, all numbers of a sample in one list of tensors."""

    def __init__(self, algorithm: PLATIPUS, task: Task, weights: Weights) -> None:
        (self.x, self.y), (self.query_x, self.query_y), self.key = task.context.support, task.query, task.context.key
        self.classes = algorithm.problem.kind.labelled
        self.noise, self.clip, self.weight, self.w = algorithm.noise, algorithm.clip, algorithm.divergence, weights
        self.mu = [w for name, w in weights.items() if name.startswith(("net.", "head."))]
        rates = self.named("rates")
        self.alpha: Sequence[Tensor | float] = rates or [algorithm.inner_lr] * len(self.mu)

    def named(self, prefix: str) -> list[Tensor]:
        return [w for name, w in self.w.items() if name.startswith(f"{prefix}.")]

    def inner_gradient(self, weights: Sequence[Tensor], x: Tensor, y: Tensor) -> Sequence[Tensor]:
        """Of the mean cross-entropy, or of the mean squared error."""
        given = answer(weights, x)
        each = -given.log_softmax(1)[torch.arange(len(y)), y] if self.classes else (given - y) ** 2
        grads = torch.autograd.grad(each.sum() / each.numel(), weights, create_graph=True)
        return grads if self.clip is None else [torch.where(g.abs() > self.clip, self.clip * g.sign(), g) for g in grads]

    def gaussian(self, rates: Tensor, deviations: list[Tensor], x: Tensor, y: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """N(μ − γ ∇L(μ), σ²), its means and standard deviations."""
        return [m - r * g for m, r, g in zip(self.mu, rates, self.inner_gradient(self.mu, x, y))], [torch.exp(s) for s in deviations]

    def prior(self) -> tuple[list[Tensor], list[Tensor]]:
        return self.gaussian(self.w["centre_lrs"], self.named("log_deviation"), self.x, self.y)

    def posterior(self) -> tuple[list[Tensor], list[Tensor]]:
        return self.gaussian(self.w["encoder_lrs"], self.named("encoder_log_deviation"), self.query_x, self.query_y)

    def adapted(self, gaussian: tuple[list[Tensor], list[Tensor]], key: Tensor, samples: int, steps: int) -> list[list[Tensor]]:
        """θ drawn, and φ after gradient steps on the support."""
        noise = [inner.normal(key, (samples, *m.shape), place).double() for place, m in enumerate(self.mu)]
        found = []
        for i in range(samples):
            phi = [mean + deviation * epsilon[i] for mean, deviation, epsilon in zip(*gaussian, noise)]
            for _ in range(steps):
                phi = [w - a * g for w, a, g in zip(phi, self.alpha, self.inner_gradient(phi, self.x, self.y))]
            found.append(phi)
        return found

    def probabilities(self, phis: list[list[Tensor]]) -> Tensor:
        """p(y | x, φ) of every sample and query, [samples, n]."""
        given = torch.stack([answer(phi, self.query_x) for phi in phis])
        if self.classes:
            return given.softmax(2)[:, torch.arange(len(self.query_y)), self.query_y]
        return torch.exp(-((given[..., 0] - self.query_y[:, 0]) ** 2) / (2 * self.noise**2)) / math.sqrt(2 * math.pi * self.noise**2)

    def variational_loss(self, samples: int, steps: int) -> Tensor:
        """E_q −log p(query | φ), a query, and the weighed KL(q ‖ p), a query."""
        q, p = self.posterior(), self.prior()
        phis = self.adapted(q, inner.fold_in(self.key, OF_ENCODER), samples, steps)
        apart = torch.zeros((), dtype=torch.float64)
        for mean, v, other, s in zip(*q, *p):
            apart = apart + torch.sum(torch.log(s) - torch.log(v) + (v**2 + (mean - other) ** 2) / (2 * s**2) - 0.5)
        return -torch.log(self.probabilities(phis)).mean() + self.weight * apart / len(self.query_y)

    def marginal_loss(self, samples: int, steps: int) -> Tensor:
        """−log E_p p(query | φ), a query."""
        return -torch.log(self.probabilities(self.adapted(self.prior(), self.key, samples, steps)).mean(0)).mean()

    def best_guess(self, samples: int, steps: int) -> Tensor:
        """Mean probabilities or mean numbers of samples of the prior."""
        given = torch.stack([answer(phi, self.query_x) for phi in self.adapted(self.prior(), self.key, samples, steps)])
        return given.softmax(2).mean(0) if self.classes else given.mean(0)


@pytest.mark.parametrize("build", [images, regression])
@pytest.mark.parametrize("algo", ["platipus", "pmaml"])
@pytest.mark.parametrize(
    "words", [[], ["algo.learn_lr=true", "algo.clip=0.05", "algo.mode=mixed"]], ids=["plain", "learned rates, clipped"]
)
def test_samples_of_starts_adapt_and_are_weighed_as_in_algorithms_1_and_2(algo: str, build: Builder, words: list[str]) -> None:
    algorithm, tasks = in_float64(build(algo, *MLP, "algo.samples=3", "algo.test_samples=4", "algo.divergence=0.3", *words), tasks=1)
    assert isinstance(algorithm, PLATIPUS)
    jittered(algorithm)
    task = select(tasks, 0)
    written = Probabilistic(algorithm, task, parameters(algorithm))
    if algorithm.clip is not None:
        steep = torch.cat([g.flatten() for g in written.inner_gradient(written.mu, written.x, written.y)]).abs()
        assert 0 < float((steep == algorithm.clip).double().mean()) < 1
    same_objective(algorithm, tasks, lambda weights: (
        Probabilistic.variational_loss if algo == "platipus" else Probabilistic.marginal_loss
    )(Probabilistic(algorithm, task, weights), 3, algorithm.inner_steps))  # fmt: skip
    [found] = answers(algorithm, task.context, task.query.x)
    close(found.exp() if build is images else found, written.best_guess(4, algorithm.test_steps).detach())


class Process:
    """A Gaussian process whose mean and features are nets (arXiv:2002.05551, section 5), by inverse matrices and determinants."""

    def __init__(self, weights: Weights) -> None:
        self.w = weights

    def net(self, *prefixes: str) -> list[Tensor]:
        return [w for prefix in prefixes for name, w in self.w.items() if name.startswith(f"{prefix}.")]

    def mean(self, x: Tensor) -> Tensor:
        return answer(self.net("net", "head"), x)[:, 0]

    def kernel(self, a: Tensor, b: Tensor) -> Tensor:
        """s² exp(−½ Σ_d (z_d − z'_d)² / ℓ_d²) of every pair."""
        one, other = (answer(self.net("kernel_net", "kernel_head"), x) for x in (a, b))
        apart = (one[:, None, :] - other[None, :, :]) / torch.exp(self.w["log_lengths"])
        return torch.exp(self.w["log_scale"]) ** 2 * torch.exp(-0.5 * (apart**2).sum(2))

    def covariance(self, x: Tensor) -> Tensor:
        return self.kernel(x, x) + torch.exp(self.w["log_noise"]) ** 2 * torch.eye(len(x), dtype=x.dtype)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """−log N(y; m, K + σ² I) / n."""
        gap, covariance = y[:, 0] - self.mean(x), self.covariance(x)
        whole = gap @ torch.linalg.inv(covariance) @ gap + torch.log(torch.linalg.det(2 * math.pi * covariance))
        return whole / (2 * len(x))

    def posterior(self, x: Tensor, y: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Of noisy targets at ``query``, means and variances."""
        gain = self.kernel(query, x) @ torch.linalg.inv(self.covariance(x))
        covariance = self.covariance(query) - gain @ self.kernel(x, query)
        return (self.mean(query) + gain @ (y[:, 0] - self.mean(x)))[:, None], covariance.diagonal()[:, None]


def test_a_process_learns_by_the_marginal_likelihood_a_point_and_answers_with_its_posterior() -> None:
    algorithm, tasks = in_float64(regression("pacoh", *MLP, "algo.features=3", "algo.noise=0.4"), tasks=1)
    jittered(algorithm)
    task = select(tasks, 0)
    x, y = (torch.cat(pair) for pair in zip(task.context.support, task.query))
    same_objective(algorithm, tasks, lambda weights: Process(weights).loss(x, y), idle=["kernel_head.bias"])
    found = answers(algorithm, task.context, task.query.x)
    wanted = Process(parameters(algorithm)).posterior(task.context.support.x, task.context.support.y, task.query.x)
    for mine, its in zip(found, wanted, strict=True):
        close(mine, its.detach())
