"""MANN: a literal re-implementation of its memory in NumPy, where it writes, and what counts as least used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import Identity, random, vectors
from torch import Tensor, nn

from metarun import inner
from metarun.adaptation import adapt
from metarun.algos.blackbox.mann import EMPTY, MANN, least_used
from metarun.task import Task

SLOTS, WIDTH, HEADS, HIDDEN, DECAY = 9, 3, 2, 5, 0.8


def reader(sharpen: bool, bind: bool, pairs: bool = True) -> tuple[MANN, Task]:
    torch.manual_seed(0)
    problem, task = vectors(4, way=3, shot=2)
    sizes = {"hidden": HIDDEN, "slots": SLOTS, "width": WIDTH, "heads": HEADS, "decay": DECAY}
    return MANN(Identity(4), problem, **sizes, sharpen=sharpen, bind=bind, pairs=pairs).double(), task


def literally(algorithm: MANN, inputs: np.ndarray) -> list[np.ndarray]:
    """Answers to a sequence of inputs, slot by slot, as the paper's section 3 says."""

    def linear(layer: nn.Linear, x: np.ndarray) -> np.ndarray:
        return layer.weight.detach().numpy() @ x + (0 if layer.bias is None else layer.bias.detach().numpy())

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    memory = np.full((SLOTS, WIDTH), EMPTY)
    h, c, found, usage = np.zeros(HIDDEN), np.zeros(HIDDEN), np.zeros(HEADS * WIDTH), np.eye(SLOTS)[0]
    read, keys = [np.eye(SLOTS)[0]] * HEADS, np.zeros((HEADS, WIDTH))
    answers = []
    for x in inputs:
        i, f, o, g = np.split(linear(algorithm.cell.gates, np.concatenate([x, h, found])), 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        last = keys
        if algorithm.value:
            keys = np.tanh(linear(algorithm.key, h) + linear(algorithm.look, x[:4])).reshape(HEADS, WIDTH)
            values = last + np.tanh(linear(algorithm.value, h)).reshape(HEADS, WIDTH)
        else:
            values = keys = np.tanh(linear(algorithm.key, h)).reshape(HEADS, WIDTH)
        gates = sigmoid(linear(algorithm.gate, h))
        by_usage = sorted(range(SLOTS), key=lambda slot: (usage[slot], slot))
        least = np.array([float(slot in by_usage[:HEADS]) for slot in range(SLOTS)])
        written = [gate * where + (1 - gate) * least for gate, where in zip(gates, read)]
        memory = memory.copy()
        memory[by_usage[0]] = 0
        for where, value in zip(written, values):
            for slot in range(SLOTS):
                memory[slot] += where[slot] * value
        read = []
        for head, key in enumerate(keys):
            sharpness = 1 + np.log1p(np.exp(linear(algorithm.strength, h)[head])) if algorithm.strength else 1.0
            alike = [sharpness * (key @ slot) / (np.linalg.norm(key) * np.linalg.norm(slot)) for slot in memory]
            read.append(np.exp(alike) / np.exp(alike).sum())
        found = np.concatenate([where @ memory for where in read])
        usage = DECAY * usage + sum(read) + sum(written)
        answers.append(linear(algorithm.head, np.concatenate([h, found])))
    return answers


@pytest.mark.parametrize(("sharpen", "bind", "pairs"), [(True, True, True), (False, False, False)])
def test_it_is_the_papers_memory_read_and_written_slot_by_slot(sharpen: bool, bind: bool, pairs: bool) -> None:
    algorithm, task = reader(sharpen, bind, pairs)
    order = inner.order(task.context.key, 6)
    x, y = task.context.support.x[order], F.one_hot(task.context.support.y[order], 3).double()
    before = torch.cat([x, y], 1) if pairs else y
    before = torch.cat([torch.zeros_like(before[:1]), before])
    *_, state = adapt(algorithm, task.context, 6)
    for query, answer in zip(task.query.x, algorithm.predict(state, task.query.x)):
        expected = literally(algorithm, torch.cat([torch.cat([x, query[None]]), before], 1).numpy())
        np.testing.assert_allclose(answer.detach(), expected[-1], rtol=1e-9, atol=1e-9)
    losses = F.cross_entropy(torch.tensor(np.array(expected[:-1])), task.context.support.y[order])
    torch.testing.assert_close(state.losses / 6, losses, rtol=1e-9, atol=1e-9)


def test_what_a_head_reads_by_adds_to_one() -> None:
    algorithm, task = reader(True, True)
    for state in [*adapt(algorithm, task.context, 6)][1:]:
        torch.testing.assert_close(state.memory.reading.sum(-1), torch.ones(HEADS).double())
        assert (state.memory.reading > 0).all()


def writing(gate: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Slots before and after, where was written, and the usage before, with all gates at this value."""
    algorithm, _ = reader(True, True)
    slots, values, usage = random(SLOTS, WIDTH), random(HEADS, WIDTH, seed=1), random(SLOTS, seed=2).abs()
    reading = random(HEADS, SLOTS, seed=3).softmax(-1)
    after, where = algorithm.write(slots, reading, usage, torch.full((HEADS,), gate).double(), values)
    return slots, after, where, usage


def test_a_closed_gate_writes_to_the_slots_used_least_and_nowhere_else() -> None:
    slots, after, where, usage = writing(0.0)
    least = usage.argsort()[:HEADS]
    changed = (after != slots).any(1).nonzero()[:, 0]
    assert changed.tolist() == sorted(least.tolist())
    assert where[:, least].eq(1).all()
    assert where.sum() == HEADS * HEADS


def test_an_open_gate_writes_where_was_read_last() -> None:
    *_, where, _ = writing(1.0)
    torch.testing.assert_close(where, random(HEADS, SLOTS, seed=3).softmax(-1))


def test_what_has_just_been_used_is_not_used_least_while_others_are_unused() -> None:
    usage = torch.zeros(SLOTS).double()
    usage[0] = 1.0
    for _ in range(SLOTS // HEADS - 1):
        chosen = least_used(usage, HEADS)
        assert (usage[chosen] == 0).all()
        usage = DECAY * usage
        usage[chosen] += 1
    assert least_used(torch.tensor([0.5, 0.0, 0.2, 0.0]), 3).tolist() == [1, 3, 2]


def test_it_has_as_many_slots_as_heads_at_least() -> None:
    problem, _ = vectors(4, way=3, shot=2)
    with pytest.raises(ValueError, match=r"algo.heads=4 write to as many slots each time, and there are algo.slots=3"):
        MANN(Identity(4), problem, hidden=5, slots=3, width=2, heads=4, decay=0.9, sharpen=True, bind=True, pairs=True)
