"""MetaNet: gradients of every example, fast weights made of them, and what a query looks up; handbook 5.4."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import classification, engine, in_float64, meta_gradient
from torch import Tensor, nn

from metarun import inner
from metarun.algos.blackbox import metanet
from metarun.task import Batch, select

WORDS = ["net.norm=instance", "shot=2", "query=2", "algo.units=5", "algo.hidden=7", "algo.embedding=6"]


def by_autograd(features: Tensor, y: Tensor, first: nn.Linear, second: nn.Linear) -> list[list[Tensor]]:
    """For every example: gradients of both layers' weights, biases as a last column."""
    found = []
    for x, label in zip(features, y):
        loss = F.cross_entropy(second(F.relu(first(x[None]))), label[None])
        grads = torch.autograd.grad(loss, [first.weight, first.bias, second.weight, second.bias])
        found.append([torch.cat([grads[i], grads[i + 1][:, None]], 1) for i in (0, 2)])
    return found


def test_slopes_are_those_of_autograd() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()
    features, y = torch.randn(6, 4).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    slopes = metanet.slopes(features, inner.one_hot(y, 3).double(), first, second)
    for i, layers in enumerate(by_autograd(features, y, first, second)):
        torch.testing.assert_close([slopes.hidden[i], slopes.outputs[i]], layers)
    assert not slopes.hidden.requires_grad


def test_a_plain_program_says_the_same() -> None:
    """One example, one weight matrix and one query after the other."""
    algorithm, tasks = in_float64(classification("metanet", *WORDS), tasks=1)
    (context, query, *_), net = select(tasks, 0), algorithm.eval().net
    with torch.no_grad():
        logits = algorithm.predict(algorithm.begin(context), query.x)
    x, y = context.support
    f, asked = net(x, x).detach(), net(query.x, x).detach()

    def read(g: Tensor) -> Tensor:
        big = g.abs() >= torch.exp(torch.tensor(-10.0))
        return torch.stack([torch.where(big, g.abs().log() / 10, -1.0), torch.where(big, g.sign(), 22026.465794806718 * g)], -1)

    with torch.no_grad(), torch.enable_grad():
        of_embedder = [layers[0] for layers in by_autograd(f, y, algorithm.embed, algorithm.tell.requires_grad_())]
        of_base = by_autograd(f, y, algorithm.base, algorithm.answer)
    output = cell = torch.zeros(*of_embedder[0].shape, algorithm.reader.hidden).double()
    for i in inner.order(context.key, len(y)).tolist():
        gates = algorithm.reader.gates(torch.cat([read(of_embedder[i]), output], -1)).chunk(4, -1)
        cell = torch.sigmoid(gates[1]) * cell + torch.sigmoid(gates[0]) * torch.tanh(gates[3])
        output = torch.sigmoid(gates[2]) * torch.tanh(cell)
    q_fast = algorithm.write_embedder(output)[..., 0]
    fast = [[algorithm.writer(read(layer))[..., 0] for layer in layers] for layers in of_base]

    def augmented(weight: Tensor, x: Tensor) -> Tensor:
        return weight @ torch.cat([x, torch.ones(1).double()])

    def key(x: Tensor) -> Tensor:
        return F.relu(algorithm.embed(x)) + F.relu(augmented(q_fast, x))

    for said, x in zip(logits, asked):
        heed = torch.stack([F.cosine_similarity(key(x), key(example), dim=0) for example in f]).softmax(0)
        own = [sum(a * layers[j] for a, layers in zip(heed, fast)) for j in (0, 1)]
        hidden = F.relu(algorithm.base(x)) + F.relu(augmented(own[0], x))
        torch.testing.assert_close(said, algorithm.answer(hidden) + augmented(own[1], hidden), rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_without_fast_weights_the_slow_net_speaks() -> None:
    algorithm, tasks = in_float64(classification("metanet", *WORDS, "algo.start=0"), tasks=1)
    context, query, *_ = select(tasks, 0)
    features = algorithm.eval().net(query.x, context.support.x)
    slow = algorithm.answer(F.relu(algorithm.base(features)))
    torch.testing.assert_close(algorithm.predict(algorithm.begin(context), query.x), slow, rtol=1e-12, atol=0)


@torch.no_grad()
def test_a_single_example_has_all_the_attention() -> None:
    algorithm, tasks = in_float64(classification("metanet", *WORDS), tasks=1)
    context, query, *_ = select(tasks, 0)
    alone = context._replace(support=Batch(context.support.x[:1], context.support.y[:1]))
    state = algorithm.eval().begin(alone)
    features = algorithm.net(query.x, alone.support.x)
    hidden = F.relu(algorithm.base(features)) + F.relu(inner.with_ones(features) @ state.values.hidden[0].T)
    expected = algorithm.answer(hidden) + inner.with_ones(hidden) @ state.values.outputs[0].T
    torch.testing.assert_close(algorithm.predict(state, query.x), expected, rtol=1e-12, atol=1e-14)


def test_gradients_are_inputs_and_every_net_learns() -> None:
    algorithm, tasks = in_float64(classification("metanet", *WORDS), tasks=2)
    assert meta_gradient(algorithm, tasks, engine("vmap")).norm() > 0
    for parameter in algorithm.parameters():
        parameter.grad = None
    prediction = algorithm.predict(algorithm.begin(select(tasks, 0).context), select(tasks, 0).query.x)
    prediction.square().sum().backward()
    untouched = [name for name, parameter in algorithm.named_parameters() if parameter.grad is None]
    assert untouched == ["tell.weight", "tell.bias"]
    assert [name for name, parameter in algorithm.named_parameters() if not parameter.requires_grad] == untouched


@pytest.mark.parametrize("least", [2.0, 10.0])
def test_gradients_as_a_net_reads_them(least: float) -> None:
    g = torch.tensor([0.0, 1.0, -1.0, torch.e, -(torch.e**-1), 1e-9]).double()
    logarithm, sign = inner.log_and_sign(g, least).unbind(-1)
    torch.testing.assert_close(logarithm, torch.tensor([-1.0, 0.0, 0.0, 1 / least, -1 / least, -1.0]).double())
    torch.testing.assert_close(sign, torch.tensor([0.0, 1.0, -1.0, 1.0, -1.0, 1e-9 * torch.e**least]).double())
