"""The LSTM reader: what it has seen when it answers, how it reads, and that a task lasts as long as its support."""

from __future__ import annotations

import pytest
import torch
from helpers import Identity, classification, in_float64, same, vectors
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.adaptation import adapt
from metarun.algos.blackbox._reader import Reading
from metarun.algos.blackbox.lstm import LSTM
from metarun.predict.trained import Model
from metarun.run import Run
from metarun.task import Batch, Context, Task, select


def reader(pairs: bool, layers: int = 1) -> tuple[LSTM, Task]:
    torch.manual_seed(0)
    problem, task = vectors(4, way=3, shot=2)
    return LSTM(Identity(4), problem, hidden=5, layers=layers, pairs=pairs).double(), task


def in_order(context: Context) -> Tensor:
    """Places of the support's examples in the order of reading."""
    found = adapt(reader(False)[0], context, 0)
    first: Reading = next(iter(found))
    return (first.features[:, None] == context.support.x).all(-1).int().argmax(1)


@pytest.mark.parametrize("pairs", [True, False])
def test_it_is_torchs_lstm_on_the_sequence_of_examples_and_labels_before(pairs: bool) -> None:
    algorithm, task = reader(pairs, layers=2)
    order = in_order(task.context)
    x, y = task.context.support.x[order], torch.nn.functional.one_hot(task.context.support.y[order], 3).double()
    before = torch.cat([x, y], 1) if pairs else y
    before = torch.cat([torch.zeros_like(before[:1]), before])
    other = torch.nn.LSTM(before.shape[1] + 4, 5, num_layers=2).double()
    for layer, cell in enumerate(algorithm.cells):
        weights, bias = cell.gates.weight, cell.gates.bias
        swap = torch.cat([torch.arange(10), torch.arange(15, 20), torch.arange(10, 15)])  # torch: read, forget, new, write
        getattr(other, f"weight_ih_l{layer}").data = weights[swap, :-5]
        getattr(other, f"weight_hh_l{layer}").data = weights[swap, -5:]
        getattr(other, f"bias_ih_l{layer}").data = bias[swap]
        getattr(other, f"bias_hh_l{layer}").data.zero_()
    *_, state = adapt(algorithm, task.context, 6)
    answers = algorithm.predict(state, task.query.x)
    for query, answer in zip(task.query.x, answers):
        sequence = torch.cat([torch.cat([x, query[None]]), before], 1)
        outputs = algorithm.head(other(sequence)[0])
        torch.testing.assert_close(answer, outputs[-1], rtol=1e-9, atol=1e-9)
    losses = torch.nn.functional.cross_entropy(outputs[:-1], task.context.support.y[order])
    torch.testing.assert_close(state.losses / 6, losses, rtol=1e-9, atol=1e-9)
    loss, metrics = algorithm.objective([state], task, 0.0)
    torch.testing.assert_close(loss, metrics["loss"] + losses, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_an_answer_does_not_know_its_own_label_nor_those_to_come() -> None:
    algorithm, task = reader(True)
    order = in_order(task.context)
    for k in range(6):
        y = task.context.support.y.clone()
        y[order[k:]] = (y[order[k:]] + 1) % 3
        other = task.context._replace(support=Batch(task.context.support.x, y))
        states = [list(adapt(algorithm, context, 6))[k] for context in (task.context, other)]
        assert torch.equal(*(algorithm.predict(state, task.query.x) for state in states))
        if k < 5:
            later = [list(adapt(algorithm, context, 6))[k + 1] for context in (task.context, other)]
            assert not torch.equal(*(algorithm.predict(state, task.query.x) for state in later))


@torch.no_grad()
def test_a_task_takes_as_many_steps_as_it_has_examples_and_no_more_change_anything() -> None:
    algorithm, task = reader(True)
    assert algorithm.steps(task.context, True) == algorithm.steps(task.context, False) == 6
    fewer = task.context._replace(support=tree_map(lambda leaf: leaf[:4], task.context.support))
    assert algorithm.steps(fewer, False) == 4
    *_, last, more = adapt(algorithm, task.context, 7)
    assert same(last, more)


def test_every_episode_is_read_in_an_order_of_its_own() -> None:
    _, tasks = in_float64(classification("lstm"), tasks=3)
    _, task = reader(True)
    orders = [in_order(task.context._replace(key=key)).tolist() for key in tasks.context.key]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len(set(map(tuple, orders))) == 3


def test_from_python_it_reads_as_many_examples_as_it_is_given() -> None:
    run = Run(classification("lstm"))
    model = Model(run.algorithm.eval().requires_grad_(False), "lstm", "patterns", None, torch.tensor(3))
    x = select(run.episodes("test").batch([0]), 0).query.x[:5]
    state, all_of_them, fewer = (model.adapt(x, [0, 0, 1, 1, 2], steps=steps).state for steps in (None, 5, 4))
    assert len(state.targets) == 5
    assert same(state, all_of_them)
    assert not torch.equal(state.memory.cells, fewer.memory.cells)
