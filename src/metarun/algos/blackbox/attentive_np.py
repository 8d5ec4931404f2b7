"""Attentive neural process: every query looks for itself at the examples it needs; with a latent variable, functions are sampled whole.
Kim et al. 2019, arXiv:1901.05761."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from metarun import inner
from metarun.algorithm import Metrics
from metarun.algos.blackbox._neural_process import NeuralProcess, masked_mean, perceptron
from metarun.nets.attention import MultiHeadAttention
from metarun.nets.base import Net
from metarun.problem import Gaussian, Problem, Samples
from metarun.task import Context, Task


class Attended(NamedTuple):
    """A support to be looked at."""

    keys: Tensor  # [n, width]
    values: Tensor  # [n, width]
    seen: Tensor  # [n] bool
    belief: Gaussian  # q(z | support), mean and variance [latent]
    z: Tensor  # [samples, latent], drawn from it
    support_x: Tensor  # [n, *input_shape], for nets that normalise queries by the support


class AttentiveNP(NeuralProcess):
    """Attentive neural process.

        r(x) = attention of k(f(x)) on the keys k(f(x_i)) with the values h([f(x_i), y_i])              (section 3)
        deterministic  answer(x) = g([f(x), r(x)]),   trained by −log density of the queries
        latent         answer(x) = mean over z ~ q(z | support) of g([f(x), r(x), z]),   trained by the bound
                       E_{q(z | support, query)} Σ log p(y | x, r, z) − KL(q(z | support, query) ‖ q(z | support))      (equation 3)
        q(z | examples) = N(μ, σ²) of the mean over examples of h'([f(x_i), y_i]),   σ = 0.1 + 0.9 sigmoid(s)

    Deviations: (1) No self-attention among examples, as in the paper's 1-D experiments. (2) The latent variable is optional. (3) Answers
    are the mixture of ``samples`` draws of z, query by query. (4) and (5): as (1) and (2) of ``CNP``.

    Args:
        net, problem, floor: see ``NeuralProcess``.
        width: of all hidden layers.
        encoder, decoder: how many linear layers h (and h') and g have, their last ones included.
        heads: of attention; they divide the width.
        latent: numbers of z; 0: none, deterministic.
        samples: draws of z that an answer is made of.
    """

    encodes = True

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        width: Annotated[int, Ge(1)],
        encoder: Annotated[int, Ge(1)],
        decoder: Annotated[int, Ge(1)],
        heads: Annotated[int, Ge(1)],
        latent: Annotated[int, Ge(0)],
        samples: Annotated[int, Ge(1)],
        floor: Annotated[float, Gt(0), Lt(1)],
    ) -> None:
        super().__init__(net, problem, floor=floor)
        if width % heads:
            raise ValueError(f"algo.width={width} does not fall into algo.heads={heads}; choose a multiple of it")
        self.latent, self.samples = latent, samples
        pair = net.features + problem.outputs
        self.key, self.value = perceptron(net.features, width, width), perceptron(pair, *[width] * encoder)
        self.attention = MultiHeadAttention(queries=width, keys=width, values=width, heads=heads, size=width // heads, outputs=width)
        self.decoder = perceptron(net.features + width + latent, *[width] * (decoder - 1), 2 * problem.outputs)
        if latent:
            self.path, self.moments = perceptron(pair, *[width] * encoder), perceptron(width, width, 2 * latent)
        self.numbers, self.heads, self.decoded = width * (encoder * (1 + bool(latent)) + 6), heads, width * decoder

    def held(self, support: int, query: int) -> int:
        drawn = self.samples if self.latent else 1
        return (support + query) * self.numbers + query * (3 * self.heads * support + drawn * self.decoded)

    def begin(self, context: Context) -> Attended:
        features, pairs = self.pairs(context)
        nothing = features.new_zeros(0)
        belief = self.belief(pairs, context.seen) if self.latent else Gaussian(nothing, nothing)
        z = sampled(belief, context.key, self.samples)
        return Attended(self.key(features), self.value(pairs), context.seen, belief, z, context.support.x)

    def belief(self, pairs: Tensor, seen: Tensor) -> Gaussian:
        """q(z | examples) of the examples [n, features + outputs] that are ``seen`` [n]: mean and variance [latent]."""
        mean, raw = self.moments(masked_mean(self.path(pairs), seen)).chunk(2, -1)
        return Gaussian(mean, (0.1 + 0.9 * torch.sigmoid(raw)).square())

    def predict(self, state: Attended, x: Tensor) -> Gaussian | Samples:
        features = self.features(x, state.support_x)
        known = torch.cat([features, self.attention(self.key(features), state.keys, state.values, state.seen)], -1)
        if not self.latent:
            return self.gaussian(self.decoder(known))
        rows = (state.z.shape[0], x.shape[0], -1)
        return Samples(self.gaussian(self.decoder(torch.cat([known.expand(*rows), state.z[:, None].expand(*rows)], -1))))

    def objective(self, states: Sequence[Attended], task: Task, progress: float) -> tuple[Tensor, Metrics]:
        if not self.latent:
            return super().objective(states, task, progress)
        state, (x, y) = states[-1], task.query
        pairs = torch.cat([self.pairs(task.context)[1], torch.cat([self.features(x, state.support_x), y], -1)])
        every = torch.cat([state.seen, torch.ones_like(y[:, 0], dtype=torch.bool)])
        posterior = self.belief(pairs, every)
        with torch.no_grad():
            _, metrics = super().objective([state._replace(z=state.z[:1])], task, progress)  # of one draw, as the bound below
        guess = self.predict(state._replace(z=sampled(posterior, inner.fold_in(task.context.key, 0), 1)), x)
        loss = self.problem.loss(guess, y) + divergence(posterior, state.belief) / y.numel()
        return loss, metrics | {"bound": loss}


def sampled(belief: Gaussian, key: Tensor, n: int) -> Tensor:
    """n draws [n, latent] of a Gaussian [latent]."""
    mean, variance = belief
    return mean + variance.sqrt() * inner.normal(key, (n, mean.shape[0])).to(mean.dtype)


def divergence(a: Gaussian, b: Gaussian) -> Tensor:
    """KL(a ‖ b) [] of Gaussians [latent] of independent numbers, in nats."""
    mean, variance = b
    return 0.5 * ((a.variance + (a.mean - mean).square()) / variance - 1 + (variance / a.variance).log()).sum()
