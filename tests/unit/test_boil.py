"""BOIL: a head that stays, nothing to adapt behind a zero head, and MAML's meta-gradient where the head's inner rate is zero."""

from __future__ import annotations

import pytest
import torch
from helpers import engine, in_float64, meta_gradient, relative_error, small
from torch.utils._pytree import tree_leaves

from metarun.adaptation import adapt
from metarun.algos.gradient.boil import BOIL
from metarun.errors import UserError
from metarun.run import Run
from metarun.task import Task, select


def boil(tasks: int = 2) -> tuple[BOIL, Task]:
    return in_float64(small("algo=boil", "net=mlp", "net.activation=tanh", "algo.inner_lr=0.25"), tasks)


def test_the_head_stays_and_all_of_the_body_moves() -> None:
    algorithm, tasks = boil(1)
    *_, state = adapt(algorithm, select(tasks, 0).context, 2)
    assert set(state.fast) == {name for name in algorithm.learner() if name.startswith("net.")}
    assert all(not torch.equal(weight, algorithm.get_parameter(name)) for name, weight in state.fast.items())


def test_a_net_without_weights_is_refused() -> None:
    with pytest.raises(UserError, match="this net has no weights: choose another, or algo=anil"):
        Run(small("algo=boil", "net=mlp", "net.sizes=[]"))


def test_behind_a_zero_head_adaptation_does_nothing() -> None:
    algorithm, tasks = boil(1)
    torch.nn.init.zeros_(algorithm.head.weight)
    first, *_, last = adapt(algorithm, select(tasks, 0).context, 3)
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(first), tree_leaves(last)))


@pytest.mark.parametrize("mode", ["unroll", "mixed", "none"])
def test_it_is_maml_whose_heads_inner_rate_is_zero(mode: str) -> None:
    algorithm, tasks = boil()
    words = ["algo=metasgd", "net=mlp", "net.activation=tanh", "algo.inner_lr=0.25", f"algo.mode={mode}"]
    rated, _ = in_float64(small(*words))
    for name, rate in zip(rated.learner(), rated.rates):
        if name.startswith("head."):
            rate.data.zero_()
    algorithm.mode = mode
    size = sum(p.numel() for p in algorithm.parameters())
    expected = meta_gradient(rated, tasks, engine())[:size]
    assert relative_error(meta_gradient(algorithm, tasks, engine()), expected) < 1e-12


def test_the_head_learns_in_the_outer_loop() -> None:
    algorithm, tasks = boil()
    meta_gradient(algorithm, tasks, engine())
    assert algorithm.head.weight.grad.norm() > 0
