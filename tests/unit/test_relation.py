"""Relation networks: the pairwise form of the relation net, scores in 0..1, means and sums over shots, the mean squared error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import engine, in_float64, small
from torch import Tensor

from metarun.algos.metric.relation import Relation
from metarun.protocols.episodes import LAST
from metarun.run import Run
from metarun.task import Batch, Context, Task, select

WORDS = ["net.hidden=8", "net.norm=none", "net.downs=2", "algo.hidden=8"]


def relation(*words: str) -> tuple[Any, Task]:
    algorithm, tasks = in_float64(small("algo=relation", *WORDS, *words), tasks=1)
    return algorithm, select(tasks, 0)


def scores(algorithm: Relation, context: Context, x: Tensor) -> Tensor:
    return algorithm.predict(algorithm.begin(context), x)


def test_it_equals_the_relation_net_on_every_concatenated_pair() -> None:
    algorithm, task = relation()
    (x, y), query = task.context.support, task.query.x
    maps = algorithm.net(x).unflatten(1, (8, 4, 4))
    weight = torch.cat([algorithm.of_class.weight, algorithm.of_query.weight], 1)
    for i, own in enumerate(algorithm.net(query).unflatten(1, (8, 4, 4))):
        for c in range(3):
            pair = torch.cat([maps[y == c].mean(0), own])[None]
            pair = torch.nn.functional.conv2d(pair, weight, algorithm.of_class.bias, padding=1)
            pair = torch.nn.functional.max_pool2d(pair.relu(), 2)
            pair = torch.nn.functional.max_pool2d(algorithm.conv(pair).relu(), 2)
            torch.testing.assert_close(scores(algorithm, task.context, query)[i, c], algorithm.score(pair.flatten(1))[0, 0])


def test_the_loss_is_the_squared_error_of_scores_between_0_and_1() -> None:
    algorithm, task = relation("algo.loss=mse")
    r = torch.sigmoid(scores(algorithm, task.context, task.query.x))
    assert 0 < float(r.min().detach()) <= float(r.max().detach()) < 1
    expected = ((r - torch.eye(3, dtype=r.dtype)[task.query.y]) ** 2).mean()
    loss, _ = algorithm.objective([algorithm.begin(task.context)], task, 0.0)
    torch.testing.assert_close(loss, expected)


def test_the_default_loss_is_the_cross_entropy_of_the_scores() -> None:
    algorithm, task = relation()
    expected = torch.nn.functional.cross_entropy(scores(algorithm, task.context, task.query.x), task.query.y)
    torch.testing.assert_close(algorithm.objective([algorithm.begin(task.context)], task, 0.0)[0], expected)


@pytest.mark.parametrize(("shots", "same"), [("mean", True), ("sum", False)])
def test_copies_of_an_example_change_a_sum_but_not_a_mean(shots: str, same: bool) -> None:
    algorithm, task = relation(f"algo.shots={shots}", "shot=1")
    x, y = task.context.support
    copied = task.context._replace(support=Batch(x.repeat_interleave(3, 0), y.repeat_interleave(3)))
    before, after = scores(algorithm, task.context, task.query.x), scores(algorithm, copied, task.query.x)
    assert torch.allclose(before, after, rtol=1e-9, atol=1e-9) == same


def test_a_score_depends_on_its_own_class_alone() -> None:
    algorithm, task = relation()
    x, y = task.context.support
    other = task.context._replace(support=Batch(torch.where((y == 0)[:, None, None, None], 1 - x, x), y))
    before, after = scores(algorithm, task.context, task.query.x), scores(algorithm, other, task.query.x)
    torch.testing.assert_close(after[:, 1:], before[:, 1:])
    assert not torch.allclose(after[:, 0], before[:, 0])


def test_it_begins_with_the_difference_of_the_maps() -> None:
    algorithm, task = relation("shot=1")
    x = task.context.support.x
    own = algorithm.of_query(algorithm.net(x).unflatten(1, (8, 4, 4))) + algorithm.begin(task.context).maps
    torch.testing.assert_close(own, algorithm.of_class.bias[:, None, None].expand_as(own))


def test_any_number_of_classes_and_shots_at_test() -> None:
    run = Run(small("algo=relation", *WORDS, "episode.eval.way=5", "episode.eval.shot=3"))
    assert engine().evaluate(run.algorithm, run.episodes("val").batch([0, 1]), LAST)["score"].shape == (2, 1)
