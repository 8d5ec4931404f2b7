"""The accuracy that labelled examples let expect of a head that has learned from all of them, with an interval: by cross-validation,
in which every head has fewer of them, carried on to all."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from metarun.predict.heads import Tried


class Expected(NamedTuple):
    """An accuracy and its 95 % interval.

    Attributes:
        accuracy: None where no example can be tried, as are the ends of the interval.
        right, n: answers in the cross-validation that were right, and all.
    """

    accuracy: float | None
    low: float | None
    high: float | None
    right: int
    n: int

    def record(self) -> dict[str, float | int | None]:
        """As JSON has it."""
        return self._asdict()


def expected(tried: Tried) -> Expected:
    """What to expect of further examples of the same classes.

        a = a₁ + (a₁ − a₂) (s₂ + 1) / (s + 1),   s₂ = s (K − 2) / K

    a₁ is the accuracy on each of the K folds by the head that was chosen and fitted without it, a₂ that without another fold besides, s the
    mean number of examples of a class: errors are taken to fall like 1 / (s + 1), and the answer without any example (K = 2) to be chance.

    The interval is Wilson's (1927) for n / (1 + K / (K − 1)) answers in place of n. The K heads share most of their examples and learn
    from what others are tried on, so that accuracies of different supports differ by more than n independent answers would: their
    variance is taken for 1 / K + 1 / (K − 1) of that of one fold, in place of 1 / K (Nadeau & Bengio 2003, "Inference for the
    generalization error": 1 / J + n₂ / n₁ of J trials with n₂ examples tried and n₁ learned from).
    """
    once, way, count, folds = tried.once, tried.way, len(tried.possible), np.arange(len(tried.y))
    if not once.any():
        return Expected(None, None, None, 0, 0)
    right = tried.nested().argmax(-1) == tried.y  # [folds, n], of each fold left out beside the example's own
    own = tried.folds == np.arange(count)[:, None]
    first = right[tried.folds, folds].astype(float)
    further = tried.possible & ~own
    twice = further.any(0)
    shots = len(tried.y) / way
    if twice.any():
        second = (right & further)[:, twice].sum(0) / further[:, twice].sum(0)
        gained = float((first[twice] - second).mean())
    else:
        gained = float(first[once].mean()) - 1 / way
    accuracy = float(np.clip(first[once].mean() + gained * (shots * (count - 2) / count + 1) / (shots + 1), 0, 1))
    n = int(once.sum())
    low, high = wilson(accuracy, n / (1 + count / (count - 1)))
    return Expected(accuracy, low, high, int(first[once].sum()), n)


def wilson(share: float, n: float, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share of n (Wilson 1927): it is never empty, nor beyond 0..1."""
    square = z * z / n
    middle = (share + square / 2) / (1 + square)
    half = z * (share * (1 - share) / n + square / (4 * n)) ** 0.5 / (1 + square)
    return (0.0 if share == 0 else middle - half), (1.0 if share == 1 else middle + half)
