"""Siamese networks: symmetric, b for equal inputs, one-shot answers without b, pairs half same and half different, and what they learn."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import Identity, in_float64, slopes, small, vectors
from torch import Tensor

from metarun.algos.metric.siamese import Siamese
from metarun.task import Batch, Context, Task


def siamese(way: int = 3, shot: int = 1) -> tuple[Siamese, Task]:
    """One with weights of no particular kind on plain vectors."""
    problem, task = vectors(features=4, way=way, shot=shot)
    model = Siamese(Identity(4), problem, scale=10.0).double()
    model.weight.data.copy_(torch.tensor([-1.0, 0.5, -2.0, -0.1]))
    model.bias.data.fill_(0.3)
    return model, task


def context(x: Tensor) -> Context:
    """A support of one example per class."""
    return Context(Batch(x, torch.arange(len(x))), torch.arange(len(x)), torch.tensor(0), {})


def answers(model: Siamese, task: Task) -> Tensor:
    return model.predict(model.begin(task.context), task.query.x)


def test_a_score_is_a_weighted_componentwise_distance() -> None:
    model, task = siamese()
    for i, x in enumerate(task.query.x):
        for c, other in enumerate(task.context.support.x):
            expected = sum(w * abs(a - b) for w, a, b in zip(model.weight, x, other)) + 0.3
            torch.testing.assert_close(answers(model, task)[i, c], expected)


def test_which_of_a_pair_comes_first_does_not_matter() -> None:
    model, task = siamese()
    x, other = task.query.x, task.context.support.x
    one_way, other_way = model.predict(model.begin(context(other)), x), model.predict(model.begin(context(x)), other)
    torch.testing.assert_close(one_way, other_way.T)


def test_equal_inputs_score_b() -> None:
    model, task = siamese()
    x = task.query.x
    torch.testing.assert_close(model.predict(model.begin(context(x)), x).diagonal(), model.bias.expand(len(x)))


def test_one_shot_answers_do_not_depend_on_b() -> None:
    model, task = siamese()
    before = answers(model, task)
    model.bias.data.fill_(-7.0)
    after = answers(model, task)
    assert torch.equal(after.argmax(-1), before.argmax(-1))
    torch.testing.assert_close(after.softmax(-1), before.softmax(-1))


def test_a_class_of_several_shots_is_the_mean_of_its_pairs() -> None:
    model, task = siamese(shot=3)
    scores = model.scores(model.begin(task.context), task.query.x)
    torch.testing.assert_close(answers(model, task), scores.view(-1, 3, 3).mean(-1))


@pytest.mark.parametrize("way", [2, 5])
def test_the_loss_is_the_cross_entropy_of_pairs_half_same_and_half_different(way: int) -> None:
    model, task = siamese(way, shot=2)
    state = model.begin(task.context)
    loss, metrics = model.objective([state], task, 0.0)
    same, different = [], []
    for score, y in zip(model.scores(state, task.query.x), task.query.y):
        for s, c in zip(score, task.context.support.y):
            (same if c == y else different).append(-F.logsigmoid(s if c == y else -s))
    assert len(different) == (way - 1) * len(same)
    torch.testing.assert_close(loss, (torch.stack(same).mean() + torch.stack(different).mean()) / 2)
    assert metrics["accuracy"] == model.problem.score(answers(model, task), task.query.y)


def test_before_training_features_that_differ_by_a_half_on_average_are_even_odds() -> None:
    problem, _ = vectors(features=4, way=3, shot=1)
    model = Siamese(Identity(4), problem, scale=6.0).double()
    x = torch.zeros(3, 4).double()
    differences = torch.tensor([[0.5, -0.5, 0.5, 0.5], [0.0, 0.0, 1.0, -1.0], [0.0, 0.0, 0.0, 0.1]]).double()
    scores = model.predict(model.begin(context(x)), x + differences)[:, 0]
    torch.testing.assert_close(scores, torch.tensor([0.0, 0.0, 6 * (0.5 - 0.025)]).double())


def test_its_gradient_is_that_of_finite_differences() -> None:
    algorithm, tasks = in_float64(small("algo=siamese", "net=mlp", "net.sizes=[8]", "net.activation=tanh"), tasks=2)
    by_gradient, by_differences = slopes(algorithm, tasks)
    assert by_gradient == pytest.approx(by_differences, rel=1e-6)
