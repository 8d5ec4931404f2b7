"""``protocol=verification``: same class or not? What the scores of pairs tell beside the accuracy of episodes, as in face verification:
the ROC curve over all pairs of a split, the area below it, the equal error rate, and the true-accept rate at a low false-accept rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metarun.algorithm import Algorithm
from metarun.inner import upcast
from metarun.problem import Problem
from metarun.protocols.base import AfterAdaptation, Arrays, Scores, pooled
from metarun.task import Batch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FALSE_ACCEPTS = 0.01  # at which false-accept rate the true-accept rate is reported
MEASURES = ("auc", "eer", f"tar_at_far_{FALSE_ACCEPTS}")
POINTS, LINE, MARK = 500, "#2f6690", "#c8553d"  # of the picture: rates at which the magnified curve is drawn, and colours


def pairs(logits: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The scores of a query with its own class, ``same`` [n], and with the others, ``different`` [n, way - 1].

    Args:
        logits: [n, way] of a ``pairwise`` method, the higher the likelier of one class.
        y: [n] int64 in 0..way-1.
    """
    way = logits.shape[1]
    own_first = (y[:, None] + torch.arange(way, device=y.device)) % way
    scores = upcast(logits).gather(1, own_first)
    return {"same": scores[:, 0], "different": scores[:, 1:]}


class ROC(NamedTuple):
    """The receiver operating characteristic: what is accepted as the threshold falls from +∞, a point per distinct score.

    Equal scores are accepted together, so a tie is a slope of the curve, not a step.
    """

    far: np.ndarray  # [points] false-accept rate, rising from 0 to 1
    tar: np.ndarray  # [points] true-accept rate, likewise

    @property
    def auc(self) -> float:
        """Area below the curve: P(a same pair's score is above a different pair's) + P(equal) / 2."""
        return float((np.diff(self.far) * (self.tar[1:] + self.tar[:-1]) / 2).sum())

    @property
    def eer(self) -> float:
        """Equal error rate: where as many different pairs are accepted as same ones refused, on the line between two thresholds."""
        return float(np.interp(0.0, self.far - (1 - self.tar), self.far))

    def tar_at(self, far: float | np.ndarray) -> np.ndarray:
        """The highest true-accept rate of a threshold whose false-accept rate is at most ``far`` (0..1)."""
        return self.tar[np.searchsorted(self.far, far, side="right") - 1]

    def far_at(self, tar: float | np.ndarray) -> np.ndarray:
        """The lowest false-accept rate of a threshold whose true-accept rate is at least ``tar`` (0..1)."""
        return self.far[np.searchsorted(self.tar, tar)]


def roc(same: np.ndarray, different: np.ndarray) -> ROC:
    """The curve of the scores of same and of different pairs, arrays of any shape without NaN.

    Raises:
        ValueError: there are no pairs of one kind.
    """
    if not same.size or not different.size:
        raise ValueError(f"a ROC curve needs pairs of both kinds, here are {same.size} same and {different.size} different ones")
    scores = np.concatenate([same.ravel(), different.ravel()])
    order = np.argsort(-scores)
    scores, is_same = scores[order], order < same.size
    last = np.append(scores[1:] != scores[:-1], True)  # of equal scores
    far, tar = np.cumsum(~is_same)[last] / different.size, np.cumsum(is_same)[last] / same.size
    return ROC(np.append(0.0, far), np.append(0.0, tar))


def measure(same: np.ndarray, different: np.ndarray) -> np.ndarray:
    """The ``MEASURES`` of scores of any shape, NaN if one of them is."""
    if np.isnan(same).any() or np.isnan(different).any():
        return np.full(len(MEASURES), math.nan)
    curve = roc(same, different)
    return np.array([curve.auc, curve.eer, float(curve.tar_at(FALSE_ACCEPTS))])


def statistics(same: np.ndarray, different: np.ndarray) -> Scores:
    """Each of the ``MEASURES`` over the pairs of all episodes, with 1.96 standard errors from blocks of episodes.

    Args:
        same, different: [episodes, ...] scores, see ``pairs``.
    """
    return pooled(measure, MEASURES, same, different)


@dataclass(frozen=True, kw_only=True)
class Verification(AfterAdaptation):
    """Pairs of a query and a class of its episode, accepted as the same class or refused, by one threshold for all episodes."""

    name = "verification"
    needs = "scores that mean the same in all episodes, as of protonet, siamese or relation"

    def asks(self, algorithm: Algorithm) -> bool:
        return algorithm.pairwise

    def metric(self, problem: Problem) -> tuple[str, bool]:
        return "auc", True

    def last(self, problem: Problem, prediction: Any, query: Batch) -> dict[str, Tensor]:
        """The ``pairs`` of the query."""
        return pairs(prediction, query.y)

    def summarise(self, problem: Problem, arrays: Arrays) -> tuple[Scores, list[dict[str, Any]]]:
        return statistics(arrays["same"], arrays["different"]), []

    def figure(self, arrays: Arrays, title: str) -> tuple[str, Figure]:
        """The ROC curve, whole and magnified where few are accepted falsely."""
        from matplotlib.figure import Figure

        same, different = arrays["same"], arrays["different"]
        curve, lowest = roc(same, different), 1 / different.size
        figure = Figure(figsize=(8.4, 4.4), layout="constrained")
        figure.suptitle(f"same class or not?  {title}")
        rates = np.concatenate([[0.0], np.geomspace(lowest, 1, POINTS)])
        whole, magnified = figure.subplots(1, 2)
        whole.plot(curve.far, curve.tar, color=LINE, label=f"area {curve.auc:.4f}")
        whole.plot([0, 1], [0, 1], color="#b9c6d0", linewidth=1, label="chance")
        whole.plot(curve.eer, 1 - curve.eer, "o", color=MARK, label=f"equal error rate {curve.eer:.4f}")
        magnified.step(rates, curve.tar_at(rates), where="post", color=LINE)
        low = float(curve.tar_at(FALSE_ACCEPTS))
        magnified.plot(FALSE_ACCEPTS, low, "o", color=MARK, label=f"{low:.4f} at {FALSE_ACCEPTS:g}")
        magnified.set_xscale("log")
        magnified.set_xlim(max(lowest, 1e-5), 1)
        for axes in (whole, magnified):
            axes.set_xlabel("false-accept rate")
            axes.set_ylabel("true-accept rate")
            axes.set_ylim(-0.02, 1.02)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, loc="lower right", fontsize=9)
        return "roc.png", figure
