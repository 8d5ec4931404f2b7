"""Does a picture belong to any of the classes at all? A score of belonging, and a threshold that the support itself calibrates.
The threshold is that of split conformal prediction (Vovk, Gammerman & Shafer 2005) on scores of examples that were left out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

UNKNOWN = "unknown"  # the answer where a picture belongs to none
PRIOR = 4.0  # examples of the common spread that count besides a class's own


@dataclass(frozen=True)
class Belonging:
    """The spread of the classes, and the threshold.

        score(x) = −min_c ‖x − μ_c‖² / s_c,   s_c = (Σ_{i in c} ‖x_i − μ_c without i‖² + PRIOR · s) / (n_c + PRIOR)

    s is the mean of these squared distances over all classes. A score of −1 is that of a member as far from its class as members are.

    Attributes:
        spread: s_c, [way].
        threshold: lower scores are answered ``unknown``; −∞ for never.
        held: the share of members that is refused at this threshold, 0..1, on average over supports; NaN where nothing is known of it.
        left_out: scores of the support's examples, each left out in its turn, [n]; those of classes with one example are missing.
    """

    spread: np.ndarray
    threshold: float
    held: float
    left_out: np.ndarray

    def score(self, squares: np.ndarray) -> np.ndarray:
        """[n] of the squared distances [n, way] to the classes' means."""
        scores: np.ndarray = -(squares / self.spread).min(-1)
        return scores


def calibrated(squares: np.ndarray, y: np.ndarray, once: np.ndarray, rate: float) -> Belonging:
    """Spread and threshold from the support.

    Args:
        squares: [n, way] squared distances of every example to the classes' means, its own without it.
        y: [n] labels.
        once: [n] bool: examples whose class has others.
        rate: the share of members that may be refused, 0..1; 0 for no threshold.
    """
    way = squares.shape[1]
    own = squares[np.arange(len(y)), y]
    sums, counts = np.bincount(y[once], own[once], way), np.bincount(y[once], minlength=way)
    if not once.any():
        between = np.where(np.arange(way) == y[:, None], np.inf, squares).min(-1)
        return Belonging(np.full(way, between.mean() / 2), -math.inf, math.nan, np.empty(0))

    def spreads(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
        common = sums.sum(-1, keepdims=True) / np.maximum(counts.sum(-1, keepdims=True), 1)
        return np.maximum((sums + PRIOR * common) / (counts + PRIOR), 1e-12)

    # An example that is left out is missing in the spreads as well, unless nothing is left of them then.
    mine = (np.arange(way) == y[once, None]).astype(float)
    without = spreads(sums - mine * own[once, None], counts - mine) if once.sum() > 1 else spreads(sums, counts)[None]
    left_out = np.sort(-(squares[once] / without).min(-1))
    n = len(left_out)
    allowed = math.floor(rate * (n + 1))  # of n + 1 exchangeable scores, those below the threshold
    threshold = -math.inf if not rate else float(left_out[max(allowed, 1) - 1])
    return Belonging(spreads(sums, counts), threshold, max(allowed, 1) / (n + 1) if rate else 0.0, left_out)
