"""Meta-SGD: constant rates are MAML, and a rate's meta-gradient is −g_query ∘ g_support."""

from __future__ import annotations

import pytest
import torch
from helpers import engine, in_float64, meta_gradient, relative_error, slopes, small
from torch.func import functional_call

from metarun.adaptation import adapt
from metarun.algos.gradient.metasgd import MetaSGD
from metarun.task import Task, select

WORDS = ["net=mlp", "net.activation=tanh", "algo.inner_lr=0.25"]


def metasgd(steps: int, tasks: int = 2, *words: str) -> tuple[MetaSGD, Task]:
    values = small("algo=metasgd", *WORDS, *words)
    values["algo"]["inner_steps"] = steps
    return in_float64(values, tasks)


@pytest.mark.parametrize("mode", ["unroll", "mixed", "none"])
def test_constant_rates_are_maml(mode: str) -> None:
    algorithm, tasks = metasgd(2, 2, f"algo.mode={mode}")
    maml, _ = in_float64(small("algo=maml", *WORDS, f"algo.mode={mode}"))
    expected = meta_gradient(maml, tasks, engine())
    assert relative_error(meta_gradient(algorithm, tasks, engine())[: len(expected)], expected) < 1e-12


@pytest.mark.parametrize("first_order", ["true", "false"])
def test_the_gradient_of_the_rates_is_minus_query_times_support_gradient(first_order: str) -> None:
    algorithm, tasks = metasgd(1, 1, f"algo.first_order={first_order}")
    task = select(tasks, 0)
    *_, state = adapt(algorithm, task.context, 1)
    fast = {name: weight.detach().requires_grad_() for name, weight in state.fast.items()}
    x, y = task.query
    query = torch.autograd.grad(algorithm.problem.loss(functional_call(algorithm, fast, (x, x)), y), list(fast.values()))
    support = algorithm.support_gradient(algorithm.learner(), task.context, "none").values()
    meta_gradient(algorithm, tasks, engine())
    for rate, g_query, g_support in zip(algorithm.rates, query, support, strict=True):
        torch.testing.assert_close(rate.grad, -g_query * g_support, rtol=1e-9, atol=1e-14)


def test_the_meta_gradient_agrees_with_finite_differences() -> None:
    by_gradient, by_differences = slopes(*metasgd(2))
    assert by_gradient == pytest.approx(by_differences, rel=1e-5)


def test_a_negative_rate_climbs() -> None:
    algorithm, tasks = metasgd(1, 1)
    context = select(tasks, 0).context
    for rate in algorithm.rates:
        rate.data.fill_(-0.05)
    x, y = context.support
    first, last = (algorithm.problem.loss(algorithm.predict(state, x), y) for state in adapt(algorithm, context, 1))
    assert last > first
