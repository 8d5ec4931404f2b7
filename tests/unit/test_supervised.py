"""Training from random weights: rules against torch's optimizers, minibatches that use up the support, gradients that are constants."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import double, quadratics, regression, same, small
from torch import nn
from torch.func import functional_call

from metarun.adaptation import adapt
from metarun.algos.optimizers._rules import RULES
from metarun.errors import UserError
from metarun.experiment import train
from metarun.run import Run
from metarun.task import Task, select

OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p, rate: torch.optim.SGD(p, rate),
    "momentum": lambda p, rate: torch.optim.SGD(p, rate, momentum=0.9),
    "nesterov": lambda p, rate: torch.optim.SGD(p, rate, momentum=0.9, nesterov=True),
    "rmsprop": lambda p, rate: torch.optim.RMSprop(p, rate),
    "adam": lambda p, rate: torch.optim.Adam(p, rate),
}


def built(*words: str) -> tuple[Any, Task]:
    """A small tanh net on sine waves, and a task, in float64."""
    run = Run(regression("supervised", "net.sizes=[6]", "net.activation=tanh", *words))
    return run.algorithm.double(), double(select(run.episodes("train").batch([1]), 0))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("batch", [0, 2])
def test_a_rule_is_torchs_optimizer(rule: str, batch: int) -> None:
    algorithm, task = built(f"algo.rule={rule}", "algo.rate=0.02", f"algo.batch={batch}")
    weights = {name: w.clone().requires_grad_() for name, w in algorithm.weights(task.context.key).items()}
    theirs = OPTIMIZERS[rule](list(weights.values()), 0.02)
    for k, state in enumerate(adapt(algorithm, task.context, 30)):
        for name, w in weights.items():
            torch.testing.assert_close(state.fast[name], w.detach(), rtol=1e-6, atol=1e-9)
        x, y = algorithm.examples(task.context, k)
        theirs.zero_grad()
        nn.functional.mse_loss(functional_call(algorithm, weights, (x, x)), y).backward()
        theirs.step()
    assert max(float((w.detach() - state.fast[name]).abs().max()) for name, w in weights.items()) > 1e-6  # the last step moved them


def test_every_rule_of_torch_is_there() -> None:
    assert set(RULES) == set(OPTIMIZERS)


def test_minibatches_are_keyed_and_use_up_the_support() -> None:
    algorithm, task = built("algo.batch=2")  # of 5 points
    seen = [tuple(algorithm.examples(task.context, k).x[:, 0].tolist()) for k in range(5)]
    points = task.context.support.x[:, 0].tolist()
    flat = [x for pair in seen for x in pair]
    assert sorted(flat[:5]) == sorted(flat[5:]) == sorted(points)
    assert [tuple(algorithm.examples(task.context, torch.tensor(k)).x[:, 0].tolist()) for k in range(5)] == seen
    other = task.context._replace(key=task.context.key + 1)
    assert [tuple(algorithm.examples(other, k).x[:, 0].tolist()) for k in range(5)] != seen
    assert algorithm.ordered
    full, _ = built("algo.batch=0")
    assert same(full.examples(task.context, 3), task.context.support)
    assert not full.ordered


def test_it_has_nothing_to_learn_and_its_curve_is_that_of_training(tmp_path: Any) -> None:
    summary = train(quadratics("algo=supervised", "algo.rule=nesterov", "algo.rate=0.05", "algo.test_steps=40"), tmp_path)
    curve = [point["mean"] for point in summary["test"]["curve"]]
    assert (summary["iterations"], len(curve)) == (0, 41)
    assert curve[-1] < 0.2 * curve[0]


def test_more_steps_reach_what_the_support_says() -> None:
    """A linear model on a quadratic function: the least squares solution."""
    run = Run(quadratics("algo=supervised", "algo.rule=adam", "algo.rate=0.1"))
    algorithm, task = run.algorithm.double(), double(select(run.episodes("train").batch([0]), 0))
    rows, y = task.context.support
    *_, last = adapt(algorithm, task.context, 4000)
    solution = torch.linalg.lstsq(rows, y).solution
    torch.testing.assert_close(last.fast["head.weight"], solution.T, rtol=1e-3, atol=1e-3)


def test_population_statistics_are_refused() -> None:
    with pytest.raises(UserError, match=r"net\.norm=running is not for nets that every task trains from scratch"):
        Run(small("algo=supervised", "net.norm=running"))


@pytest.mark.parametrize("init", [0.0, 0.1])
def test_a_norms_scale_and_shift_begin_as_they_are_and_are_trained(init: float) -> None:
    run = Run(small("algo=supervised", "net.hidden=4", "net.norm=batch", "algo.rate=0.1", f"algo.init={init}"))
    task = select(run.episodes("train").batch([0]), 0)
    first, *_, last = adapt(run.algorithm, task.context, 3)
    norms = [name for name in first.fast if "norm" in name]
    assert norms
    for name in norms:
        assert torch.equal(first.fast[name], torch.ones(4) if name.endswith("weight") else torch.zeros(4))
    assert any(not torch.equal(last.fast[name], first.fast[name]) for name in norms)
