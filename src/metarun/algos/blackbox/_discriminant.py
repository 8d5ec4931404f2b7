"""Linear discriminant analysis of the rows of a table, in operations that torch.vmap can batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from metarun import inner
from metarun.algos.blackbox._logistic import RULED_OUT


class Discriminant(NamedTuple):
    """Normal distributions of the classes' rows, which share their covariance."""

    weights: Tensor  # [columns, way]
    bias: Tensor  # [way]

    def logits(self, rows: Tensor) -> Tensor:
        """Log-probabilities of the classes of rows [m, columns], [m, way]."""
        return (rows @ self.weights + self.bias).log_softmax(-1)


def discriminant(rows: Tensor, y: Tensor, way: int, pull: Tensor) -> Discriminant:
    """The discriminant of labelled rows.

    The covariance is that of the rows around the means of their classes, drawn towards the identity as by as many rows as ``pull`` says
    (Friedman 1989, "Regularized discriminant analysis", section 3); classes are as likely as they are frequent.

    Args:
        rows: [n, columns].
        y: [n], 0..way-1; a class without rows is ruled out.
        pull: [], positive.
    """
    member = inner.one_hot(y, way).to(rows.dtype)
    number = member.sum(0)
    means = (member.T @ rows) / number.clamp(min=1)[:, None]
    apart = rows - member @ means
    identity = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    covariance = (apart.T @ apart + pull * identity) / (len(rows) + pull)
    weights = inner.solve(covariance, means.T)
    prior = torch.where(number > 0, number.clamp(min=1).log(), RULED_OUT)
    return Discriminant(weights, prior - (means.T * weights).sum(0) / 2)
