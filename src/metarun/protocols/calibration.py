"""``protocol=calibration``: is a learner as often right as it believes? Likelihood, calibration, and what it may leave unanswered.
Classification as of Guo, Pleiss, Sun, Weinberger 2017, arXiv:1706.04599; regression of Kuleshov, Fenner, Ermon 2018, arXiv:1807.00263."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from metarun.abilities import AnswersTogether
from metarun.algorithm import Algorithm, State
from metarun.inner import upcast
from metarun.problem import Gaussian, Problem, Samples, best_guess, joint_log_density
from metarun.protocols.base import AfterAdaptation, Arrays, Scores, pooled, statistics
from metarun.task import Batch, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 15  # of confidence, equally wide
KEPT = (0.9, 0.8, 0.5)  # of the queries, the surest: their accuracy
INSIDE = (0.5, 0.9, 0.95)  # nominal probabilities of the central intervals whose coverage is counted
LEVELS = np.linspace(0.05, 0.95, 20)  # of the quantiles behind the calibration error of a regression
HOTTEST = 100.0  # temperatures are looked for between this and its inverse
HALVINGS = 16  # of that interval: to a thousandth
LINE, BAR, MARK = "#2f6690", "#b9c6d0", "#c8553d"  # colours of the picture
# Names of scores.
OF_POOL = ("ece", *(f"accuracy_at_{round(100 * kept)}" for kept in KEPT), "aurc")
AFTER_SCALING = ("nll_calibrated", "ece_calibrated")
JOINT = "joint_nll"
OF_INTERVALS = tuple(f"coverage_{round(100 * inside)}" for inside in INSIDE)
SHOWN = ("ece", "ece_calibrated", "aurc", *OF_INTERVALS[:2], "calibration_error")  # in the table of a run, which has 80 columns
NAMES = {"nll", "brier", *OF_POOL, *AFTER_SCALING, "temperature", JOINT, *OF_INTERVALS, "calibration_error"}


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities, over the last axis."""
    with np.errstate(invalid="ignore"):  # of what is ``lost``
        shifted = logits - logits.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def lost(logits: np.ndarray) -> bool:
    """Whether an answer among logits [..., way] is none, as after an adaptation that diverged: a number is NaN, or the largest infinite."""
    return not np.isfinite(logits.max(-1)).all()


def nll(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """−log p(y) of logits [..., way] and labels y [...], elementwise."""
    return -np.take_along_axis(log_softmax(logits), y[..., None], -1)[..., 0]


def brier(logits: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Σ_c (p_c − [c = y])², 0..2, elementwise."""
    p = np.exp(log_softmax(logits))
    return np.square(p - (y[..., None] == np.arange(logits.shape[-1]))).sum(-1)


def judged(logits: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every answer the probability of the class that it names, and whether that is right (0 or 1), as long vectors."""
    return np.exp(log_softmax(logits)).max(-1).ravel(), (logits.argmax(-1) == y).ravel().astype(float)


def bins(confidence: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sums of ``values`` [n] over the bins ((b − 1) / BINS, b / BINS] of the confidences [n]."""
    found: np.ndarray = np.bincount(np.clip(np.ceil(confidence * BINS) - 1, 0, BINS - 1).astype(int), values, BINS)
    return found


def ece(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Expected calibration error: mean over answers of |accuracy − confidence| of their bin (equation 3 of Guo et al.)."""
    return float(np.abs(bins(confidence, correct - confidence)).sum() / len(confidence))


def risks(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """The share of errors among the k = 1 … n surest answers, [n]; in expectation over the order of those that are equally sure."""
    order = np.argsort(-confidence)
    confidence, errors, kept = confidence[order], np.cumsum(1 - correct[order]), np.arange(1, len(order) + 1)
    last = np.append(confidence[1:] != confidence[:-1], True)  # of equal ones
    found: np.ndarray = np.interp(kept, np.append(0, kept[last]), np.append(0, errors[last])) / kept
    return found


def of_pool(logits: np.ndarray, y: np.ndarray) -> list[float]:
    """``OF_POOL``: of all answers together; NaN if one of them is none. The area is the mean of the ``risks``."""
    if lost(logits):
        return [math.nan] * len(OF_POOL)
    confidence, correct = judged(logits, y)
    found = risks(confidence, correct)
    return [ece(confidence, correct), *(1 - float(found[math.ceil(kept * len(found)) - 1]) for kept in KEPT), float(found.mean())]


def fitted_temperature(logits: np.ndarray, y: np.ndarray, softened: float = 0.0) -> list[float]:
    """The one T for which logits / T make the labels likeliest (section 4.2 of Guo et al.), by bisection: the loss is convex in 1 / T.

    ``softened``: the share of every label that is spread over all classes.
    """
    if lost(logits):
        return [math.nan]
    columns = np.ascontiguousarray(logits.reshape(-1, logits.shape[-1]).T)  # [way, n]: sums over few classes are quick so
    columns -= columns.max(0)
    own = (1 - softened) * np.take_along_axis(columns, y.reshape(1, -1), 0).mean() + softened * columns.mean()
    low, high = -math.log(HOTTEST), math.log(HOTTEST)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        weights = np.exp(columns * math.exp(-middle))
        slope = ((weights * columns).sum(0) / weights.sum(0)).mean() - own  # of the loss by 1 / T
        low, high = (middle, high) if slope > 0 else (low, middle)
    return [math.exp((low + high) / 2)]


def temperature_in(development: Scores) -> float:
    """What validation fitted; 1 where it did not, or could not."""
    found = development.get("temperature", {}).get("mean")
    return found if isinstance(found, float) and 0 < found < math.inf else 1.0


def below(prediction: Gaussian | Samples, y: Tensor) -> Tensor:
    """The predicted probability that a target is at most what it is, [n, outputs]: uniform in 0..1 if predictions are calibrated."""
    members = prediction.members if isinstance(prediction, Samples) else prediction
    assert isinstance(members, Gaussian)
    mean, variance = map(upcast, members)
    found = torch.special.ndtr((y - mean) / variance.sqrt())
    return found.mean(0) if isinstance(prediction, Samples) else found


def coverage(levels: np.ndarray) -> list[float]:
    """``OF_INTERVALS``: how many of the targets, which lie at these levels of their predictions, the central intervals hold."""
    return [float((np.abs(levels - 0.5) <= inside / 2).mean()) for inside in INSIDE]


def calibration_error(levels: np.ndarray) -> np.ndarray:
    """Root mean square, over ``LEVELS``, of level − frequency of targets below that quantile; of every episode of levels [episodes, …]."""
    below = levels.reshape(len(levels), 1, -1) <= LEVELS[:, None]
    found: np.ndarray = np.sqrt(np.square(below.mean(-1) - LEVELS).mean(-1))
    return found


@dataclass(frozen=True, kw_only=True)
class Calibration(AfterAdaptation):
    """Of classification the likelihood, the Brier score, the expected calibration error, and the accuracy of the surest answers; of a
    regression that knows its uncertainty the likelihood, the coverage of its intervals, and the calibration error of its quantiles.

    Attributes:
        fits: a temperature is fitted.
        temperature: fitted on development tasks, by which a second figure is reckoned beside the raw one; None without.
    """

    name = "calibration"
    needs = "answers with probabilities: classes, or numbers with their uncertainty as of alpaca"
    fits: bool = field(default=False, kw_only=False)
    temperature: float | None = field(default=None, kw_only=False)

    def asks(self, algorithm: Algorithm) -> bool:
        return not algorithm.problem.kind.acts

    def metric(self, problem: Problem) -> tuple[str, bool]:
        return "nll", False

    def on_development(self) -> Calibration:
        return replace(self, fits=True)

    def after(self, development: Scores) -> Calibration:
        return replace(self, temperature=temperature_in(development) if "temperature" in development else None)

    def last(self, problem: Problem, prediction: Any, query: Batch) -> dict[str, Tensor]:
        """``logits`` [n, way] and ``labels`` [n]; or ``levels`` [n, outputs], ``surprise`` [] and ``together`` [], as ``learned`` has it;
        nothing of predictions without spread, or of several that are judged one by one.
        """
        if problem.kind.labelled:
            logits = upcast(best_guess(prediction))
            return {"logits": logits, "labels": query.y} if logits.dim() == 2 else {}
        if not isinstance(prediction, (Gaussian, Samples)):
            return {}
        surprise, together = problem.loss(prediction, query.y), -joint_log_density(prediction, query.y) / query.y.numel()
        return {"levels": below(prediction, query.y), "surprise": surprise, "together": together}

    def learned(self, algorithm: Algorithm, state: State, task: Task) -> dict[str, Tensor]:
        """``together`` [], −log density a number of all targets of the query, by what a process knows of them."""
        if not isinstance(algorithm, AnswersTogether):
            return {}
        return {"together": -joint_log_density(algorithm.together(state, task.query.x), task.query.y) / task.query.y.numel()}

    def summarise(self, problem: Problem, arrays: Arrays) -> tuple[Scores, list[dict[str, Any]]]:
        if "levels" in arrays:
            levels = arrays["levels"]
            own = {"nll": statistics(arrays["surprise"]), JOINT: statistics(arrays["together"])}
            own |= {"calibration_error": statistics(calibration_error(levels))}
            return own | pooled(coverage, OF_INTERVALS, levels), []
        if "logits" not in arrays:
            return {}, []
        logits, y = arrays["logits"], arrays["labels"].astype(int)
        found = {"nll": statistics(cast(np.ndarray, self.per_episode(arrays))), "brier": statistics(brier(logits, y).mean(-1))}
        found |= pooled(of_pool, OF_POOL, logits, y)
        if self.fits:
            found |= pooled(fitted_temperature, ["temperature"], logits, y)
        if self.temperature is not None:
            cooled = logits / self.temperature
            found |= {AFTER_SCALING[0]: statistics(nll(cooled, y).mean(-1))}
            found |= pooled(lambda logits, y: of_pool(logits, y)[:1], AFTER_SCALING[1:], cooled, y)
        return found, []

    def per_episode(self, arrays: Arrays) -> np.ndarray | None:
        """−log probability, [n]."""
        if "surprise" in arrays:
            return arrays["surprise"]
        return nll(arrays["logits"], arrays["labels"].astype(int)).mean(-1) if "logits" in arrays else None

    def figure(self, arrays: Arrays, title: str) -> tuple[str, Figure] | None:
        """The reliability diagram; of classification with the accuracy of the surest answers beside. None where an answer is none."""
        if not {"logits", "levels"} & set(arrays) or ("logits" in arrays and lost(arrays["logits"])):
            return None
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.4, 4.4) if "logits" in arrays else (4.6, 4.4), layout="constrained")
        figure.suptitle(f"how sure?  {title}")
        if "levels" in arrays:
            axes = figure.subplots()
            shares = np.linspace(0, 1, 101)
            axes.plot(shares, np.quantile(arrays["levels"], shares, method="inverted_cdf"), color=LINE, label="predicted")
            axes.set(xlabel="share of targets below", ylabel="predicted probability")
        else:
            axes, beside = figure.subplots(1, 2)
            logits, y = arrays["logits"], arrays["labels"].astype(int)
            self._bars(axes, *judged(logits, y))
            if self.temperature is not None:
                at = judged(logits / self.temperature, y)
                axes.plot(*_points(*at), "o-", color=MARK, markersize=4, label=f"temperature {self.temperature:.3g}, ECE {ece(*at):.4f}")
            accuracy = 1 - risks(*judged(logits, y))
            beside.plot(np.arange(1, len(accuracy) + 1) / len(accuracy), accuracy, color=LINE)
            beside.set(xlabel="share of queries answered, the surest first", ylabel="accuracy", xlim=(0, 1))
            beside.spines[["top", "right"]].set_visible(False)
        axes.plot([0, 1], [0, 1], color="#555555", linewidth=1, linestyle="dashed", label="calibrated")
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper left", fontsize=9)
        return "reliability.png", figure

    @staticmethod
    def _bars(axes: Any, confidence: np.ndarray, correct: np.ndarray) -> None:
        """Accuracy by bin of confidence, and how many answers a bin has of all."""
        x, accuracy = _points(confidence, correct)
        share = bins(confidence, np.ones_like(confidence)) / len(confidence)
        axes.bar((np.arange(BINS) + 0.5) / BINS, share, 1 / BINS, color=BAR, label="share of answers")
        axes.plot(x, accuracy, "o-", color=LINE, markersize=4, label=f"as answered, ECE {ece(confidence, correct):.4f}")
        axes.set(xlabel="confidence", ylabel="accuracy")


def _points(confidence: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean confidence and accuracy of every bin that has answers."""
    count = bins(confidence, np.ones_like(confidence))
    some = count > 0
    return bins(confidence, confidence)[some] / count[some], bins(confidence, correct)[some] / count[some]
