"""The LSTM optimizer: every coordinate alike, gradient descent as a special case, the paper's preprocessing, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import double, quadratics, same
from torch import Tensor, nn

from metarun import inner
from metarun.adaptation import adapt
from metarun.algos.optimizers._scratch import flat
from metarun.algos.optimizers.lstm_optimizer import LSTMOptimizer
from metarun.errors import UserError
from metarun.run import Run
from metarun.task import Task, select

F64 = torch.float64


def built(*words: str) -> tuple[LSTMOptimizer, Task]:
    """The method and a training task, in float64."""
    run = Run(quadratics(*words))
    algorithm: Any = run.algorithm.double()
    return algorithm, double(select(run.episodes("train").batch([3]), 0))


class Straight(nn.Module):
    """A cell that hands its input on."""

    def forward(self, x: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        return x[..., : cell.shape[-1]], cell


def test_a_linear_map_of_the_gradient_is_gradient_descent() -> None:
    """The degenerate form without a memory: u = −rate · g."""
    algorithm, task = built("algo.layers=1", "algo.hidden=1", "algo.scale=0.5")
    algorithm.cells = nn.ModuleList([Straight()])
    with torch.no_grad():
        algorithm.update.weight.fill_(-0.04)
        algorithm.update.bias.zero_()
    rows, y = task.context.support
    theta = algorithm.weights(task.context.key)["head.weight"][0]
    for state in adapt(algorithm, task.context, 6):
        torch.testing.assert_close(state.fast["head.weight"][0], theta, rtol=1e-12, atol=1e-14)
        theta = theta - 0.02 * 2 * rows.T @ (rows @ theta - y[:, 0])


GATES = "algo.output=gates"


@pytest.mark.parametrize("words", [[], ["algo.preprocess=10"], ["algo.layers=1"], [GATES], [GATES, "algo.layers=1"]])
def test_permuted_coordinates_have_permuted_updates(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm, task = built(*words)
    order = torch.tensor([2, 0, 1])
    rows, start = task.context.support.x, algorithm.weights(task.context.key)["head.weight"]
    permuted = task.context._replace(support=task.context.support._replace(x=rows[:, order]))
    straight = list(adapt(algorithm, task.context, 5))
    monkeypatch.setattr(algorithm, "weights", lambda key: {"head.weight": start[:, order]})
    for before, after in zip(straight, adapt(algorithm, permuted, 5)):
        torch.testing.assert_close(after.fast["head.weight"], before.fast["head.weight"][:, order], rtol=1e-10, atol=1e-12)
        for here, there in zip(after.memory, before.memory):
            if isinstance(there, Tensor):
                torch.testing.assert_close(here, there[:, order], rtol=1e-10, atol=1e-12)
    assert not torch.allclose(straight[-1].fast["head.weight"], start)


def test_a_last_layer_of_zeros_leaves_the_weights_where_they_are() -> None:
    algorithm, task = built()
    for p in algorithm.update.parameters():
        nn.init.zeros_(p)
    first, *_, last = adapt(algorithm, task.context, 6)
    assert same(last.fast, first.fast)
    assert not torch.equal(last.memory.cells, first.memory.cells)  # though it remembers what it saw


def test_the_cells_are_torchs_lstm() -> None:
    algorithm, task = built("algo.layers=2")
    theirs = nn.LSTM(1, 4, num_layers=2).double()
    with torch.no_grad():
        for layer, cell in enumerate(algorithm.cells):
            weight, bias = cell.gates.weight, cell.gates.bias  # rows in the order read, forget, write, new
            order = torch.cat([torch.arange(4) + 4 * gate for gate in (0, 1, 3, 2)])  # torch: input, forget, cell, output
            size = weight.shape[1] - 4
            getattr(theirs, f"weight_ih_l{layer}").copy_(weight[order, :size])
            getattr(theirs, f"weight_hh_l{layer}").copy_(weight[order, size:])
            getattr(theirs, f"bias_ih_l{layer}").copy_(bias[order])
            getattr(theirs, f"bias_hh_l{layer}").zero_()
    states = list(adapt(algorithm, task.context, 6))
    gradients = torch.stack([flat(algorithm.slope(state.fast, task.context, k)) for k, state in enumerate(states[:-1])])
    outputs, (_, cells) = theirs(gradients[..., None])  # a sequence of 6, its batch the coordinates
    torch.testing.assert_close(states[-1].memory.outputs[-1], outputs[-1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(states[-1].memory.cells, cells, rtol=1e-10, atol=1e-12)


def test_gradients_are_seen_as_size_and_sign() -> None:
    algorithm, _ = built("algo.preprocess=10")
    values = torch.tensor([1.0, -math.exp(-4), 0.0, math.exp(-12)], dtype=F64)
    expected = [[0.0, 1.0], [-0.4, -1.0], [-1.0, 0.0], [-1.0, math.exp(-2)]]
    torch.testing.assert_close(algorithm.inputs(values), torch.tensor(expected, dtype=F64))
    values.requires_grad_()
    assert torch.autograd.grad(algorithm.inputs(values).sum(), values)[0].isfinite().all()
    plain, _ = built("algo.preprocess=0")
    assert torch.equal(plain.inputs(values), values[:, None])


def test_no_gradient_goes_through_what_it_sees() -> None:
    """The dashed edges of figure 2: a step's input is a constant, its output is not."""
    algorithm, task = built()
    states = list(adapt(algorithm, task.context, 3))
    assert not any(w.requires_grad for w in algorithm.slope(states[1].fast, task.context, 1).values())
    loss, metrics = algorithm.objective(states, task, 0.0)
    rows, y = task.query
    losses = [(rows @ state.fast["head.weight"][0] - y[:, 0]).square().sum().item() for state in states]
    assert loss.item() == pytest.approx(sum(losses[1:]))
    assert metrics["sse"].item() == pytest.approx(losses[-1])
    assert all(
        g is not None and g.abs().sum() > 0 for g in torch.autograd.grad(loss, [p for p in algorithm.parameters() if p.requires_grad])
    )


def test_only_the_optimizer_is_learned_and_every_task_begins_elsewhere() -> None:
    algorithm, _ = built()
    learned = {name for name, p in algorithm.named_parameters() if p.requires_grad}
    assert learned == {name for name, _ in algorithm.named_parameters() if name.startswith(("cells.", "update."))}
    one, other = (algorithm.weights(torch.tensor(key)) for key in (1, 2))
    assert not same(one, other)
    assert same(algorithm.weights(torch.tensor(1)), one)


def test_initial_weights_have_the_deviation_that_was_asked_for_and_nothing_to_do_with_minibatches() -> None:
    algorithm, _ = built("data.size=2000", "algo.init=0.3")
    weights = algorithm.weights(torch.tensor(4))["head.weight"][0]
    assert float(weights.std()) == pytest.approx(0.3, rel=0.05)
    uniform = inner.uniform(torch.tensor(4), (2000,))  # of the first shuffle
    assert abs(float(torch.corrcoef(torch.stack([weights.abs().float(), uniform]))[0, 1])) < 0.1


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("rate", "decay"), [(0.02, 1.0), (0.0, 1.0), (0.02, 0.9)])
def test_constant_gates_are_gradient_descent_with_decay(layers: int, rate: float, decay: float) -> None:
    algorithm, task = built(GATES, f"algo.layers={layers}")
    assert len(algorithm.cells) == layers - 1  # the last one's state is the weights
    with torch.no_grad():
        for gate, value in ((algorithm.gates.rate, rate), (algorithm.gates.decay, decay)):
            gate.weight.zero_()
            gate.bias.copy_(torch.logit(torch.tensor([value], dtype=F64)))
    rows, y = task.context.support
    theta = algorithm.weights(task.context.key)["head.weight"][0]
    for state in adapt(algorithm, task.context, 6):
        torch.testing.assert_close(state.fast["head.weight"][0], theta, rtol=1e-12, atol=1e-14)
        theta = decay * theta - rate * 2 * rows.T @ (rows @ theta - y[:, 0])


def test_gates_are_learned_and_begin_near_small_steps_downhill() -> None:
    algorithm, task = built(GATES, "algo.inner_steps=6")
    states = list(adapt(algorithm, task.context, 6))
    assert 0.005 < float(states[-1].memory.gates[0].detach().mean()) < 0.02
    assert 0.98 < float(states[-1].memory.gates[1].detach().mean()) < 1
    loss, _ = algorithm.objective(states, task, 0.0)
    learned = {name: p for name, p in algorithm.named_parameters() if p.requires_grad}
    assert {name.partition(".")[0] for name in learned} == {"cells", "gates"}
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(loss, list(learned.values())))


def test_a_horizon_that_is_no_multiple_is_refused() -> None:
    with pytest.raises(UserError, match=r"algo\.horizon=7 is no multiple of algo\.inner_steps=2"):
        Run(quadratics("algo.horizon=7"))
