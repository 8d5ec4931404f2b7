"""Hypergradients: a step against torch's SGD, unrolled ones against finite differences, implicit ones against a ridge regression."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import double, meta_gradient, regression, relative_error, slopes
from helpers import engine as plain_engine
from torch import Tensor
from torch.func import functional_call

from metarun.adaptation import adapt
from metarun.run import Run
from metarun.task import Task, select


def built(*words: str, **settings: Any) -> tuple[Any, Task]:
    """A learner on sine waves, and a stacked task, in float64."""
    values = regression("hyperparameters", "shot=6", "query=4", *words)
    values["algo"] |= settings
    run = Run(values)
    algorithm, tasks = run.algorithm.double(), double(run.episodes("train").batch([3]))
    with torch.no_grad():
        apart = torch.linspace(-0.5, 0.5, len(algorithm.log_decays), dtype=torch.float64)
        algorithm.log_decays.add_(apart)
        algorithm.log_rates.add_(-apart)
    return algorithm, tasks


SMOOTH = ("net.sizes=[5]", "net.activation=tanh")
RIDGE = ("net.sizes=[]",)  # a line, whose training has a solution


def gradient(algorithm: Any, tasks: Task) -> Tensor:
    meta_gradient(algorithm, tasks, plain_engine("loop"))
    found = algorithm.log_decays.grad
    return found


def test_a_step_is_torchs_sgd_with_momentum_and_decay() -> None:
    algorithm, tasks = built(*SMOOTH, rate=0.05, momentum=0.8, decay=0.3)
    task = select(tasks, 0)
    weights = {name: w.clone().requires_grad_() for name, w in algorithm.weights(task.context.key).items()}
    groups = [
        {"params": [w], "lr": float(rate.exp()), "weight_decay": float(decay.exp())}
        for w, rate, decay in zip(weights.values(), algorithm.log_rates.detach(), algorithm.log_decays.detach())
    ]
    theirs = torch.optim.SGD(groups, momentum=0.8)
    x, y = task.context.support
    for state in adapt(algorithm, task.context, 12):
        for name, w in weights.items():
            torch.testing.assert_close(state.fast[name].detach(), w.detach(), rtol=1e-6, atol=1e-7)
        theirs.zero_grad()
        torch.nn.functional.mse_loss(functional_call(algorithm, weights, (x, x)), y).backward()
        theirs.step()


@pytest.mark.parametrize("seed", range(3))
def test_unrolled_gradients_are_finite_differences(seed: int) -> None:
    """In rates, decays and momentum at once, through twelve steps."""
    algorithm, tasks = built(*SMOOTH, rate=0.05, decay=0.1, inner_steps=12)
    slope, difference = slopes(algorithm, tasks, seed, step=1e-5)
    assert abs(difference) > 1e-4
    assert slope == pytest.approx(difference, rel=1e-5)


def solved(algorithm: Any, tasks: Task, log_decays: Tensor) -> Tensor:
    """The query loss of the exact minimum of the penalised loss of a line."""
    (x, y), query = tasks.context.support, tasks.query
    rows, unseen = (torch.cat([part[0], torch.ones_like(part[0])], 1) for part in (x, query.x))
    # The mean squared error's Hessian is 2/n XᵀX.
    system = 2 / len(rows) * rows.T @ rows + log_decays.exp().diag()
    weights = torch.linalg.solve(system, 2 / len(rows) * rows.T @ y[0])
    return (unseen @ weights - query.y[0]).square().mean()


def exact(algorithm: Any, tasks: Task) -> Tensor:
    """d L_query / d log λ by central differences of the solution."""
    steps = 1e-5 * torch.eye(2, dtype=torch.float64)
    at = algorithm.log_decays.detach()
    return torch.stack([(solved(algorithm, tasks, at + e) - solved(algorithm, tasks, at - e)) / 2e-5 for e in steps])


def test_implicit_gradients_of_ridge_regression_are_finite_differences_of_its_solution() -> None:
    found = {}
    for way, terms in (("cg", 2), ("neumann", 600)):
        algorithm, tasks = built(*RIDGE, gradient=way, terms=terms, rate=0.05, decay=0.5, inner_steps=400)
        found[way] = gradient(algorithm, tasks)
        assert relative_error(found[way], exact(algorithm, tasks)) < 1e-5
        assert algorithm.log_rates.grad is algorithm.logit_momentum.grad is None


def test_a_long_unroll_comes_to_the_implicit_gradient() -> None:
    errors = []
    for steps in (20, 40, 80):
        algorithm, tasks = built(*RIDGE, rate=0.05, momentum=0.3, decay=0.5, inner_steps=steps)
        errors.append(relative_error(gradient(algorithm, tasks), exact(algorithm, tasks)))
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[-1] < 1e-2


def test_more_terms_of_the_neumann_series_come_nearer_until_the_rate_is_too_large() -> None:
    errors = []
    algorithm, tasks = built(*RIDGE, gradient="neumann", rate=0.05, decay=0.5, inner_steps=400)
    for terms in (10, 40, 160):
        algorithm.terms = terms
        errors.append(relative_error(gradient(algorithm, tasks), exact(algorithm, tasks)))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    rows = torch.cat([tasks.context.support.x[0], torch.ones(6, 1, dtype=torch.float64)], 1)
    algorithm.rate = 2.5 / float(torch.linalg.eigvalsh(2 / 6 * rows.T @ rows).max())
    assert relative_error(gradient(algorithm, tasks), exact(algorithm, tasks)) > 1e3


def test_cg_solves_the_system_of_a_net() -> None:
    """H v = ∇L_query at a minimum of a small tanh net, with the Hessian written out."""
    algorithm, tasks = built("net.sizes=[2]", "net.activation=tanh", gradient="cg", terms=30, rate=0.1, decay=0.3)
    task = select(tasks, 0)
    *_, last = adapt(algorithm, task.context, 150)
    v = algorithm.inverse(last.fast, task)
    names = list(last.fast)
    x, y = task.context.support

    def penalised(*weights: Tensor) -> Tensor:
        return algorithm.penalised(dict(zip(names, weights)), algorithm.named(algorithm.log_decays.detach().exp()), x, y)

    def query_loss(*weights: Tensor) -> Tensor:
        return algorithm.problem.loss(functional_call(algorithm, dict(zip(names, weights)), (task.query.x, x)), task.query.y)

    leaves = tuple(w.detach() for w in last.fast.values())
    blocks = torch.autograd.functional.hessian(penalised, leaves)
    matrix = torch.cat([torch.cat([b.reshape(r.numel(), c.numel()) for b, c in zip(row, leaves)], 1) for row, r in zip(blocks, leaves)])
    slope = torch.func.grad(query_loss, tuple(range(len(leaves))))(*leaves)
    expected = torch.linalg.solve(matrix, torch.cat([g.flatten() for g in slope]))
    torch.testing.assert_close(torch.cat([v[name].flatten() for name in names]), expected, rtol=1e-6, atol=1e-8)
