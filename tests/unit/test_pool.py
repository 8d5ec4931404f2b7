"""Max-pooling against torch's own: values and derivatives of both kinds and orders, for one task and for many."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import random
from torch import Tensor

from metarun.kernels.ops.max_pool import max_pool

Pooling = Callable[[Tensor], Tensor]


@pytest.fixture(params=[False, True], ids=["floor", "ceil"])
def pair(request: pytest.FixtureRequest) -> tuple[Pooling, Pooling]:
    """Ours, and torch's."""
    return lambda x: max_pool(x, ceil=request.param), lambda x: F.max_pool2d(x, 2, ceil_mode=request.param)


def derivatives(pool: Pooling, x: Tensor, direction: Tensor) -> list[Tensor]:
    """Value, tangent, gradient, and the gradient's product with a direction by both modes, of a loss that is not linear."""

    def loss(x: Tensor) -> Tensor:
        return (pool(x).sin() ** 2).sum()

    value, tangent = torch.func.jvp(pool, (x,), (direction,))
    gradient, forward = torch.func.jvp(torch.func.grad(loss), (x,), (direction,))
    _, back = torch.func.vjp(torch.func.grad(loss), x)
    return [value, tangent, gradient, forward, back(direction)[0]]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(4, 6), (5, 7), (2, 3)])
def test_values_and_derivatives_are_torchs(pair: tuple[Pooling, Pooling], size: tuple[int, int], layout: torch.memory_format) -> None:
    x, direction = (random(3, 2, *size, seed=seed).to(memory_format=layout) for seed in (0, 1))
    ours, theirs = (derivatives(pool, x, direction) for pool in pair)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_tasks_at_once_are_tasks_one_by_one(pair: tuple[Pooling, Pooling]) -> None:
    x, direction = random(4, 3, 2, 5, 6), random(4, 3, 2, 5, 6, seed=1)
    ours, theirs = pair
    together = torch.vmap(lambda *task: derivatives(ours, *task), in_dims=(1, 1), out_dims=1)(x.movedim(0, 1), direction.movedim(0, 1))
    alone = [derivatives(theirs, *task) for task in zip(x, direction)]
    for many, one in zip(together, zip(*alone), strict=True):
        torch.testing.assert_close(many, torch.stack(one, 1))


def test_many_directions_at_one_point(pair: tuple[Pooling, Pooling]) -> None:
    """Where only what is sent back has an axis of tasks."""
    x, cotangents = random(2, 3, 4, 4), random(5, 2, 3, 2, 2, seed=1)
    backs = [torch.vmap(torch.func.vjp(pool, x)[1])(cotangents)[0] for pool in pair]
    torch.testing.assert_close(*backs)
