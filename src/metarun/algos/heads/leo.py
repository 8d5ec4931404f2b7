"""LEO, latent embedding optimization: a classifier is decoded from a few numbers per class, and these take the gradient steps.
Rusu et al. 2019, arXiv:1807.05960."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor, nn

from metarun import inner
from metarun.algorithm import Algorithm, Metrics
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Context, Task


class Latent(NamedTuple):
    """A classifier on its way through latent space and beyond."""

    z: Tensor  # [way, latent]
    change: Tensor  # [way, features] what fine-tuning has added to the decoded weights
    code: tuple[Tensor, Tensor]  # mean and log standard deviation of z before any step, [way, latent] each
    start: Tensor  # [way, latent] z before any step
    noise: Tensor  # [way, features] standard normal in meta-training, else 0
    features: Tensor  # [n, features] of the support
    support_x: Tensor  # [n, *input_shape], for nets that normalise queries by the support


class LEO(Algorithm):
    """Latent embedding optimization.

        (μ_c, log σ_c) = mean over examples i of class c and all examples j of relation(encoder(x_i), encoder(x_j))     (equation 4)
        z_c ~ N(μ_c, σ_c²),   w_c ~ N(decoder(z_c))                                     (equations 5 and 6)
        z ← z − α ∇_z L_support(w(z)),  ``latent_steps`` times;   then w ← w − α' ∇_w L_support(w)    (equations 7 and 8)
        min  L_query + β KL(q(z) ‖ N(0, I)) + γ ‖sg(z') − z‖² + λ ‖corr(decoder) − I‖²       (equation 9)

    z' is z after its steps; the correlations are those of the decoder's rows. α and α' are learned. Any number of classes.

    Deviations: (1) The authors train on the features of a wide residual net that they pre-trained; here the net is trained along, unless
    ``init_from`` and a frozen net say otherwise. (2) Evaluation takes the means in place of samples. (3) Weight decay is the outer
    optimizer's (``optim.weight_decay``); there is no dropout. (4) ``latent_steps`` of the inner steps are taken in latent space, in
    meta-training and evaluation alike, and all others are fine-tuning. (5) Standard deviations of weights are decoded in units of
    √(2 / (way + features)), as large as weights usually begin.

    Args:
        net, problem: the backbone and the data's shape.
        inner_steps, test_steps: all steps, in meta-training, and in validation and test.
        latent_steps: those in latent space, which come first.
        latent: numbers per class.
        latent_lr, fine_lr: α and α' before meta-training.
        kl, gap, orthogonality: β, γ and λ.
    """

    kinds = frozenset({"classification"})
    encodes = True

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        inner_steps: Annotated[int, Ge(0)],
        test_steps: Annotated[int, Ge(0)],
        latent_steps: Annotated[int, Ge(0)],
        latent: Annotated[int, Ge(1)],
        latent_lr: Annotated[float, Gt(0)],
        fine_lr: Annotated[float, Gt(0)],
        kl: Annotated[float, Ge(0)],
        gap: Annotated[float, Ge(0)],
        orthogonality: Annotated[float, Ge(0)],
    ) -> None:
        super().__init__(net, problem)
        self.inner_steps, self.test_steps, self.latent_steps = inner_steps, test_steps, latent_steps
        self.kl, self.gap, self.orthogonality = kl, gap, orthogonality
        self.encoder = nn.Linear(net.features, latent, bias=False)
        sizes = [2 * latent] * 4
        layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b, bias=False), nn.ReLU())]
        self.relation = nn.Sequential(*layers[:-1])
        self.decoder = nn.Linear(latent, 2 * net.features, bias=False)
        self.latent_lr, self.fine_lr = nn.Parameter(torch.tensor(latent_lr)), nn.Parameter(torch.tensor(fine_lr))

    def begin(self, context: Context) -> Latent:
        (x, y), way = context.support, context.classes.shape[0]
        features = inner.upcast(self.net(x, x))
        mean, log_std = code = self.encode(features, y, way)
        if self.training:
            noise = inner.normal(context.key, (way, features.shape[1]), 1).to(features.dtype)
            start = mean + log_std.exp() * inner.normal(context.key, tuple(mean.shape)).to(features.dtype)
        else:
            noise, start = features.new_zeros(way, features.shape[1]), mean
        return Latent(start, torch.zeros_like(noise), code, start, noise, features, x)

    def encode(self, features: Tensor, y: Tensor, way: int) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of q(z), [way, latent] each, from features [n, d] of classes y [n]."""
        codes = self.encoder(features)
        n = len(codes)
        pairs = torch.cat([codes[:, None].expand(n, n, -1), codes[None].expand(n, n, -1)], -1)
        mean, log_std = inner.class_means(self.relation(pairs).mean(1), y, way).chunk(2, -1)
        return mean, log_std

    def step(self, state: Latent, context: Context, k: int) -> Latent:
        fixed = (self.decoder.weight, state.noise, state.features, context.support.y)
        if k < self.latent_steps:
            slope = inner.gradient(self.loss_of_z, {"z": state.z}, state.change, *fixed, mode="unroll")["z"]
            return state._replace(z=state.z - self.latent_lr * slope)
        slope = inner.gradient(self.loss_of_change, {"change": state.change}, state.z, *fixed, mode="unroll")["change"]
        return state._replace(change=state.change - self.fine_lr * slope)

    def loss_of_z(self, fast: dict[str, Tensor], change: Tensor, *fixed: Tensor) -> Tensor:
        """The support loss of latent ``fast["z"]``; pure, as ``inner.gradient`` asks."""
        return self.support_loss(fast["z"], change, *fixed)

    def loss_of_change(self, fast: dict[str, Tensor], z: Tensor, *fixed: Tensor) -> Tensor:
        """The support loss of fine-tuned weights; pure, as ``inner.gradient`` asks."""
        return self.support_loss(z, fast["change"], *fixed)

    def support_loss(self, z: Tensor, change: Tensor, decoder: Tensor, noise: Tensor, features: Tensor, y: Tensor) -> Tensor:
        """Mean loss on features [n, d] of classes y [n]."""
        return self.problem.loss(features @ self.weights(z, change, decoder, noise).T, y)

    def weights(self, z: Tensor, change: Tensor, decoder: Tensor, noise: Tensor) -> Tensor:
        """w [way, features], decoded and fine-tuned."""
        mean, log_std = F.linear(z, decoder).chunk(2, -1)
        narrow = math.sqrt(2 / sum(mean.shape))
        return mean + narrow * log_std.exp() * noise + change

    def answers(self, state: Latent, x: Tensor) -> Callable[[Latent], Tensor]:
        features = inner.upcast(self.net(x, state.support_x))
        return lambda state: features @ self.weights(state.z, state.change, self.decoder.weight, state.noise).T

    def predict(self, state: Latent, x: Tensor) -> Tensor:
        return self.answers(state, x)(state)

    def objective(self, states: Sequence[Latent], task: Task, progress: float) -> tuple[Tensor, Metrics]:
        loss, metrics = super().objective(states, task, progress)
        (mean, log_std), state = states[-1].code, states[-1]
        kl = 0.5 * (mean.square() + (2 * log_std).exp() - 2 * log_std - 1).sum(-1).mean()
        gap = (state.z.detach() - state.start).square().sum(-1).mean()
        rows = inner.directions(self.decoder.weight)
        correlation = (rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)).square().mean()
        return loss + self.kl * kl + self.gap * gap + self.orthogonality * correlation, metrics | {"kl": kl}
