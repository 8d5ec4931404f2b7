"""Tasks: stacking, selecting, and the losses and scores of both kinds of problem."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import same

from metarun.problem import Classification, EpisodeSpec, Problem, Regression
from metarun.task import Batch, Context, Task, count, select, stack, to_float

SPEC = EpisodeSpec(way=2, shot=1, query=2)
CLASSIFICATION = Problem(Classification(), (3,), 2, 9, SPEC, SPEC)
REGRESSION = Problem(Regression(), (3,), 1, 0, SPEC, SPEC)


def task(seed: int) -> Task:
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(seed))
    y = torch.tensor([0, 1, 0, 0, 1, 1])
    return Task(Context(Batch(x[:2], y[:2]), torch.tensor([4, 7]), torch.tensor(seed), {"mask": x[:1] > 0}), Batch(x[2:], y[2:]))


def test_stacking_and_selecting_are_inverse() -> None:
    tasks = [task(seed) for seed in range(3)]
    stacked = stack(tasks)
    assert count(stacked) == 3
    assert all(same(select(stacked, i), one) for i, one in enumerate(tasks))
    assert same(select(stacked, slice(1, 3)), stack(tasks[1:]))


def test_classification_is_judged_by_cross_entropy_and_accuracy() -> None:
    logits, y = torch.tensor([[0.0, math.log(3)], [2.0, 2.0], [5.0, 1.0]]), torch.tensor([1, 0, 1])
    expected = (math.log(4 / 3) + math.log(2) + math.log(1 + math.exp(4))) / 3
    assert float(CLASSIFICATION.loss(logits, y)) == pytest.approx(expected)
    assert float(CLASSIFICATION.score(logits, y)) == pytest.approx(2 / 3)
    assert (CLASSIFICATION.metric, CLASSIFICATION.higher_is_better) == ("accuracy", True)


def test_regression_is_judged_by_the_mean_squared_error() -> None:
    prediction, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [4.0]])
    assert float(REGRESSION.loss(prediction, y)) == 2.5
    assert float(REGRESSION.score(prediction, y)) == 2.5
    assert (REGRESSION.metric, REGRESSION.higher_is_better) == ("mse", False)


@pytest.mark.parametrize(("given", "kept"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_losses_are_computed_in_single_precision_at_least(given: torch.dtype, kept: torch.dtype) -> None:
    assert CLASSIFICATION.loss(torch.zeros(2, 2, dtype=given), torch.tensor([0, 1])).dtype == kept
    assert REGRESSION.loss(torch.zeros(2, 1, dtype=given), torch.zeros(2, 1)).dtype == kept


@pytest.mark.parametrize(("dtype", "largest"), [(torch.uint8, 1.0), (torch.int64, 255.0), (torch.int16, 255.0), (torch.float32, 255.0)])
def test_bytes_alone_are_pictures(dtype: torch.dtype, largest: float) -> None:
    assert to_float(torch.tensor([0, 255]).to(dtype)).tolist() == [0.0, largest]
    assert to_float(torch.tensor([False, True])).tolist() == [0.0, 1.0]
