"""CAVIA: weights that stay, a context that starts from nothing, and input concatenation by another name."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import classification, engine, in_float64, meta_gradient, regression, relative_error, small
from torch import Tensor

from metarun.adaptation import adapt
from metarun.algos.gradient.cavia import CAVIA
from metarun.task import Task, select


def sines() -> tuple[CAVIA, Task]:
    values = regression("cavia", "net.activation=tanh", "algo.context_size=5")
    values["algo"]["inner_lr"] = 1.0
    return in_float64(values, tasks=2)


def concatenated(algorithm: CAVIA, context: Tensor, x: Tensor) -> Tensor:
    """The answers of the net whose first layer is given [x, c]."""
    first, second = algorithm.net.linears
    inputs = torch.cat([x, context.expand(len(x), -1)], 1)
    hidden = torch.tanh(F.linear(inputs, torch.cat([first.weight, first.film.weight], 1), first.bias))
    return algorithm.head(torch.tanh(second(hidden)))


def test_on_vectors_it_is_concatenation_to_the_input() -> None:
    algorithm, tasks = sines()
    losses = []
    for i in range(2):
        task = select(tasks, i)
        context = torch.zeros(5, dtype=torch.float64, requires_grad=True)
        for _ in range(2):
            loss = algorithm.problem.loss(concatenated(algorithm, context, task.context.support.x), task.context.support.y)
            context = context - torch.autograd.grad(loss, context, create_graph=True)[0]
        losses.append(algorithm.problem.loss(concatenated(algorithm, context, task.query.x), task.query.y))
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(sum(losses) / 2, list(algorithm.parameters()))])
    assert relative_error(meta_gradient(algorithm, tasks, engine()), expected) < 1e-10


@pytest.mark.parametrize(("name", "value"), [("inner_lr", 0.0), ("inner_steps", 0)])
def test_a_context_that_cannot_move_is_joint_training(name: str, value: float) -> None:
    algorithm, tasks = sines()
    setattr(algorithm, name, value)
    losses = [algorithm.problem.loss(algorithm(x, x), y) for x, y in zip(*tasks.query)]
    weights = dict(zip(algorithm.parameters(), torch.autograd.grad(sum(losses) / 2, list(algorithm.parameters()))))
    assert not weights[algorithm.net.linears[0].film.weight].any()
    expected = torch.cat([grad.flatten() for grad in weights.values()])
    assert relative_error(meta_gradient(algorithm, tasks, engine()), expected) < 1e-12


@pytest.mark.parametrize("net", ["conv4", "mlp", "resnet12"])
def test_only_the_context_adapts_and_answers_depend_on_it(net: str) -> None:
    algorithm, tasks = in_float64(small("algo=cavia", f"net={net}"), tasks=1)
    context = select(tasks, 0).context
    states = list(adapt(algorithm, context, 2))
    assert [set(state.fast) for state in states] == [{algorithm.context}] * 3
    assert not states[0].fast[algorithm.context].any()
    assert states[-1].fast[algorithm.context].norm() > 0
    assert not algorithm.get_buffer(algorithm.context).any()  # of the algorithm itself: tasks do not leak into each other
    first, last = (algorithm.predict(state, tasks.query.x[0]) for state in (states[0], states[-1]))
    assert (first - last).abs().max() > 1e-6


def test_without_context_the_net_is_what_it_would_be_alone() -> None:
    algorithm, tasks = in_float64(classification("cavia"), tasks=1)
    maml, _ = in_float64(classification("maml"), tasks=1)
    maml.load_state_dict(algorithm.state_dict(), strict=False)
    x = tasks.query.x[0]
    torch.testing.assert_close(algorithm(x, x), maml(x, x))


def test_the_context_scales_and_shifts_one_layer() -> None:
    algorithm, tasks = in_float64(classification("cavia"), tasks=1)
    layer = algorithm.net.get_submodule(algorithm.net.modulated)
    seen = []
    layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    layer.register_forward_hook(lambda _, inputs, output: seen.append(output))
    context = torch.linspace(-1, 1, 16, dtype=torch.float64)
    layer.context.copy_(context)
    algorithm(tasks.query.x[0], tasks.query.x[0])
    (inputs, *rest), output = seen
    scale, shift = layer.film(context).chunk(2)
    expected = layer.forward(inputs, *rest) * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    torch.testing.assert_close(output, expected)
