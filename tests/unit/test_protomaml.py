"""Proto-MAML: without steps it is ProtoNet, permuted labels permute its answers, first order keeps what goes through the prototypes."""

from __future__ import annotations

import pytest
import torch
from helpers import double, engine, in_float64, meta_gradient, relative_error, slopes, small
from torch.func import functional_call

from metarun.adaptation import adapt
from metarun.algos.gradient.protomaml import ProtoMAML
from metarun.run import Run
from metarun.task import Batch, Task, select

WORDS = ["net=mlp", "net.sizes=[10,7]", "net.activation=tanh", "algo.inner_lr=0.1"]


def protomaml(steps: int, *words: str) -> tuple[ProtoMAML, Task]:
    values = small("algo=protomaml", *WORDS, *words)
    values["algo"]["inner_steps"] = steps
    return in_float64(values, 2)


def test_without_steps_it_is_protonet() -> None:
    algorithm, tasks = protomaml(0)
    protonet, _ = in_float64(small("algo=protonet", *WORDS[:3]), 2)
    protonet.net.load_state_dict(algorithm.net.state_dict())
    task = select(tasks, 0)
    mine, theirs = (each.predict(each.begin(task.context), task.query.x).log_softmax(-1) for each in (algorithm, protonet))
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    gradients = [meta_gradient(each, tasks, engine()) for each in (algorithm, protonet)]
    n = len(gradients[1])
    assert relative_error(gradients[0][:n], gradients[1]) < 1e-9
    assert not gradients[0][n:].any()  # of the head that is never used


def test_permuted_labels_permute_the_answers() -> None:
    algorithm, tasks = protomaml(2)
    context, x = select(tasks, 0).context, select(tasks, 0).query.x
    order = torch.tensor([2, 0, 1])
    turned = context._replace(support=Batch(context.support.x, order[context.support.y]))
    (*_, a), (*_, b) = (adapt(algorithm, which, 2) for which in (context, turned))
    torch.testing.assert_close(algorithm.predict(b, x)[:, order], algorithm.predict(a, x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("first_order", [False, True])
def test_the_gradient_is_that_of_a_plain_program(first_order: bool) -> None:
    algorithm, tasks = protomaml(1, f"algo.first_order={str(first_order).lower()}")
    task = select(tasks, slice(0, 1))
    found = meta_gradient(algorithm, task, engine())
    one, net = select(task, 0), algorithm.net
    (x, y), query = one.context.support, one.query
    weights = {name: p.detach().clone().requires_grad_() for name, p in net.named_parameters()}

    def logits(weights: dict[str, torch.Tensor], head: tuple[torch.Tensor, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return functional_call(net, weights, (x, x)) @ head[0].T + head[1]

    features = functional_call(net, weights, (x, x))
    means = torch.stack([features[y == c].mean(0) for c in range(3)])
    head = (2 * means, -means.square().sum(1))
    support = torch.func.grad(lambda w, h: torch.nn.functional.cross_entropy(logits(w, h, x), y), argnums=(0, 1))
    slope, of_head = support(weights, head)
    if first_order:
        slope, of_head = {name: g.detach() for name, g in slope.items()}, tuple(g.detach() for g in of_head)
    moved = {name: w - 0.1 * slope[name] for name, w in weights.items()}
    head = (head[0] - 0.1 * of_head[0], head[1] - 0.1 * of_head[1])
    outer = torch.nn.functional.cross_entropy(logits(moved, head, query.x), query.y)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(outer, list(weights.values()))])
    assert relative_error(found[: len(expected)], expected) < 1e-9


def test_the_meta_gradient_agrees_with_finite_differences() -> None:
    by_gradient, by_differences = slopes(*protomaml(2))
    assert by_gradient == pytest.approx(by_differences, rel=1e-5)


def test_any_way() -> None:
    run = Run(small("algo=protomaml", "net.hidden=8", "episode.eval.way=2"))
    task = double(select(run.episodes("test").batch([0]), 0))
    algorithm = run.algorithm.double()
    *_, state = adapt(algorithm, task.context, 2)
    assert algorithm.predict(state, task.query.x).shape == (len(task.query.y), 2)
