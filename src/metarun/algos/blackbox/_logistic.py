"""Logistic regressions of the rows of a table under several penalties, in operations that torch.vmap can batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from metarun import inner

PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1)  # from the largest on, as each solution is where the search for the next one begins
STEPS = 5  # of Newton's, for each
STILL = 1e-3  # the penalty of a bias, which has none but for rounding
RULED_OUT = -1e4  # the bias of a class


class Linear(NamedTuple):
    """Linear classifiers, P of them."""

    weights: Tensor  # [P, columns, way]
    bias: Tensor  # [P, way]

    def probabilities(self, rows: Tensor) -> Tensor:
        """Of the classes of rows [m, columns], [m, way]: the mean over classifiers."""
        return (rows @ self.weights + self.bias[:, None]).softmax(-1).mean(0)


def logistic(rows: Tensor, y: Tensor, way: int) -> Linear:
    """Logistic regressions of the classes on the columns, one for each of ``PENALTIES``, by Newton's method.

    Half of a penalty times the squared length of the weights is added to the loss, which is summed over rows.

    Args:
        rows: [n, columns], standardised.
        y: [n], 0..way-1; a class without rows is ruled out.
    """
    x, target = inner.with_ones(rows), inner.one_hot(y, way).to(rows.dtype)
    n, d = x.shape
    seen = (target.sum(0) > 0).to(rows.dtype)
    there, last = (1 - seen) * RULED_OUT, torch.arange(d, device=rows.device) == d - 1
    ways, columns = (torch.eye(size, dtype=rows.dtype, device=rows.device) for size in (way, d))
    # The same added to all classes changes no probability: a curvature there, where slopes are none, keeps the system well-conditioned.
    common = torch.einsum("ij,a,b->iajb", columns, seen, seen).reshape(d * way, d * way) * n

    def step(weights: Tensor, penalty: Tensor) -> Tensor:
        pull = torch.where(last, STILL, penalty)
        p = (x @ weights + there).softmax(1)
        slope = x.T @ (p - target) + pull[:, None] * weights
        each = (x[:, :, None] * p[:, None]).view(n, -1)
        curvature = torch.einsum("ni,nja,ab->iajb", x, each.view(n, d, way), ways).reshape(d * way, d * way) - each.T @ each
        return weights - inner.solve(curvature + common + pull.repeat_interleave(way).diag(), slope.reshape(-1, 1)).view(d, way)

    path = torch.tensor(PENALTIES, dtype=rows.dtype, device=rows.device).repeat_interleave(STEPS)
    _, found = inner.loop(step, rows.new_zeros(d, way), len(path), path, read=lambda weights: weights)
    weights = found[STEPS - 1 :: STEPS]
    return Linear(weights[:, :-1], weights[:, -1] + there)
