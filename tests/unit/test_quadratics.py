"""Quadratic functions as tasks: shapes, distributions, the value of the function, independence of batching, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import quadratics, same

from metarun.data.quadratics import QuadraticEpisodes, Quadratics
from metarun.errors import UserError
from metarun.problem import EpisodeSpec, Regression
from metarun.run import Run
from metarun.task import select

SPEC = EpisodeSpec(way=1, shot=10, query=10)


def make(split: str = "train", seed: int = 0, size: int = 10, distribution: Any = "uniform") -> QuadraticEpisodes:
    return Quadratics(0, size=size, distribution=distribution).episodes(split, SPEC, seed)


def test_shapes_and_that_the_function_is_support_and_query() -> None:
    tasks = make(size=4).batch(range(3))
    assert tasks.context.support.x.shape == (3, 4, 4)
    assert tasks.context.support.y.shape == (3, 4, 1)
    assert same(tasks.query, tasks.context.support)
    assert tasks.query.x.dtype == torch.float32
    assert (tasks.context.classes.shape, tasks.context.key.shape) == ((3, 1), (3,))
    data = Quadratics(0, size=4, distribution="normal")
    assert (data.input_shape, data.kind) == ((4,), Regression(summed=True))


@pytest.mark.parametrize(("distribution", "mean", "std"), [("uniform", 0.5, 12**-0.5), ("normal", 0.0, 1.0)])
def test_entries_are_drawn_from_the_distribution(distribution: str, mean: float, std: float) -> None:
    entries = make(distribution=distribution).entries(range(2000))[1]
    assert entries.shape == (2000, 10, 11)
    assert entries.mean() == pytest.approx(mean, abs=0.01)
    assert entries.std() == pytest.approx(std, rel=0.01)
    if distribution == "uniform":
        assert 0 <= entries.min() < entries.max() < 1
    else:
        assert ((entries**4).mean(), (entries**3).mean()) == (pytest.approx(3, abs=0.1), pytest.approx(0, abs=0.05))
    rows = entries.reshape(-1, 11)
    assert np.abs(np.corrcoef(rows.T) - np.eye(11)).max() < 0.05


def test_the_score_is_the_value_of_the_function() -> None:
    run = Run(quadratics())
    task = select(run.episodes("test").batch([5]), 0)
    state = run.algorithm.begin(task.context)
    theta, (rows, y) = state.fast["head.weight"][0], task.query
    value = float((rows @ theta - y[:, 0]).square().sum())
    answer = run.algorithm.predict(state, rows)
    assert float(run.problem.score(answer, y)) == pytest.approx(value)
    assert float(run.problem.loss(answer, y)) == pytest.approx(value)
    assert (run.problem.metric, run.problem.higher_is_better) == ("sse", False)


def test_an_episode_depends_on_seed_split_and_index_alone() -> None:
    together, alone = make().batch([7, 3]), make().batch([3])
    assert same(select(together, 1), select(alone, 0))
    hashes = {
        make().sha256(8),
        make("val").sha256(8),
        make("test").sha256(8),
        make(seed=1).sha256(8),
        make(distribution="normal").sha256(8),
    }
    assert len(hashes) == 5
    assert make().sha256(8) == make().sha256(8)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(UserError, match=r"no vall split, only train, val, test; did you mean 'val'\?"):
        make("vall")
