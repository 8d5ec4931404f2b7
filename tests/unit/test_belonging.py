"""The score of belonging and its threshold: the formula by hand, and the share of members that is refused in many supports."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from metarun.predict.belonging import PRIOR, calibrated
from metarun.predict.classifier import directions, learn


def support(way: int, shot: int, seed: int, features: int = 16) -> tuple[torch.Tensor, np.ndarray, torch.Tensor]:
    """Directions of a support, its labels, and one further member of every class."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(way, features, generator=generator, dtype=torch.float64)
    y = np.repeat(np.arange(way), shot + 1)
    x = directions(centres[y] + 0.7 * torch.randn(len(y), features, generator=generator, dtype=torch.float64))
    new = np.arange(len(y)) % (shot + 1) == shot
    return x[~new], y[~new], x[new]


def test_spread_score_and_threshold_by_hand() -> None:
    squares = np.array([[1.0, 9.0], [3.0, 8.0], [9.0, 2.0], [9.0, 4.0]])  # of two examples of each class
    found = calibrated(squares, np.array([0, 0, 1, 1]), np.full(4, True), 0.5)
    common = (1 + 3 + 2 + 4) / 4
    spread = np.array([(1 + 3 + PRIOR * common) / (2 + PRIOR), (2 + 4 + PRIOR * common) / (2 + PRIOR)])
    np.testing.assert_allclose(found.spread, spread)
    np.testing.assert_allclose(found.score(np.array([[2.0, 6.0]])), [-min(2 / spread[0], 6 / spread[1])])
    common = (3 + 2 + 4) / 3  # without the first
    assert -1 / ((3 + PRIOR * common) / (1 + PRIOR)) == pytest.approx(found.left_out[-1])
    assert found.threshold == found.left_out[1]  # the second lowest: half of five places
    assert found.held == 2 / 5


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_that_share_of_members_is_refused(rate: float) -> None:
    refused = []
    for seed in range(150):
        x, y, new = support(4, 8, seed)
        learned = learn(x, [str(i) for i in y], rate)
        refused += (learned.answer(new)[1] < learned.belonging.threshold).tolist()
    # A member has one example more in its class than those left out: it is refused a little less.
    assert rate - 0.08 < np.mean(refused) < rate + 0.03


def test_few_examples_allow_no_low_rate() -> None:
    x, y, _ = support(3, 3, 0)
    found = learn(x, [str(i) for i in y], 0.01).belonging
    assert found.threshold == found.left_out.min()
    assert found.held == 1 / 10


def test_no_rate_no_threshold() -> None:
    x, y, _ = support(3, 3, 0)
    assert learn(x, [str(i) for i in y], 0.0).belonging.threshold == -math.inf


def test_one_example_of_a_class_has_no_spread() -> None:
    x, y, new = support(3, 1, 0)
    learned = learn(x, [str(i) for i in y], 0.05)
    assert learned.belonging.threshold == -math.inf
    assert np.isfinite(learned.answer(new)[1]).all()


def test_outsiders_score_lower_than_members() -> None:
    x, y, new = support(4, 8, 3)
    learned = learn(x, [str(i) for i in y], 0.05)
    outside = directions(torch.randn(50, 16, generator=torch.Generator().manual_seed(9), dtype=torch.float64))
    assert np.median(learned.answer(outside)[1]) < learned.answer(new)[1].min()
