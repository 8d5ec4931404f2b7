"""Convolutional conditional neural process: examples become a function on a grid, which convolutions make the answers of.
Gordon et al. 2020, arXiv:1910.13556."""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge, Gt, Len, Lt
from torch import Tensor, nn

from metarun.algos.blackbox._neural_process import NeuralProcess
from metarun.nets.base import Net
from metarun.nets.pixels import Pixels
from metarun.nets.unet import UNet1d
from metarun.problem import Gaussian, Problem
from metarun.task import Context


class Field(NamedTuple):
    """What the convolutions make of a support."""

    values: Tensor  # [grid, 2 * channels]


class ConvCNP(NeuralProcess):
    """Convolutional conditional neural process, for examples of one coordinate.

        density(t) = Σ_i w(t − x_i),   signal(t) = Σ_i w(t − x_i) y_i / density(t),   w(d) = exp(−d² / 2ℓ²)        (algorithm 1)
        H = CNN([density, signal]) on an even grid;   (μ, s)(x) = A (weighted mean over the grid of H(t), by w'(x − t)) + b

    A shift of all points by a multiple of 2^levels grid points shifts the answers, as long as all stay well within ``domain``; what lies
    outside of it is seen and answered by the grid's ends. The net is not used.

    Deviations: (1) The grid is fixed; the authors' spans the points of a batch. (2) Answers read the grid by a weighted mean, where the
    paper has a weighted sum. ℓ is one for density and signal, ℓ' for all of H; the authors' code has one for each number. (3) Before the
    U-Net comes a ReLU, in the authors' code a sigmoid, and their σ has no floor. (4) and (5): as (1) and (2) of ``CNP``.

    Args:
        net, problem, floor: see ``NeuralProcess``.
        domain: [low, high] of the grid; half a unit more than points reach on either side is enough.
        points: of the grid, per unit of x; ℓ and ℓ' begin at two grid points, and are learned by their logarithms.
        channels, levels: of the U-Net.

    Raises:
        ValueError: examples are not single numbers, or the domain is empty.
    """

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        domain: Annotated[list[float], Len(2, 2)],
        points: Annotated[int, Ge(1)],
        channels: Annotated[int, Ge(1)],
        levels: Annotated[int, Ge(1)],
        floor: Annotated[float, Gt(0), Lt(1)],
    ) -> None:
        if problem.input_shape != (1,):
            raise ValueError(
                f"algo=convcnp lays examples of one number on a grid, these have shape {list(problem.input_shape)}; use algo=cnp"
            )
        low, high = domain
        if not low < high:
            raise ValueError(f"algo.domain=[{low}, {high}] is not an interval; give [low, high] with low < high")
        super().__init__(Pixels(problem.input_shape), problem, floor=floor)
        n = 2**levels * math.ceil((high - low) * points / 2**levels)
        self.grid: Tensor
        self.register_buffer("grid", (low + high) / 2 + (torch.arange(n) - n / 2) / points, persistent=False)
        self.log_scales = nn.Parameter(torch.full((2,), math.log(2 / points)))  # of ℓ and ℓ'
        self.first = nn.Conv1d(1 + problem.outputs, channels, 1)
        self.cnn = UNet1d(channels=channels, levels=levels)
        self.last = nn.Linear(2 * channels, 2 * problem.outputs)
        self.numbers = n * channels * 8

    def held(self, support: int, query: int) -> int:
        return self.numbers + 4 * (support + query) * len(self.grid)

    def nearness(self, x: Tensor, which: int) -> Tensor:
        """−d² / 2ℓ² [n, grid] of x [n, 1] and the grid; ``which`` is 0 for ℓ and 1 for ℓ'."""
        return -0.5 * ((x - self.grid) * (-self.log_scales[which]).exp()).square()

    def begin(self, context: Context) -> Field:
        x, y = context.support
        weights = self.nearness(x, 0).exp() * context.seen[:, None]
        density = weights.sum(0)[:, None]
        signal = weights.T @ y / (density + 1e-8)
        return Field(self.cnn(torch.relu(self.first(torch.cat([density, signal], -1).T[None])))[0].T)

    def predict(self, state: Field, x: Tensor) -> Gaussian:
        return self.gaussian(self.last(self.nearness(x, 1).softmax(-1) @ state.values))
