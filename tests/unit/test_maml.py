"""MAML against closed forms: linear regression, no steps, tiny steps, linear losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import Identity, engine, in_float64, meta_gradient, relative_error, small
from torch import Tensor

from metarun.algos.gradient.maml import MAML
from metarun.problem import EpisodeSpec, Problem, Regression
from metarun.protocols.episodes import EVERY
from metarun.task import Batch, Context, Task

F64 = torch.float64
SPEC = EpisodeSpec(way=1, shot=5, query=4)


def linear_maml(problem_class: type[Problem] = Problem, **values: Any) -> tuple[MAML, Task]:
    """MAML on linear regression, no hidden layer, and two tasks."""
    torch.manual_seed(0)
    problem = problem_class(Regression(), (3,), 1, 0, SPEC, SPEC)
    settings = {"inner_lr": 0.1, "inner_steps": 3, "test_steps": 3, "first_order": False, "mode": "unroll", **values}
    support, query = torch.randn(2, 5, 4, dtype=F64), torch.randn(2, 4, 4, dtype=F64)
    context = Context(Batch(support[..., :3], support[..., 3:]), torch.zeros(2, 1, dtype=torch.int64), torch.arange(2), {})
    return MAML(Identity(3), problem, **settings).double(), Task(context, Batch(query[..., :3], query[..., 3:]))


def with_ones(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[..., :1])], -1)


@pytest.mark.parametrize("first_order", [False, True])
def test_linear_regression_has_the_closed_form_meta_gradient(first_order: bool) -> None:
    maml, tasks = linear_maml(first_order=first_order)
    actual = meta_gradient(maml, tasks, engine())
    expected = torch.zeros(4, dtype=F64)
    for i in range(2):
        (xs, ys), (xq, yq) = ((with_ones(part.x[i]), part.y[i, :, 0]) for part in (tasks.context.support, tasks.query))
        hessian = 2 * xs.T @ xs / len(xs)
        weights = torch.cat([maml.head.weight[0], maml.head.bias]).detach()
        for _ in range(3):
            weights = weights - 0.1 * 2 * xs.T @ (xs @ weights - ys) / len(xs)
        jacobian = torch.linalg.matrix_power(torch.eye(4, dtype=F64) - 0.1 * hessian, 0 if first_order else 3)
        expected += jacobian @ (2 * xq.T @ (xq @ weights - yq) / len(xq)) / 2
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def plain_gradient(maml: MAML, tasks: Task) -> Tensor:
    """The gradient of the mean query loss without any adaptation."""
    losses = [maml.problem.loss(maml(x, x), y) for x, y in zip(*tasks.query)]
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(sum(losses) / len(losses), list(maml.parameters()))])


@pytest.mark.parametrize("mode", ["unroll", "mixed"])
def test_without_steps_it_is_the_plain_query_gradient(mode: str) -> None:
    values = small("algo=maml", f"algo.mode={mode}", "net.hidden=4")
    values["algo"]["inner_steps"] = 0
    maml, tasks = in_float64(values)
    assert relative_error(meta_gradient(maml, tasks, engine()), plain_gradient(maml, tasks)) < 1e-12


def test_vanishing_steps_approach_the_plain_query_gradient() -> None:
    gaps = []
    for lr in (1e-3, 1e-5):
        maml, tasks = linear_maml(inner_lr=lr)
        gaps.append(relative_error(meta_gradient(maml, tasks, engine()), plain_gradient(maml, tasks)))
    assert gaps[1] < 1e-3
    assert gaps[0] / gaps[1] == pytest.approx(100, rel=0.05)  # first order in the step size


class LinearProblem(Problem):
    """A loss that is linear in the prediction, so its Hessian is zero for a linear learner."""

    def loss(self, prediction: Tensor, y: Tensor) -> Tensor:
        return (prediction * y).mean()


def test_first_order_equals_second_order_for_a_linear_loss_only() -> None:
    for problem, equal in ((LinearProblem, True), (Problem, False)):
        second, first = (meta_gradient(*linear_maml(problem, first_order=flag), engine()) for flag in (False, True))
        assert (relative_error(first, second) < 1e-12) == equal


def test_copies_of_a_task_give_the_gradient_of_one() -> None:
    maml, tasks = in_float64(small("algo=maml", "net.hidden=4"), tasks=1)
    copies = Task(*torch.utils._pytree.tree_map(lambda leaf: leaf.repeat(3, *[1] * (leaf.dim() - 1)), tuple(tasks)))
    assert relative_error(meta_gradient(maml, copies, engine()), meta_gradient(maml, tasks, engine())) < 1e-12


def test_adaptation_lowers_the_support_loss() -> None:
    maml, tasks = in_float64(small("algo=maml", "net.hidden=8", "algo.inner_lr=0.05"), tasks=4)
    memorised = tasks._replace(query=tasks.context.support)
    maml.test_steps = 5
    losses = engine().evaluate(maml, memorised, EVERY)["loss"].mean(0)
    assert (losses.diff() < 0).all()
