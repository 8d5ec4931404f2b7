"""Logistic regression of the rows of a table, in operations that torch.vmap can batch and that are differentiated through."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from metarun import inner

STEPS = 30
STILL = 1e-6  # the penalty of a bias, which has none but for rounding
RULED_OUT = -1e4  # the bias of a class


class Linear(NamedTuple):
    """A linear classifier."""

    weights: Tensor  # [columns, way]
    bias: Tensor  # [way]


def logistic(rows: Tensor, y: Tensor, way: int, penalty: Tensor) -> Linear:
    """Logistic regression of the classes on the columns, by ``STEPS`` of Newton's steps with a bound in place of the second derivative.

    The bound is the same in every step, so that one inverse serves them all, and no step goes too far: Böhning 1992, "Multinomial logistic
    regression algorithm".

    Args:
        rows: [n, columns], standardised.
        y: [n], 0..way-1; a class without rows is ruled out.
        penalty: [], positive, half of which times the squared length of the weights is added to the loss, summed over rows.
    """
    x, target = inner.with_ones(rows), inner.one_hot(y, way).to(rows.dtype)
    there = target.sum(0) > 0
    pull = torch.cat([penalty.to(rows.dtype).expand(rows.shape[1]), rows.new_full((1,), STILL)])[:, None]  # bias last
    bound = x.T @ x / 2 + pull * torch.eye(x.shape[1], dtype=rows.dtype, device=rows.device)
    inverse = inner.solve(bound, torch.eye(x.shape[1], dtype=rows.dtype, device=rows.device))

    def step(weights: Tensor, _: Tensor) -> Tensor:
        wrong = target - torch.where(there, x @ weights, RULED_OUT).softmax(1)
        return weights + inverse @ (x.T @ wrong - pull * weights)

    weights = inner.loop(step, rows.new_zeros(x.shape[1], way), STEPS)
    return Linear(weights[:-1], torch.where(there, weights[-1], RULED_OUT))
