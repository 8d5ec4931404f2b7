"""``protocol=generalized``: generalised zero-shot learning: an image is of a class that was seen in training, or of one that was not.
Xian, Lampert, Schiele, Akata 2019 (TPAMI), arXiv:1707.00600, section 4.3; Chao et al. 2016, arXiv:1605.04253, for the curve."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metarun import inner
from metarun.adaptation import asked
from metarun.algorithm import Algorithm, State
from metarun.data.base import Dataset, ImageDataset
from metarun.data.episodes import ClassEpisodes, Episodes
from metarun.data.held_out import SEEN, joined
from metarun.errors import UserError
from metarun.problem import EpisodeSpec, Problem, best_guess
from metarun.protocols.base import Arrays, Protocol, Scores, pooled
from metarun.task import Task, rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRIC = "harmonic"
MEASURES = (METRIC, "unseen", "seen", "unseen_alone", "seen_alone", "ausuc", "harmonic_best", "penalty_best")
LINE, MARK, BEST = "#2f6690", "#c8553d", "#3a7d5d"


def curve(margin: np.ndarray, right: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Accuracies of unseen and of seen classes, [m] each, for every penalty [m] of the seen ones that changes an answer, ascending.

    Args:
        margin: [n], the best score of a seen class less that of an unseen one; an answer is seen where it is above the penalty.
        right: [n] bool, whether the best class of the image's own side, seen or unseen, is its own.
        seen: [n] bool, whether the image is of a seen class.
    """
    order = np.argsort(margin)
    gained = np.cumsum((right & ~seen)[order]) / max(1, (~seen).sum())  # answers move over to the unseen side one after another
    kept = (right & seen).sum() - np.cumsum((right & seen)[order])
    last = np.append(margin[order][1:] != margin[order][:-1], True)  # of equal ones, which move together
    unseen = np.append(0.0, gained[last])
    own = np.append((right & seen).sum(), kept[last]) / max(1, seen.sum())
    return unseen, own, np.append(margin.min() - 1, margin[order][last])


def harmonic(unseen: np.ndarray | float, seen: np.ndarray | float) -> np.ndarray:
    """2 A_u A_s / (A_u + A_s), 0 where both are."""
    return np.asarray(2 * unseen * seen / np.maximum(np.asarray(unseen) + seen, 1e-12))


def measure(margin: np.ndarray, right: np.ndarray, seen: np.ndarray, penalty: float) -> np.ndarray:
    """The ``MEASURES`` of arrays of any one shape, see ``curve``; NaN if a score is none."""
    if np.isnan(margin).any():
        return np.full(len(MEASURES), np.nan)
    margin, right, seen = margin.ravel(), right.ravel().astype(bool), seen.ravel().astype(bool)
    answered = right & ((margin > penalty) == seen)
    of_unseen, of_seen = answered[~seen].mean(), answered[seen].mean()
    unseen, own, penalties = curve(margin, right, seen)
    best = int(harmonic(unseen, own).argmax())
    area = float((np.diff(unseen) * (own[1:] + own[:-1]) / 2).sum())
    h = float(harmonic(of_unseen, of_seen))
    alone = right[~seen].mean(), right[seen].mean()
    return np.array([h, of_unseen, of_seen, *alone, area, float(harmonic(unseen[best], own[best])), penalties[best]])


@dataclass(frozen=True, kw_only=True)
class Generalized(Protocol):
    """Accuracy, as a mean over classes, of images of unseen and of seen classes, when every class of both is a possible answer.

    The classes are those of the split, and all training classes in the images that ``data.held_out`` kept from training; every episode has
    ``query`` images of each. ``ausuc`` is the area below the curve that both accuracies describe as seen classes lose more and more
    of their score, ``harmonic_best`` the largest harmonic mean on it, found with these very answers: an upper bound.

    Args:
        penalty: what the scores of seen classes lose; what is best on development classes is ``penalty_best`` there.
    """

    name = "generalized"
    needs = "a zero-shot method, as protonet_zeroshot"
    penalty: float = 0.0

    def asks(self, algorithm: Algorithm) -> bool:
        return algorithm.reads == "attributes"

    def metric(self, problem: Problem) -> tuple[str, bool]:
        return METRIC, True

    def episodes(self, data: Dataset, split: str, spec: EpisodeSpec, seed: int, device: torch.device) -> Episodes:
        if not isinstance(data, ImageDataset) or not {SEEN, split} <= set(data.splits):
            raise UserError(
                "protocol=generalized asks for training classes too, in images that training does not see: set data.held_out=0.2, "
                "before training, with data=folder, cifar_fs or fc100"
            )
        whole = joined(data.splits[SEEN], data.splits[split])
        return ClassEpisodes(whole, split, replace(spec, way=whole.classes), seed, device)

    def measure(self, algorithm: Algorithm, task: Task, *, scanned: bool) -> dict[str, Tensor]:
        """``margin``, ``right`` and ``seen`` [n] of the query, see ``curve``."""
        context, query = task.context, task.query
        seen_class = context.classes < algorithm.problem.classes

        def noted(state: State, prediction: Any) -> dict[str, Tensor]:
            scores = inner.upcast(best_guess(prediction))
            sides = [scores.masked_fill(side, -torch.inf) for side in (~seen_class, seen_class)]  # seen, unseen
            margin = sides[0].amax(1) - sides[1].amax(1)
            seen = seen_class[query.y]
            right = torch.where(seen, sides[0].argmax(1), sides[1].argmax(1)) == query.y
            lost = ~scores.isfinite().all()
            return {"margin": torch.where(lost, torch.nan, margin), "right": right, "seen": seen}

        return rows(asked(algorithm, context, query.x, [algorithm.steps(context, False)], noted, scanned=scanned), -1)

    def summarise(self, problem: Problem, arrays: Arrays) -> tuple[Scores, list[dict[str, Any]]]:
        def under_penalty(margin: np.ndarray, right: np.ndarray, seen: np.ndarray) -> np.ndarray:
            return measure(margin, right, seen, self.penalty)

        return pooled(under_penalty, MEASURES, arrays["margin"], arrays["right"], arrays["seen"]), []

    def figure(self, arrays: Arrays, title: str) -> tuple[str, Figure]:
        """The curve of both accuracies, with the answers as they are."""
        from matplotlib.figure import Figure

        margin, right, seen = (arrays[name].ravel() for name in ("margin", "right", "seen"))
        scores = dict(zip(MEASURES, measure(margin, right, seen, self.penalty)))
        unseen, own, _ = curve(margin, right.astype(bool), seen.astype(bool))
        best = int(harmonic(unseen, own).argmax())
        figure = Figure(figsize=(5.6, 4.4), layout="constrained")
        axes = figure.subplots()
        axes.set_title(title, fontsize=10)
        axes.plot(unseen, own, color=LINE, label=f"area {scores['ausuc']:.4f}")
        axes.plot(scores["unseen"], scores["seen"], "o", color=MARK, label=f"penalty {self.penalty:g}: harmonic {scores['harmonic']:.4f}")
        axes.plot(unseen[best], own[best], "o", color=BEST, label=f"best of all penalties: {scores['harmonic_best']:.4f}")
        axes.set_xlabel("accuracy of unseen classes")
        axes.set_ylabel("accuracy of seen classes")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
        return "generalized.png", figure
