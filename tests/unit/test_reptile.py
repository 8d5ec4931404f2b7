"""Reptile against closed forms: joint training after one step, the sum of two gradients after two, all the way at ε = 1."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from helpers import engine, in_float64, meta_gradient, relative_error, small
from torch import Tensor
from torch.nn.utils import parameters_to_vector
from torch.utils._pytree import tree_leaves

from metarun.adaptation import adapt
from metarun.algos.gradient.reptile import Reptile
from metarun.config.compose import compose, resolve
from metarun.config.schema import without_meta
from metarun.optim import MetaOptimizer
from metarun.protocols.episodes import LAST
from metarun.task import Task, select

LR = 0.05


def reptile(steps: int, *words: str, tasks: int = 2) -> tuple[Reptile, Task]:
    values = small("algo=reptile", "net=mlp", "net.activation=tanh", f"algo.inner_lr={LR}", "algo.inner_batch=16", *words)
    values["algo"]["inner_steps"] = steps
    return in_float64(values, tasks)


def support_gradient(algorithm: Reptile, task: Task, weights: Tensor | None = None) -> Tensor:
    """The gradient of one task's support loss as one vector, at the meta-parameters or at other weights."""
    before = parameters_to_vector(algorithm.parameters()).detach()
    torch.nn.utils.vector_to_parameters(before if weights is None else weights, algorithm.parameters())
    x, y = task.context.support
    grads = torch.autograd.grad(algorithm.problem.loss(algorithm(x, x), y), list(algorithm.parameters()))
    torch.nn.utils.vector_to_parameters(before, algorithm.parameters())
    return torch.cat([grad.flatten() for grad in grads])


def test_one_sgd_step_is_joint_training() -> None:
    algorithm, tasks = reptile(1, "algo.optimizer=sgd")
    expected = LR * (support_gradient(algorithm, select(tasks, 0)) + support_gradient(algorithm, select(tasks, 1))) / 2
    assert relative_error(meta_gradient(algorithm, tasks, engine()), expected) < 1e-12


def test_two_sgd_steps_add_the_gradient_where_the_first_one_led() -> None:
    algorithm, tasks = reptile(2, "algo.optimizer=sgd", tasks=1)
    task = select(tasks, 0)
    start = parameters_to_vector(algorithm.parameters()).detach()
    first = support_gradient(algorithm, task)
    expected = LR * (first + support_gradient(algorithm, task, start - LR * first))
    assert relative_error(meta_gradient(algorithm, tasks, engine()), expected) < 1e-12


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_interpolating_all_the_way_ends_at_the_adapted_weights(optimizer: str) -> None:
    algorithm, tasks = reptile(3, f"algo.optimizer={optimizer}", tasks=1)
    *_, state = adapt(algorithm, select(tasks, 0).context, 3)
    outer = MetaOptimizer(algorithm.parameters(), **without_meta(resolve(compose(["optim=interpolate"]))["optim"]))
    meta_gradient(algorithm, tasks, engine())
    before = parameters_to_vector(algorithm.parameters()).detach()
    outer.step(0.0)
    after = parameters_to_vector(algorithm.parameters()).detach()
    torch.testing.assert_close(after, torch.cat([weight.flatten() for weight in state.fast.values()]), rtol=1e-9, atol=1e-11)
    assert (after - before).norm() > 1e-3


def test_adam_steps_have_the_size_of_the_learning_rate() -> None:
    algorithm, tasks = reptile(1, "algo.optimizer=adam", tasks=1)
    moves = meta_gradient(algorithm, tasks, engine()).abs()
    assert float(moves.median()) == pytest.approx(LR, rel=1e-2)  # β1 = 0 and a fresh second moment: the sign of the gradient


def test_metrics_are_those_of_the_query() -> None:
    algorithm, tasks = reptile(2)
    metrics = engine().meta_gradient(algorithm, tasks, 0.0)
    algorithm.test_steps = 2
    scores = engine().evaluate(algorithm, tasks, LAST)
    assert metrics["loss"] == pytest.approx(float(scores["loss"].mean()), rel=1e-12)
    assert metrics["accuracy"] == pytest.approx(float(scores["score"].mean()))


def test_minibatches_are_for_training_only() -> None:
    algorithm, tasks = reptile(2, "algo.inner_batch=2", tasks=1)
    context = select(tasks, 0).context
    whole, _ = reptile(2, tasks=1)
    for training, equal in ((True, False), (False, True)):
        (*_, state), (*_, expected) = (adapt(learner.train(training), context, 2) for learner in (algorithm, whole))
        pairs = zip(tree_leaves(state.fast), tree_leaves(expected.fast))
        assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in pairs) == equal


def test_no_graph_is_kept_through_the_inner_steps() -> None:
    algorithm, tasks = reptile(3, tasks=1)
    states = list(adapt(algorithm, select(tasks, 0).context, 3))
    assert not any(leaf.requires_grad for leaf in tree_leaves(states))
    assert all(not torch.equal(a.fast["head.weight"], b.fast["head.weight"]) for a, b in pairwise(states))
