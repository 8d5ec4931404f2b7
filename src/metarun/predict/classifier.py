"""What a few labelled pictures teach without any training: a head on features that stay as they are, calibrated probabilities, a score of
belonging, and the accuracy that may be expected, all by leaving pictures out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.predict import heads
from metarun.predict.belonging import Belonging, calibrated
from metarun.predict.heads import Head, Tried


class Expected(NamedTuple):
    """The accuracy that the support itself lets expect, and its 95 % interval; ``said`` in words, where there is none as well."""

    accuracy: float | None
    low: float | None
    high: float | None
    n: int
    said: str

    def json(self) -> dict[str, float | int | None]:
        """Without the words."""
        return {"accuracy": self.accuracy, "low": self.low, "high": self.high, "n": self.n}


class Classifier(NamedTuple):
    """What a support teaches.

    Attributes:
        classes: in order of name.
        head: the one that was chosen.
        weight, bias: [features, way], [way] of its logits before the temperature.
        means: [way, features] of the classes' features.
        temperature: by which logits are divided.
        belonging: the score of belonging to any class, and its threshold.
        tried: what the heads made of pictures left out.
    """

    classes: list[str]
    head: Head
    weight: Tensor
    bias: Tensor
    means: Tensor
    temperature: float
    belonging: Belonging
    tried: Tried

    def answer(self, features: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities [n, way], and scores of belonging [n], of ``directions`` [n, features]."""
        logits = (features @ self.weight + self.bias) / self.temperature
        squares = torch.cdist(features, self.means).square()
        return logits.softmax(-1).numpy(), self.belonging.score(squares.numpy())

    def expected(self) -> Expected:
        """By nested leave-one-out: the head is chosen anew for every picture that is left out, by the others alone."""
        tried = self.tried
        n = int(tried.once.sum())
        if not n:
            return Expected(None, None, None, 0, "no estimate: with one picture of a class there is none to try it on")
        right = int((tried.nested().argmax(-1) == tried.y)[tried.once].sum())
        low, high = heads.wilson(right, n)
        how = "each left out in its turn" if len(tried.y) <= heads.ONE_BY_ONE else f"left out in {heads.FOLDS} folds"
        few = f"; of {len(tried.y) - n} classes there is one picture, which cannot be tried" * (n < len(tried.y))
        said = f"accuracy {right / n:.2f}, 95 % interval {low:.2f} to {high:.2f}: {right} of {n} pictures of the support, {how}{few}"
        return Expected(right / n, low, high, n, said)

    def chosen(self) -> str:
        """The head, and how it was chosen."""
        if not self.tried.once.any():
            return f"{self.head.name}: with one picture of a class there is nothing to choose by"
        how = "leave-one-out" if len(self.tried.y) <= heads.ONE_BY_ONE else f"{heads.FOLDS}-fold cross-validation"
        return f"{self.head.name}, the best of {len(self.tried.heads)} by {how} on the support"

    def rejection(self, rate: float) -> str:
        """When ``unknown`` is answered, and what that costs; empty if it was not asked for."""
        belonging = self.belonging
        if not rate:
            return ""
        if not np.isfinite(belonging.threshold):
            return "never answered: with one picture of a class its spread is not known"
        least = f"; {len(belonging.left_out)} pictures allow no lower rate" if belonging.held > rate + 1e-9 else ""
        return f"answered below a belonging of {belonging.threshold:.3g}, where {100 * belonging.held:.0f} % of a class's own are refused{least}"


def directions(features: Tensor) -> Tensor:
    """Features [n, d] of length 1, in float64: how alike two pictures are is the angle between theirs."""
    return F.normalize(features.double(), dim=-1)


def learn(features: Tensor, labels: Sequence[str], reject: float) -> Classifier:
    """Choose a head by leaving out, fit it to all, and calibrate probabilities and threshold.

    Args:
        features: ``directions`` [n, d] of the support.
        labels: n names of classes.
        reject: share of pictures that do belong to a class which may be answered ``unknown``.
    """
    classes = sorted(set(labels))
    y = np.array([classes.index(label) for label in labels])
    way, gram, target = len(classes), features @ features.T, torch.from_numpy(y)
    tried = heads.tried(gram, y, way)
    chosen = tried.best()
    head, once = tried.heads[chosen], tried.once
    temperature = heads.temperature(tried.alone(chosen)[once], y[once]) if once.any() else 1.0
    member = target == torch.arange(way).unsqueeze(1)
    means = member.to(features.dtype) @ features / member.sum(-1, keepdim=True)
    if head.kind == "means":
        weight, bias = 2 * means.T, -means.square().sum(-1)
    else:
        a = heads.coefficients(head, gram, member.unsqueeze(0))[0]
        weight, bias = features.T @ a, a.sum(0)
    belonging = calibrated(-tried.alone(0), y, once, reject)
    return Classifier(classes, head, weight, bias, means, temperature, belonging, tried)
