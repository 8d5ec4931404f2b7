"""Gaussian-process regression with a prior that is learned: what deep kernel transfer and PACOH share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from annotated_types import Gt
from torch import Tensor, nn

from metarun import inner
from metarun.abilities import AnswersTogether
from metarun.algorithm import Algorithm, Footprint, Metrics
from metarun.nets.base import Net
from metarun.problem import Gaussian, JointGaussian, Problem, joint_log_density
from metarun.task import Context, Task

HELD = 4  # matrices between all points of a task at a time, float32: differences, covariances, a factor, a solution


class Posterior(NamedTuple):
    """What a process knows after the support."""

    points: Tensor  # [n, features], where it was seen
    covariance: Tensor  # [n, n], of the targets there
    weights: Tensor  # [n, outputs], its inverse times what the prior's mean leaves of the targets
    support_x: Tensor  # [n, *input_shape], for nets that normalise queries by the support


class GaussianProcess(AnswersTogether, Algorithm):
    """Exact Gaussian-process regression (Rasmussen & Williams 2006, algorithm 2.1) on features, its prior's parameters meta-learned.

        f ~ GP(m(x), k(x, x')),   k = s² exp(−½ Σ_d (z_d(x) − z_d(x'))² / ℓ_d²),   y = f(x) + ε,   ε ~ N(0, σ²)
        min over tasks of −log p(y | x) / n, the marginal likelihood of support and query together

    Methods say what z and m are. Every output has the same kernel.

    Args:
        net, problem: the backbone and the data's shape.
        features: length of z.
        noise, scale, length: σ, s and all ℓ_d before meta-training.
    """

    kinds = frozenset({"regression"})

    def __init__(
        self,
        net: Net,
        problem: Problem,
        features: int,
        *,
        noise: Annotated[float, Gt(0)],
        scale: Annotated[float, Gt(0)],
        length: Annotated[float, Gt(0)],
    ) -> None:
        super().__init__(net, problem)
        self.log_noise, self.log_scale = (nn.Parameter(torch.tensor(math.log(value))) for value in (noise, scale))
        self.log_lengths = nn.Parameter(torch.full((features,), math.log(length)))

    @abstractmethod
    def places(self, x: Tensor, support_x: Tensor) -> Tensor:
        """z [n, features] of x [n, *input_shape]."""

    @abstractmethod
    def mean(self, x: Tensor, support_x: Tensor) -> Tensor:
        """m [n, outputs] of x [n, *input_shape]."""

    def kernel(self, a: Tensor, b: Tensor) -> Tensor:
        """Covariances [n, m] of the function at places a [n, features] and b [m, features]."""
        lengths = self.log_lengths.exp()
        return (2 * self.log_scale - inner.squared_distances(a / lengths, b / lengths) / 2).exp()

    def covariance(self, points: Tensor) -> Tensor:
        """Of the targets at n places, with their noise, [n, n]."""
        return self.kernel(points, points) + (2 * self.log_noise).exp() * torch.eye(len(points), dtype=points.dtype, device=points.device)

    def begin(self, context: Context) -> Posterior:
        x, y = context.support
        points = self.places(x, x)
        covariance = self.covariance(points)
        return Posterior(points, covariance, inner.solve(covariance, y - self.mean(x, x)), x)

    def predict(self, state: Posterior, x: Tensor) -> Gaussian:
        near = self.kernel(self.places(x, state.support_x), state.points)
        known = (near * inner.solve(state.covariance, near.T).T).sum(1, keepdim=True)
        variance = ((2 * self.log_scale).exp() - known).clamp(min=0) + (2 * self.log_noise).exp()
        mean = self.mean(x, state.support_x) + near @ state.weights
        return Gaussian(mean, variance.expand_as(mean))

    def together(self, state: Posterior, x: Tensor) -> JointGaussian:
        points = self.places(x, state.support_x)
        near = self.kernel(points, state.points)
        covariance = self.covariance(points) - near @ inner.solve(state.covariance, near.T)
        return JointGaussian(self.mean(x, state.support_x) + near @ state.weights, covariance[None])

    def surprise(self, x: Tensor, y: Tensor) -> Tensor:
        """−log p(y | x) of targets [n, outputs] under the prior, a number."""
        return -joint_log_density(JointGaussian(self.mean(x, x), self.covariance(self.places(x, x))[None]), y)

    def objective(self, states: Sequence[Posterior], task: Task, progress: float) -> tuple[Tensor, Metrics]:
        with torch.no_grad():
            _, metrics = super().objective(states, task, progress)
        x, y = (torch.cat(pair) for pair in zip(task.context.support, task.query))
        return self.surprise(x, y) / y.numel(), metrics

    def footprint(self, task: Task, train: bool) -> Footprint:
        held, points = super().footprint(task, train), len(task.context.support.y) + len(task.query.y)
        return held._replace(bytes=held.bytes + HELD * 4 * points**2)
