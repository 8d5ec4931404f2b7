"""OML: a stream in float64 against the loop written out, what a step leaves alone, any number of classes, learning a toy problem."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import in_float64, small
from torch import Tensor

from metarun.adaptation import adapt
from metarun.algorithm import Algorithm
from metarun.task import Task, select


def made(*words: str) -> tuple[Algorithm, Task]:
    algorithm, tasks = in_float64(small("algo=oml", "net=mlp", "net.norm=none", "algo.inner_lr=0.3", *words), tasks=1)
    return algorithm, select(tasks, 0)


def written_out(algorithm: Algorithm, task: Task) -> Tensor:
    """Logits after one step of plain SGD per example, in the order of the support, with one hidden layer or none."""
    x, y = task.context.support
    features, head = algorithm.net(x), torch.zeros(3, 1 + algorithm.plastic.features, dtype=torch.float64, requires_grad=True)
    hidden = [p.clone() for p in algorithm.plastic.parameters()]

    def answer(features: Tensor) -> Tensor:
        if hidden:
            features = F.relu(features @ hidden[0].T + hidden[1])
        return features @ head[:, :-1].T + head[:, -1]

    for k in range(len(y)):
        loss = F.cross_entropy(answer(features[k : k + 1]), y[k : k + 1])
        grads = torch.autograd.grad(loss, [head, *hidden], create_graph=True)
        head, *hidden = (weight - 0.3 * grad for weight, grad in zip([head, *hidden], grads))
    return answer(algorithm.net(task.query.x))


@pytest.mark.parametrize("sizes", ["[]", "[7]"])
def test_a_stream_is_one_step_per_example_and_its_meta_gradient_goes_through_all(sizes: str) -> None:
    algorithm, task = made(f"algo.sizes={sizes}")
    *_, state = adapt(algorithm, task.context, algorithm.steps(task.context, True))
    expected = written_out(algorithm, task)
    torch.testing.assert_close(algorithm.predict(state, task.query.x), expected)
    loss, _ = algorithm.objective([state], task, 0.0)
    parameters = list(algorithm.parameters())
    ours = torch.autograd.grad(loss, parameters, retain_graph=True)
    theirs = torch.autograd.grad(F.cross_entropy(expected, task.query.y), parameters)
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other)
        assert one.abs().max() > 0


def test_first_order_drops_what_steps_do_to_gradients() -> None:
    (first, task), (second, _) = made("algo.first_order=true", "algo.sizes=[7]"), made("algo.sizes=[7]")
    grads = []
    for algorithm in (first, second):
        *_, state = adapt(algorithm, task.context, 6)
        loss, _ = algorithm.objective([state], task, 0.0)
        grads.append(torch.autograd.grad(loss, list(algorithm.parameters())))
    assert any((one - other).abs().max() > 1e-6 for one, other in zip(*grads))


def test_a_stream_leaves_the_representation_alone_and_may_have_any_number_of_classes() -> None:
    algorithm, task = made()
    assert algorithm.steps(task.context, True) == algorithm.steps(task.context, False) == 6
    assert not algorithm.fixed_way
    *_, state = adapt(algorithm, task.context, 6)
    assert set(state.fast) == {"head"}
    wider = task.context._replace(classes=torch.zeros(11, dtype=torch.int64))
    *_, state = adapt(algorithm, wider, 6)
    assert algorithm.predict(state, task.query.x).shape == (6, 11)
