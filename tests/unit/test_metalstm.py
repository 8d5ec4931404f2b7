"""Meta-LSTM: gradient descent as a special case, the paper's cells in numpy, and what no gradient goes through."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers import double, in_float64, meta_gradient, regression
from torch.func import functional_call

from metarun.adaptation import adapt
from metarun.contract.measures import engine
from metarun.run import Run
from metarun.task import Task, select

F64 = torch.float64


def built(*words: str) -> tuple[Any, Task]:
    """The method with a small tanh net on sine waves, and a task, in float64."""
    run = Run(regression("metalstm", "net.sizes=[4]", "net.activation=tanh", *words))
    return run.algorithm.double(), double(select(run.episodes("train").batch([1]), 0))


def slope(algorithm: Any, fast: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> tuple[float, np.ndarray]:
    """Loss and gradient [coordinates] of a mean squared error, by plain autograd."""
    weights = {name: w.detach().requires_grad_() for name, w in fast.items()}
    loss = (functional_call(algorithm, weights, (x, x)) - y).square().mean()
    grads = torch.autograd.grad(loss, list(weights.values()))
    return float(loss.detach()), torch.cat([g.flatten() for g in grads]).numpy()


@pytest.mark.parametrize(("rate", "decay"), [(0.05, 1.0), (0.0, 1.0), (0.05, 0.95)])
def test_constant_gates_are_gradient_descent_with_decay(rate: float, decay: float) -> None:
    algorithm, task = built()
    with torch.no_grad():
        for gate, value in ((algorithm.gates.rate, rate), (algorithm.gates.decay, decay)):
            gate.weight.zero_()
            gate.bias.copy_(torch.logit(torch.tensor([value], dtype=F64)))
    theta = np.concatenate([w.detach().numpy().ravel() for w in algorithm.learner().values()])
    for state in adapt(algorithm, task.context, 4):
        now = np.concatenate([w.detach().numpy().ravel() for w in state.fast.values()])
        np.testing.assert_allclose(now, theta, rtol=1e-12, atol=1e-14)
        theta = decay * theta - rate * slope(algorithm, state.fast, *task.context.support)[1]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def seen(x: np.ndarray, p: float = 10.0) -> np.ndarray:
    """The paper's preprocessing."""
    large = np.abs(x) >= math.exp(-p)
    return np.stack([np.where(large, np.log(np.abs(x) + (x == 0)) / p, -1), np.where(large, np.sign(x), math.exp(p) * x)], -1)


def test_it_is_what_numpy_makes_of_the_equations() -> None:
    algorithm, task = built("algo.hidden=3", "algo.batch=2")
    with torch.no_grad():
        for p in algorithm.gates.parameters():  # far from where they begin, so that every input of theirs counts
            p.copy_(torch.linspace(-0.7, 0.6, p.numel(), dtype=F64).view_as(p))
    gates = [(g.weight.detach().numpy()[0], g.bias.detach().numpy()) for g in (algorithm.gates.rate, algorithm.gates.decay)]
    matrix, bias = (w.detach().numpy() for w in (algorithm.cell.gates.weight, algorithm.cell.gates.bias))
    theta = np.concatenate([w.detach().numpy().ravel() for w in algorithm.learner().values()])
    h = c = np.zeros((len(theta), 3))
    i, f = np.zeros(len(theta)), np.ones(len(theta))
    for k, state in enumerate(adapt(algorithm, task.context, 5)):
        now = np.concatenate([w.detach().numpy().ravel() for w in state.fast.values()])
        np.testing.assert_allclose(now, theta, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(state.output.detach().numpy(), h, rtol=1e-9, atol=1e-12)
        loss, g = slope(algorithm, state.fast, *algorithm.examples(task.context, k))
        inputs = np.concatenate([seen(g), np.tile(seen(np.array(loss)), (len(g), 1)), h], 1)
        read, forget, write, new = np.split(inputs @ matrix.T + bias, 4, -1)
        c = sigmoid(forget) * c + sigmoid(read) * np.tanh(new)
        h = sigmoid(write) * np.tanh(c)
        i, f = (
            sigmoid(h @ weight[:3] + weight[3] * theta + weight[4] * before + b) for (weight, b), before in zip(gates, (i, f))
        )  # fmt: skip
        theta = f * theta - i * g


def test_beside_the_first_weights_nothing_depends_on_the_net() -> None:
    small, large = (built(f"net.sizes=[{width}]")[0] for width in (4, 9))
    others = [{name: p.shape for name, p in a.named_parameters() if not name.startswith(("net.", "head."))} for a in (small, large)]
    assert others[0] == others[1]
    assert all(p.requires_grad for p in small.parameters())


def test_cells_see_constants() -> None:
    """The gradient goes through the weights and the gates, not through losses and slopes: no second derivatives."""
    algorithm, task = built()
    loss, gradient = algorithm.slope(algorithm.learner(), task.context.support)
    assert not loss.requires_grad
    assert not gradient.requires_grad
    values = regression("metalstm", "net.sizes=[4]")
    algorithm, tasks = in_float64(values, tasks=2)
    with torch.no_grad():
        algorithm.gates.rate.weight.zero_()  # so that the step is θ − i ∇ with a constant i, and f = 1 nearly
        algorithm.gates.decay.weight.zero_()
        algorithm.gates.decay.bias.fill_(40.0)
    found = meta_gradient(algorithm, tasks, engine())
    weights = sum(p.numel() for name, p in algorithm.named_parameters() if name.startswith(("net.", "head.")))
    expected = torch.zeros(weights, dtype=F64)
    for i in range(2):
        task = select(tasks, i)
        *_, last = adapt(algorithm, task.context, algorithm.inner_steps)
        expected += torch.from_numpy(slope(algorithm, last.fast, *task.query)[1]) / 2
    names = [name for name, _ in algorithm.named_parameters()]
    sizes = [p.numel() for p in algorithm.parameters()]
    mine = torch.cat([part for name, part in zip(names, found.split(sizes)) if name.startswith(("net.", "head."))])
    torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-12)  # as of first-order MAML


def test_minibatches_are_what_makes_it_ordered() -> None:
    assert built("algo.batch=2")[0].ordered
    assert not built()[0].ordered
