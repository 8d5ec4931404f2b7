"""SNAIL: what an answer sees, against the whole net written out item by item, and what the parts see of time."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import Identity, random, vectors
from torch import Tensor

from metarun import inner
from metarun.adaptation import adapt
from metarun.algos.blackbox.snail import SNAIL, Attend, Gather
from metarun.task import Task


def reader() -> tuple[SNAIL, Task]:
    torch.manual_seed(0)
    problem, task = vectors(4, way=3, shot=3)
    return SNAIL(Identity(4), problem, length=4, filters=3, keys=[2, 3, 4], values=[3, 2, 4]).double(), task


def item_by_item(algorithm: SNAIL, items: Tensor) -> Tensor:
    """The answer to the last of the items [t, features + way], as the paper draws the net: every layer over the whole sequence."""
    for layer in algorithm.layers:
        made = []
        for t, x in enumerate(items):
            if isinstance(layer, Gather):
                earlier = items[t - layer.dilation] if t >= layer.dilation else torch.zeros_like(x)
                value, gate = (layer.both.weight @ torch.cat([earlier, x]) + layer.both.bias).chunk(2)
                new = value.tanh() * gate.sigmoid()
            else:
                part, seen = layer.attention, items[: t + 1]
                weights = (part.key(seen) @ part.query(x) / math.sqrt(len(part.query(x)))).softmax(0)
                new = weights @ part.value(seen)
            made.append(torch.cat([x, new]))
        items = torch.stack(made)
    return algorithm.head(items[-1])


@torch.no_grad()
def test_answers_after_every_example_are_those_of_the_sequence_so_far() -> None:
    algorithm, task = reader()
    order = inner.order(task.context.key, 9)
    x, y = task.context.support.x[order], torch.nn.functional.one_hot(task.context.support.y[order], 3).double()
    states = [*adapt(algorithm, task.context, 9)]
    for k, state in enumerate(states):
        read = torch.cat([x, y], 1)[:k]
        for query, answer in zip(task.query.x, algorithm.predict(state, task.query.x)):
            asked = torch.cat([query, torch.zeros(3)])
            torch.testing.assert_close(answer, item_by_item(algorithm, torch.cat([read, asked[None]])), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layer", [Gather(3, 2, 1), Gather(3, 2, 4), Attend(3, 2, 2)])
@torch.no_grad()
def test_no_layer_sees_what_comes_later(layer: Gather | Attend) -> None:
    layer, x, times = layer.double(), random(8, 3), torch.arange(8)
    whole = layer(x, x, times)
    for t in range(8):
        other = torch.cat([x[: t + 1], random(7 - t, 3, seed=1)])
        torch.testing.assert_close(layer(other, other, times)[: t + 1], whole[: t + 1])
        assert t == 7 or not torch.allclose(layer(other, other, times)[t + 1], whole[t + 1])


def test_convolutions_together_see_every_step_of_their_length() -> None:
    """Those of length 8 have dilations 1, 2, 4; an item depends on the seven before it and on none earlier."""
    problem, _ = vectors(4, way=3, shot=3)
    algorithm = SNAIL(Identity(4), problem, length=8, filters=3, keys=[1, 1, 1], values=[1, 1, 1]).double()
    block = [layer for layer in algorithm.layers if isinstance(layer, Gather)][:3]
    assert [layer.dilation for layer in block] == [1, 2, 4]
    x = random(12, block[0].both.in_features // 2).requires_grad_()
    seen = x
    for layer in block:
        seen = layer(seen, seen, torch.arange(12))
    (slope,) = torch.autograd.grad(seen[-1].sum(), x)
    assert (slope != 0).any(1).tolist() == [False] * 4 + [True] * 8


def test_attention_adds_to_one_over_what_may_be_seen() -> None:
    layer, x = Attend(3, 2, 2).double(), random(5, 3)
    mask = torch.arange(5) <= torch.arange(5)[:, None]
    weights = layer.attention.weights(x, x, mask)[0]
    torch.testing.assert_close(weights.sum(-1), torch.ones(5).double())
    assert (weights[~mask] == 0).all()


def test_it_has_three_attentions() -> None:
    problem, _ = vectors(4, way=3, shot=3)
    with pytest.raises(ValueError, match=r"algo.keys=\[2, 3\] and algo.values=\[2, 3, 4\] are sizes of three attentions"):
        SNAIL(Identity(4), problem, length=4, filters=3, keys=[2, 3], values=[2, 3, 4])
