"""iMAML on quadratics: the closed minimum, the closed meta-gradient, its limits, and a memory that the inner steps do not fill."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from helpers import Identity, engine, in_float64, meta_gradient, relative_error, small
from torch import Tensor
from torch.nn.utils import vector_to_parameters
from torch.utils._pytree import tree_leaves

from metarun.adaptation import adapt
from metarun.algos.gradient.imaml import IMAML
from metarun.problem import EpisodeSpec, Problem, Regression
from metarun.task import Batch, Context, Task, select

F64 = torch.float64


def quadratic(**values: Any) -> tuple[IMAML, Task]:
    """iMAML on linear regression, no hidden layer, and one task."""
    torch.manual_seed(0)
    spec = EpisodeSpec(way=1, shot=5, query=4)
    problem = Problem(Regression(), (3,), 1, 0, spec, spec)
    settings = {"inner_lr": 0.2, "inner_steps": 200, "test_steps": 200, "proximal": 0.5, "cg_steps": 4, "damping": 0.0, **values}
    support, query = torch.randn(1, 5, 4, dtype=F64), torch.randn(1, 4, 4, dtype=F64)
    context = Context(Batch(support[..., :3], support[..., 3:]), torch.zeros(1, 1, dtype=torch.int64), torch.arange(1), {})
    return IMAML(Identity(3), problem, **settings).double(), Task(context, Batch(query[..., :3], query[..., 3:]))


def normal_equations(batch: Batch) -> tuple[Tensor, Tensor]:
    """A and b with gradient A w − b of the mean squared error, a bias being the last weight."""
    x = torch.cat([batch.x[0], torch.ones_like(batch.x[0, :, :1])], -1)
    return 2 * x.T @ x / len(x), 2 * x.T @ batch.y[0, :, 0] / len(x)


def solution(tasks: Task, theta: Tensor, proximal: float) -> Tensor:
    a, b = normal_equations(tasks.context.support)
    return torch.linalg.solve(a + proximal * torch.eye(4, dtype=F64), b + proximal * theta)


def theta_of(algorithm: IMAML) -> Tensor:
    return torch.cat([algorithm.head.weight[0], algorithm.head.bias]).detach()


def query_gradient(tasks: Task, weights: Tensor) -> Tensor:
    a, b = normal_equations(tasks.query)
    return a @ weights - b


def test_the_inner_loop_ends_at_the_closed_minimum() -> None:
    algorithm, tasks = quadratic()
    *_, state = adapt(algorithm, select(tasks, 0).context, 200)
    expected = solution(tasks, theta_of(algorithm), 0.5)
    torch.testing.assert_close(torch.cat([state.fast["head.weight"][0], state.fast["head.bias"]]), expected, rtol=1e-8, atol=1e-10)


def test_the_meta_gradient_is_closed_and_agrees_with_finite_differences() -> None:
    algorithm, tasks = quadratic()
    actual, theta = meta_gradient(algorithm, tasks, engine()), theta_of(algorithm)
    hessian, _ = normal_equations(tasks.context.support)
    closed = torch.linalg.solve(torch.eye(4, dtype=F64) + hessian / 0.5, query_gradient(tasks, solution(tasks, theta, 0.5)))
    torch.testing.assert_close(actual, closed, rtol=1e-7, atol=1e-9)
    for i in range(4):
        losses = []
        for sign in (1, -1):
            moved = theta.clone()
            moved[i] += sign * 1e-5
            vector_to_parameters(moved, algorithm.parameters())
            losses.append(engine().meta_gradient(algorithm, tasks, 0.0)["loss"])
        vector_to_parameters(theta, algorithm.parameters())
        assert float(actual[i]) == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-6)


def test_held_infinitely_strongly_it_is_the_plain_query_gradient() -> None:
    algorithm, tasks = quadratic(proximal=1e7, inner_lr=1e-8, inner_steps=50)
    plain = query_gradient(tasks, theta_of(algorithm))
    assert relative_error(meta_gradient(algorithm, tasks, engine()), plain) < 1e-5


def test_not_held_at_all_the_initialisation_does_not_matter() -> None:
    algorithm, tasks = quadratic(proximal=1e-5, inner_steps=600, cg_steps=12)
    plain = query_gradient(tasks, theta_of(algorithm))
    assert meta_gradient(algorithm, tasks, engine()).norm() < 1e-3 * plain.norm()


def test_damping_shortens_the_meta_gradient() -> None:
    (plain, tasks), (damped, _) = quadratic(), quadratic(damping=1.0)
    hessian, _ = normal_equations(tasks.context.support)
    target = query_gradient(tasks, solution(tasks, theta_of(damped), 0.5))
    expected = torch.linalg.solve(2 * torch.eye(4, dtype=F64) + hessian / 0.5, target)
    actual = meta_gradient(damped, tasks, engine())
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-9)
    assert actual.norm() < meta_gradient(plain, tasks, engine()).norm()


def test_an_inner_loop_that_is_not_held_ends_at_the_supports_own_minimum_and_the_system_stays() -> None:
    algorithm, tasks = quadratic(inner_proximal=0.0, inner_steps=2000, proximal=12.0, damping=1.0)
    hessian, b = normal_equations(tasks.context.support)
    target = query_gradient(tasks, torch.linalg.solve(hessian, b))
    expected = torch.linalg.solve(2 * torch.eye(4, dtype=F64) + hessian / 12, target)
    torch.testing.assert_close(meta_gradient(algorithm, tasks, engine()), expected, rtol=1e-6, atol=1e-8)


def test_memory_does_not_depend_on_the_inner_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, tasks = in_float64(small("algo=imaml", "net=mlp"), tasks=1)
    step = algorithm.step
    made: list[weakref.ref[Tensor]] = []
    most = []

    def watched(state: Any, context: Any, k: int) -> Any:
        result = step(state, context, k)
        made.extend(weakref.ref(leaf) for leaf in result.fast.values())
        most.append(sum(ref() is not None for ref in made))
        return result

    monkeypatch.setattr(algorithm, "step", watched)
    algorithm.inner_steps = 12
    engine("loop").meta_gradient(algorithm, tasks, 0.0)
    assert len(most) == 12
    assert max(most) <= 2 * len(algorithm.learner())  # this state and the one before it


def test_no_graph_is_kept_through_steps_and_solver() -> None:
    algorithm, tasks = in_float64(small("algo=imaml", "net=mlp"), tasks=1)
    task = select(tasks, 0)
    states = list(adapt(algorithm, task.context, 3))
    assert not any(leaf.requires_grad for leaf in tree_leaves([states, algorithm.meta_gradient(states[-1], task)]))
