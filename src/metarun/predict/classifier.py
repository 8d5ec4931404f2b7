"""What a few labelled pictures teach without any training: a head on features that stay as they are, calibrated probabilities, a threshold
of belonging, and the accuracy that may be expected, all by leaving pictures out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.predict import heads
from metarun.predict.expectation import Expected, expected
from metarun.predict.heads import Head, Tried
from metarun.protocols.belonging import belonging, left_out, threshold

ONE_EACH = "with one picture of a class"


class Classifier(NamedTuple):
    """A fitted head.

    Attributes:
        classes: in order of name.
        support, y: ``directions`` [n, d] and labels [n] that it has learned from.
        head: the one that was chosen.
        weight, bias: [d, way], [way] of its logits before the temperature.
        temperature: by which logits are divided.
        tried: what the heads made of pictures left out.
    """

    classes: list[str]
    support: Tensor
    y: Tensor
    head: Head
    weight: Tensor
    bias: Tensor
    temperature: float
    tried: Tried

    def answer(self, features: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities [n, way], and scores of ``belonging`` [n], of ``directions`` [n, d]."""
        logits = (features @ self.weight + self.bias) / self.temperature
        return logits.softmax(-1).numpy(), belonging(features, self.support, self.y, len(self.classes)).numpy()

    def threshold(self, rate: float) -> tuple[float, float] | None:
        """The belonging below which a picture is of none of the classes, and the share of members to be lost; None: it cannot be told."""
        try:
            return threshold(left_out(self.support, self.y, len(self.classes)), rate) if rate else None
        except ValueError:
            return None

    def expected(self) -> Expected:
        """The accuracy on further pictures; the choice of the head is part of what is judged."""
        return expected(self.tried)

    def chosen(self) -> str:
        """The head, and how it was chosen, in words."""
        if not self.tried.once.any():
            return f"{self.head.name}: {ONE_EACH} there is nothing to choose by"
        return f"{self.head.name}, the best of {len(self.tried.heads)} by {self.tried.how} on the support"


def directions(features: Tensor) -> Tensor:
    """Features [n, d] in float64: the square root of each, with its sign, and all of a picture brought to length 1.

    Power and length normalisation as of Perronnin, Sánchez, Mensink 2010: few large features do not decide alone.
    """
    features = features.double()
    return F.normalize(features.sign() * features.abs().sqrt(), dim=-1)


def learn(support: Tensor, labels: Sequence[str]) -> Classifier:
    """Choose a head by leaving out, fit it to all, and calibrate its probabilities.

    Args:
        support: ``directions`` [n, d].
        labels: n names of classes.
    """
    classes = sorted(set(labels))
    y = np.array([classes.index(label) for label in labels])
    way, gram, target = len(classes), support @ support.T, torch.from_numpy(y)
    tried = heads.tried(gram.float(), y, way)  # precise enough to choose by
    chosen = tried.best()
    head, once = tried.heads[chosen], tried.once
    temperature = heads.temperature(tried.alone(chosen)[once], y[once]) if once.any() else 1.0
    member = target == torch.arange(way).unsqueeze(1)
    if head.kind == "means":
        means = member.to(support.dtype) @ support / member.sum(-1, keepdim=True)
        weight, bias = 2 * means.T, -means.square().sum(-1)
    else:
        a = heads.coefficients(head, gram, member.unsqueeze(0))[0]
        weight, bias = support.T @ a, a.sum(0)
    return Classifier(classes, support, target, head, weight, bias, temperature, tried)
