"""``protocol=weights``: did a learner that weighs its training data see which of them are corrupt?
The weights of clean and of corrupt examples, and the area below the ROC curve of telling them apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from metarun.abilities import WeighsExamples
from metarun.algorithm import Algorithm, State
from metarun.problem import Problem
from metarun.protocols.base import AfterAdaptation, Arrays, Scores, statistics
from metarun.protocols.verification import roc
from metarun.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = ("weights_auroc", "weight_clean", "weight_corrupt")
BINS, WIDEST = 40, 0.995  # of the histogram, and the share of the weights that it shows: a few may be huge
CLEAN, WRONG = "#2f6690", "#c8553d"


def auroc(weights: np.ndarray, corrupt: np.ndarray) -> float:
    """P(a clean example's weight is above a corrupt one's) + P(equal) / 2, of weights [n] and marks [n]; NaN if a weight is."""
    return math.nan if np.isnan(weights).any() else roc(weights[~corrupt], weights[corrupt]).auc


@dataclass(frozen=True, kw_only=True)
class Weights(AfterAdaptation):
    """What became of the weights of training examples, of which the episodes know which are corrupt (``episode.corrupt``)."""

    name = "weights"
    needs = "weights of its training examples, as of l2rw, metaweight or datarater, a part of them corrupt: episode.corrupt=labels or noise"

    def asks(self, algorithm: Algorithm) -> bool:
        return isinstance(algorithm, WeighsExamples) and algorithm.problem.eval.corrupt in ("labels", "noise")

    def metric(self, problem: Problem) -> tuple[str, bool]:
        return MEASURES[0], True

    def learned(self, algorithm: Algorithm, state: State, task: Task) -> dict[str, Tensor]:
        """``weights`` [n] and, where some of them are, ``corrupt`` [n] of the support."""
        assert isinstance(algorithm, WeighsExamples)
        found = {"weights": algorithm.example_weights(state)}
        return found | {"corrupt": task.corrupt} if isinstance(task.corrupt, Tensor) else found

    def summarise(self, problem: Problem, arrays: Arrays) -> tuple[Scores, list[dict[str, Any]]]:
        """The area, and the mean weights of either kind, over episodes; nothing where a rate rounds to none."""
        if "corrupt" not in arrays:
            return {}, []
        pairs = [(weights, corrupt > 0) for weights, corrupt in zip(arrays["weights"], arrays["corrupt"])]
        if all(corrupt.all() for _, corrupt in pairs):
            return {}, []
        found = [(auroc(weights, corrupt), weights[~corrupt].mean(), weights[corrupt].mean()) for weights, corrupt in pairs]
        return {name: statistics(np.array(values)) for name, values in zip(MEASURES, zip(*found))}, []

    def figure(self, arrays: Arrays, title: str) -> tuple[str, Figure] | None:
        """Two histograms: the weights of clean and of corrupt examples, of all episodes."""
        if "corrupt" not in arrays or not np.isfinite(arrays["weights"]).all():
            return None
        from matplotlib.figure import Figure

        weights, corrupt = arrays["weights"], arrays["corrupt"] > 0
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.subplots()
        top = float(np.quantile(weights, WIDEST)) or 1.0
        edges = np.linspace(0, top, BINS + 1).tolist()
        for kind, chosen, color in (("clean", ~corrupt, CLEAN), ("corrupt", corrupt, WRONG)):
            if n := int(chosen.sum()):
                shares = np.full(n, 1 / n)
                axes.hist(weights[chosen].clip(max=top), edges, weights=shares, color=color, alpha=0.6, label=f"{n:,} {kind}")
        axes.axvline(1, color="#555555", linewidth=1, linestyle="dashed", label="as in plain training")
        area = np.mean([auroc(each, mark) for each, mark in zip(weights, corrupt) if mark.any() and not mark.all()] or [math.nan])
        axes.set_title(f"what were examples worth?  {title}\narea below the ROC curve {area:.3f}", fontsize=11, loc="left")
        axes.set(xlabel="weight, mean over training", ylabel="share of the examples of its kind")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        return "weights.png", figure
