"""Classifiers on features that stay as they are: nearest class means, ridge regression, logistic regression; chosen, and judged, by what
they make of labelled examples that were left out. All of it on inner products of examples, whatever the number of features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metarun.protocols.calibration import fitted_temperature, nll

BYTES = 2**28  # of matrices [masks, n, n] at a time
STEPS, FURTHER = 300, 60  # of the logistic regression: from nothing, and from its solution on all examples once some are left out
FOLDS = 10  # the most: leaving out two of them besides is many masks


class Head(NamedTuple):
    """A way to tell classes apart."""

    kind: Literal["means", "ridge", "logistic"]
    strength: float = 0.0  # of the penalty: λ of the ridge, 1 / C of the logistic regression

    @property
    def name(self) -> str:
        """In a report."""
        return {
            "means": "nearest class means",
            "ridge": f"ridge regression, penalty {self.strength:g}",
            "logistic": f"logistic regression, penalty {self.strength:g}",
        }[self.kind]


# From the simplest on: of equally good ones the first is taken.
HEADS = (Head("means"), Head("ridge", 1.0), Head("ridge", 0.1), Head("logistic", 1.0), Head("logistic", 0.1))


def left_out(head: Head, gram: Tensor, y: Tensor, way: int, kept: Tensor) -> Tensor:
    """Logits [masks, n, way] of all n examples by a head that saw those of a mask alone.

    Args:
        gram: [n, n] inner products of the examples.
        y: [n] int64 labels.
        kept: [masks, n] bool.
    """
    classes = torch.arange(way).unsqueeze(1)
    whole = None if head.kind == "means" else coefficients(head, gram, (y == classes).unsqueeze(0))
    step = max(1, BYTES // (gram.numel() * gram.element_size()))
    return torch.cat([_left_out(head, gram, part.unsqueeze(1) & (y == classes), whole) for part in kept.split(step)])


def _left_out(head: Head, gram: Tensor, member: Tensor, whole: Tensor | None) -> Tensor:
    if head.kind == "means":
        weights = member.to(gram.dtype) / member.sum(-1, keepdim=True).clamp(min=1)
        products = weights @ gram  # [masks, way, n]
        logits = (2 * products - (products * weights).sum(-1, keepdim=True)).mT - gram.diagonal().unsqueeze(-1)
    else:
        logits = (gram + 1) @ coefficients(head, gram, member, whole)
    # A class of which no example is left is as unlikely as the least likely of the others.
    there = member.any(-1).unsqueeze(1)
    least = logits.masked_fill(~there, torch.inf).amin(-1, keepdim=True)
    return torch.where(there, logits, least)


def coefficients(head: Head, gram: Tensor, member: Tensor, near: Tensor | None = None) -> Tensor:
    """A [masks, n, way] of the answer (x, 1) · Σ_i A_i (x_i, 1); zero for examples that belong to no class of ``member`` [masks, way, n].

    Args:
        near: A [1, n, way] of all examples, from which the search for a head without a closed form sets out.
    """
    target, kept = member.mT.to(gram.dtype), member.any(1).to(gram.dtype).unsqueeze(-1)
    gram, eye = gram + 1, torch.eye(len(gram), dtype=gram.dtype)
    masked = kept * gram * kept.mT
    if head.kind == "ridge":
        return torch.linalg.solve(masked + head.strength * eye, target)
    return _logistic(gram, torch.linalg.inv(masked / 2 + head.strength * eye), kept, target, near)


def _logistic(gram: Tensor, inverse: Tensor, kept: Tensor, target: Tensor, near: Tensor | None) -> Tensor:
    """argmin_A  Σ_i CE(f_i, y_i) + penalty / 2 tr(Aᵀ G A),  f = G A: the bias is penalised like all weights.

    By the upper bound ½ I of the softmax's curvature (Böhning 1992), so that one factorisation, the ``inverse`` of ½ G + penalty I over the
    examples ``kept``, serves all steps, with Nesterov's momentum. As many steps whatever comes of them, so that no mask depends on others.
    """
    a = ahead = torch.zeros_like(target) if near is None else near * kept
    momentum = torch.ones_like(kept[:, :1])  # [masks, 1, 1]
    for _ in range(STEPS if near is None else FURTHER):
        f = gram @ ahead
        new = inverse @ ((f / 2 + target - f.softmax(-1)) * kept)
        # Momentum that leads uphill is lost (O'Donoghue & Candès 2015).
        uphill = ((ahead - new) * (new - a)).sum((1, 2), keepdim=True) > 0
        momentum = torch.where(uphill, 1.0, momentum)
        following = (1 + (1 + 4 * momentum**2).sqrt()) / 2
        a, ahead = new, new + (momentum - 1) / following * (new - a)
        momentum = following
    return a


@dataclass(frozen=True)
class Tried:
    """What heads make of examples that they have not seen.

    Attributes:
        heads: those that were tried.
        folds: [n] int64, which examples are left out together.
        without: of each head [folds, n, way]: logits of example i where fold a and the fold of i are left out.
        possible: [folds, n] bool: whether an example of its class is left then.
        y: [n] int64.
    """

    heads: Sequence[Head]
    folds: np.ndarray
    without: Sequence[np.ndarray]
    possible: np.ndarray
    y: np.ndarray

    @property
    def way(self) -> int:
        """How many classes there are."""
        return self.without[0].shape[-1]

    @property
    def how(self) -> str:
        """How examples were left out, in words."""
        return f"{len(self.possible)}-fold cross-validation"

    @property
    def once(self) -> np.ndarray:
        """[n] bool: examples that can be judged, having another one of their class in a fold of its own."""
        return self.possible[self.folds, np.arange(len(self.y))]

    def alone(self, head: int) -> np.ndarray:
        """Logits [n, way] of every example by a head that saw all folds but its own."""
        return self.without[head][self.folds, np.arange(len(self.y))]

    def best(self) -> int:
        """The head that does best on examples left out."""
        return self._best([self.alone(head) for head in range(len(self.heads))], self.once)

    def nested(self) -> np.ndarray:
        """Logits [folds, n, way] as of one of ``without``: of every example by the head that is best on the examples of the other folds,
        each left out in its turn.
        """
        chosen = [
            self._best([logits[fold] for logits in self.without], self.possible[fold] & (self.folds != fold))
            for fold in range(len(self.possible))
        ]
        return np.stack(self.without)[np.array(chosen)[self.folds], :, np.arange(len(self.y))].swapaxes(0, 1)

    def _best(self, answers: Sequence[np.ndarray], judged: np.ndarray) -> int:
        """By the likelihood of the labels at each head's own best temperature, which tells more than a small number of errors."""
        if not judged.any():
            return 0
        y = self.y[judged]
        losses = []
        for logits in answers:
            found = logits[judged]
            losses.append(float(nll(found / temperature(found, y), y).mean()))
        return int(np.argmin(losses))


def temperature(logits: np.ndarray, y: np.ndarray) -> float:
    """As ``fitted_temperature``, its targets softened as Platt's (1999): n examples without an error do not prove that none comes."""
    return fitted_temperature(logits, y, softened=1 / (len(y) + 2))[0]


def tried(gram: Tensor, y: np.ndarray, way: int, heads: Sequence[Head] = HEADS) -> Tried:
    """What each head makes of every example, without its fold and without each other fold besides."""
    folds = folds_of(y)
    count, n = int(folds.max()) + 1, len(y)
    pairs = [(a, b) for a in range(count) for b in range(a, count)]
    out = np.stack([(folds == a) | (folds == b) for a, b in pairs])
    first, second = np.array(pairs).T
    labels = torch.from_numpy(y)
    possible = np.zeros((count, n), bool)
    there = np.stack([np.bincount(y[~mask], minlength=way)[y] > 0 for mask in out])
    without = []
    for head in heads:
        logits = left_out(head, gram, labels, way, torch.from_numpy(~out)).numpy()
        found = np.zeros((count, n, way), logits.dtype)
        for answer, possibly, a, b in zip(logits, there, first, second):
            for one, other in {(a, b), (b, a)}:
                rows = folds == other
                found[one, rows], possible[one, rows] = answer[rows], possibly[rows]
        without.append(found)
    return Tried(heads, folds, without, possible, y)


def folds_of(y: np.ndarray) -> np.ndarray:
    """Which examples are left out together, [n]: one of each class, of many examples a tenth of each.

    What is left then has as many of each class as before, or one less of each. An example that is left out by itself leaves its own class
    the smallest, which is then the less likely answer: of two examples a class, that makes a third of all answers wrong.
    """
    count = min(FOLDS, int(np.bincount(y).max()))
    folds, following = np.empty(len(y), int), 0
    for c in np.unique(y):
        rows = np.flatnonzero(y == c)
        folds[rows] = (following + np.arange(len(rows))) % count  # smaller classes are spread over all folds
        following += len(rows)
    return folds
