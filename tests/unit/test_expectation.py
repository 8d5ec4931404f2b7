"""The accuracy to expect of a head: the curve it is carried on by, and how often its interval holds the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metarun.predict import heads
from metarun.predict.expectation import expected, wilson
from metarun.predict.heads import Head, Tried


def tried_of(folds: list[int], y: list[int], right: np.ndarray) -> Tried:
    """One head whose answers, [folds, n], are right or not as this says."""
    n, way = len(y), max(y) + 1
    answers = np.where(right, np.array(y), (np.array(y) + 1) % way)
    logits = np.eye(way)[answers] + 0.0
    possible = np.ones((max(folds) + 1, n), bool)
    if len(possible) == 2:  # without both folds nothing is left
        possible = np.array(folds) == np.arange(2)[:, None]
    return Tried([Head("means")], np.array(folds), [logits], possible, np.array(y))


@pytest.mark.parametrize("shots", [3, 4])
def test_errors_that_fall_like_one_over_shots_and_one_are_carried_on_exactly(shots: int) -> None:
    """Of 1 − e / (s + 1): accuracies s − 1 and s − 2 examples a class, as shares of 120 answers, give that of s."""
    way, e = 120, 0.9
    folds, y = list(np.tile(np.arange(shots), way)), list(np.repeat(np.arange(way), shots))
    n = len(y)
    right = np.arange(n) % way < round(way * (1 - e / (shots - 1)))
    right = np.tile(right, (shots, 1))
    right[folds, np.arange(n)] = np.arange(n) % way < round(way * (1 - e / shots))
    assert expected(tried_of(folds, y, right)).accuracy == pytest.approx(1 - e / (shots + 1), abs=1e-3)


def test_with_two_examples_a_class_chance_is_what_it_sets_out_from() -> None:
    found = expected(tried_of([0, 1] * 4, [0, 0, 1, 1, 2, 2, 3, 3], np.tile([True, True, False, True], (2, 2))))
    assert (found.right, found.n) == (6, 8)
    assert found.accuracy == pytest.approx(3 / 4 + (3 / 4 - 1 / 4) / 3)


@pytest.mark.parametrize(("share", "n", "low", "high"), [(1, 15, 0.7961, 1), (0, 10, 0, 0.2775), (0.9, 50, 0.7864, 0.9565)])
def test_wilsons_interval(share: float, n: int, low: float, high: float) -> None:
    assert wilson(share, n) == pytest.approx((low, high), abs=1e-4)
    assert wilson(1.0, 7.3)[1] == 1.0  # not a little less, which would miss a truth of 1


def sample(random: np.random.Generator, centres: Tensor, each: int) -> tuple[Tensor, np.ndarray]:
    y = np.repeat(np.arange(len(centres)), each)
    return centres[y] + torch.from_numpy(random.normal(size=(len(y), centres.shape[1]))), y


@pytest.mark.parametrize(("way", "shot"), [(5, 5), (10, 2)])
def test_the_interval_holds_the_truth_of_gaussian_classes(way: int, shot: int) -> None:
    """Nineteen times in twenty is promised; of 60 draws fewer than 50 would have a probability below 0.001. And carrying the accuracy on
    takes away more than half of what it is short of."""
    random, held, off, raw = np.random.default_rng(0), 0, [], []
    for _ in range(60):
        centres = torch.from_numpy(0.6 * random.normal(size=(way, 16)))
        x, y = sample(random, centres, shot)
        gram = x @ x.T
        found: Any = expected(heads.tried(gram, y, way, (Head("means"),)))
        asked, truth = sample(random, centres, 100)
        means = torch.stack([x[y == c].mean(0) for c in range(way)])
        true = float((torch.cdist(asked, means).argmin(1).numpy() == truth).mean())
        held += found.low <= true <= found.high
        off.append(found.accuracy - true)
        raw.append(found.right / found.n - true)
    assert held >= 50
    assert abs(np.mean(off)) < abs(np.mean(raw)) / 2
