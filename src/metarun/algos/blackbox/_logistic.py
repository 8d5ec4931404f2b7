"""Logistic regressions of the rows of a table under several penalties, in operations that torch.vmap can batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metarun import inner

PENALTIES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1)  # from the largest on, as each solution is where the search for the next one begins
STEPS = (10, 5, 5, 5, 5, 5)  # of Newton's, for each: the first sets out from zero, and a rare class makes its way long
BIAS = 1e-3  # the penalty of a bias, which has none but for rounding
RULED_OUT = -1e4  # the bias of a class


class Linear(NamedTuple):
    """Linear classifiers, P of them."""

    weights: Tensor  # [P, columns, way]
    bias: Tensor  # [P, way]
    evidence: Tensor  # [P], log-likelihood of the table under the penalty

    def votes(self, rows: Tensor) -> Tensor:
        """What each makes of rows [m, columns]: probabilities [P, m, way]."""
        return (rows @ self.weights + self.bias[:, None]).softmax(-1)


def believed(linear: Sequence[Linear], looks: Sequence[Tensor], surety: Tensor) -> Tensor:
    """Probabilities of the classes of m rows, [m, way]: the mean over classifiers.

    Args:
        linear: of each look at the rows.
        looks: each [m, columns].
        surety: [], how far the evidence counts: with 0 all classifiers are alike, with 1 the mean is that of Bayes.
    """
    evidence, votes = torch.cat([each.evidence for each in linear]), torch.cat([each.votes(rows) for each, rows in zip(linear, looks)])
    return ((surety * evidence).softmax(0)[:, None, None] * votes).sum(0)


def logistic(rows: Tensor, y: Tensor, way: int) -> Linear:
    """Logistic regressions of the classes on the columns, one for each of ``PENALTIES``, by ``STEPS`` whole steps of Newton's method.

    Every class has weights and a bias of its own. Half of a penalty times the squared length of the weights is added to the loss, which is
    summed over rows, and of a bias so with ``BIAS``: a normal prior, whose evidence, of weights and biases, is found by Laplace's
    approximation, MacKay 1992, "The evidence framework applied to classification networks", equation 11.

    Args:
        rows: [n, columns], standardised.
        y: [n], 0..way-1; a class without rows is ruled out.
    """
    if rows.shape[1] > rows.shape[0]:  # weights lie in the span of the rows
        basis, triangle = torch.linalg.qr(rows.T)
        found = logistic(triangle.T, y, way)
        return found._replace(weights=basis @ found.weights)
    x, target = inner.with_ones(rows), inner.one_hot(y, way).to(rows.dtype)
    n, d = x.shape
    seen = (target.sum(0) > 0).to(rows.dtype)
    there, last = (1 - seen) * RULED_OUT, torch.arange(d, device=rows.device) == d - 1
    ways, columns = (torch.eye(size, dtype=rows.dtype, device=rows.device) for size in (way, d))
    # The same added to all classes changes no probability: a curvature there, where slopes are none, keeps the system well-conditioned.
    common = torch.einsum("ij,a,b->iajb", columns, seen, seen).reshape(d * way, d * way) * n

    def pulls(penalty: Tensor) -> Tensor:
        return torch.where(last, BIAS, penalty)

    def curvature(p: Tensor, pull: Tensor) -> Tensor:
        """Second derivative of the loss [d * way, d * way], by column and class, where classes have probabilities p [n, way]."""
        each = (x[:, :, None] * p[:, None]).view(n, -1)
        alone = torch.einsum("ni,nja,ab->iajb", x, each.view(n, d, way), ways).reshape(d * way, d * way)
        return alone - each.T @ each + common + pull.repeat_interleave(way).diag()

    def step(weights: Tensor, penalty: Tensor) -> Tensor:
        pull, p = pulls(penalty), (x @ weights + there).softmax(1)
        slope = x.T @ (p - target) + pull[:, None] * weights
        return weights - inner.solve(curvature(p, pull), slope.reshape(-1, 1)).view(d, way)

    def evidence(weights: Tensor, penalty: Tensor) -> Tensor:
        pull, logits = pulls(penalty), x @ weights + there
        fit = (target * logits.log_softmax(1)).sum() - (pull[:, None] * weights.square()).sum() / 2
        volume = torch.linalg.cholesky_ex(curvature(logits.softmax(1), pull))[0].diagonal().log().sum()
        shared = (pull + n * seen.sum()).log().sum() / 2  # what ``common`` adds to it
        return fit + (way - 1) / 2 * pull.log().sum() - volume + shared

    penalties = rows.new_tensor(PENALTIES)
    each = torch.cat([penalty.expand(n) for penalty, n in zip(penalties, STEPS)])
    _, found = inner.loop(step, rows.new_zeros(d, way), len(each), each, read=lambda w: w)
    weights = torch.stack([part[-1] for part in found.split(STEPS)])
    return Linear(weights[:, :-1], weights[:, -1] + there, torch.stack([evidence(*pair) for pair in zip(weights, penalties)]))
