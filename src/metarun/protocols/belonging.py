"""Does a query belong to any class of the support? Scores of belonging, and a threshold that the support itself calibrates.
The nearest class mean against the spread within classes, as of Gaussians with one variance; in closed form, also without each example."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metarun import inner

UNKNOWN = "unknown"  # the answer to what belongs to none of the classes


def belonging(features: Tensor, support: Tensor, y: Tensor, way: int) -> Tensor:
    """How well queries fit the class that they fit best, [n]; the higher, the better.

        s(x) = −min_c ‖f(x) − μ_c‖² / (σ² (1 + 1/n_c)),   σ² = Σ_i ‖f(x_i) − μ_{y_i}‖² / Σ_c (n_c − 1)

    A query of class c lies σ² (1 + 1/n_c) from that class's mean in expectation, so that scores mean the same whatever the number of shots,
    features and episode: −1 is ordinary. Where no class has two examples σ² is the mean squared distance of a class to its nearest.

    Args:
        features: [n, d] of the queries.
        support: [m, d] of the examples, their classes y [m] int64 in 0..way-1.
    """
    features, support = inner.upcast(features), inner.upcast(support)
    means, counts = inner.class_means(support, y, way), _counts(y, way, support)
    variance = _variance(_scatter(support, means, y), counts, means)
    return -(inner.squared_distances(features, means) * _shrink(counts)).min(-1).values / variance


def left_out(support: Tensor, y: Tensor, way: int) -> Tensor:
    """``belonging`` of each example [m] as a query to the support without it; NaN of the only example of a class.

    With one example less class c has the mean μ_c + (μ_c − f_i) / (n_c − 1), and less scatter by ‖f_i − μ_c‖² n_c / (n_c − 1).
    """
    support = inner.upcast(support)
    means, counts = inner.class_means(support, y, way), _counts(y, way, support)
    own, others = counts[y], counts.sum() - way - 1
    rest = (own - 1).clamp(min=1)
    away = (support - means[y]).square().sum(-1)
    distances = inner.squared_distances(support, means) * _shrink(counts)
    itself = torch.arange(way, device=y.device) == y[:, None]
    distances = torch.where(itself, (away * (own / rest).square() * rest / (rest + 1))[:, None], distances)
    scatter = _scatter(support, means, y) - away * own / rest
    found = -distances.min(-1).values / (scatter / others)
    if others <= 0:  # no class is left with two examples: the spread is that between the means of what is left
        for i in (own > 1).nonzero()[:, 0].tolist():
            kept = torch.arange(len(y), device=y.device) != i
            found[i] = belonging(support[i : i + 1], support[kept], y[kept], way)[0]
    return torch.where(own > 1, found, torch.nan)


def threshold(scores: Tensor, rate: float) -> tuple[float, float]:
    """The score below which a query belongs to no class, so that about ``rate`` of those that do are lost; and the rate to be expected.

    The k-th smallest of the n scores that are numbers loses k / (n + 1) of further ones (they are exchangeable); between two of them
    the threshold is interpolated. A rate below 1 / (n + 1) cannot be told from that.

    Raises:
        ValueError: there is no score, no class having two examples.
    """
    known = scores[scores.isfinite()].double()
    if not len(known):
        raise ValueError("no class has two examples, of which one could be left out")
    n = len(known)
    place = min(max(rate * (n + 1), 1.0), float(n))
    low = math.floor(place)
    ordered = known.sort().values
    at, above = ordered[low - 1], ordered[min(low, n - 1)]
    return float(at + (place - low) * (above - at)), place / (n + 1)


def _counts(y: Tensor, way: int, like: Tensor) -> Tensor:
    return inner.one_hot(y, way).sum(0).to(like.dtype)


def _shrink(counts: Tensor) -> Tensor:
    """1 / (1 + 1/n_c) of classes with n_c examples."""
    return counts / (counts + 1)


def _scatter(support: Tensor, means: Tensor, y: Tensor) -> Tensor:
    return (support - means[y]).square().sum()


def _variance(scatter: Tensor, counts: Tensor, means: Tensor) -> Tensor:
    way = len(means)
    between = inner.squared_distances(means, means) + torch.diag(torch.full((way,), torch.inf, device=means.device, dtype=means.dtype))
    free = counts.sum() - way
    return torch.where(free > 0, scatter / free.clamp(min=1), between.min(-1).values.mean()).clamp(min=torch.finfo(means.dtype).tiny)
