"""Infinite mixture prototypes: ProtoNet when no cluster is founded, nearest neighbours when all are, two modes of one class."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import Identity
from torch import Tensor

from metarun.algos.metric.imp import IMP
from metarun.algos.metric.protonet import ProtoNet
from metarun.problem import Classification, EpisodeSpec, Problem
from metarun.task import Batch, Context

F64 = torch.float64
SPEC = EpisodeSpec(way=3, shot=3, query=2)
PROBLEM = Problem(Classification(), (4,), 3, 10, SPEC, SPEC)
Y = torch.arange(3).repeat_interleave(3)


def imp(threshold: float, variance: float, monkeypatch: pytest.MonkeyPatch) -> IMP:
    model = IMP(Identity(4), PROBLEM, variance=variance, concentration=0.1).double()
    model.log_variance.data.fill_(math.log(variance))  # the constructor's is a float32
    monkeypatch.setattr(model, "_threshold", lambda means, variance: means.new_tensor(threshold))
    return model


def context(x: Tensor, y: Tensor = Y) -> Context:
    return Context(Batch(x, y), torch.arange(3), torch.tensor(0), {})


def points(n: int, seed: int) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_an_infinite_threshold_is_protonet(monkeypatch: pytest.MonkeyPatch) -> None:
    support, query, protonet = points(9, 0), points(5, 1), ProtoNet(Identity(4), PROBLEM)
    model = imp(math.inf, 0.5, monkeypatch)
    answers = model.predict(model.begin(context(support)), query)
    torch.testing.assert_close(answers, protonet.predict(protonet.begin(context(support)), query))


def test_threshold_and_variance_near_zero_are_the_nearest_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    support, query = points(9, 0), points(5, 1)
    model = imp(0.0, 1e-4, monkeypatch)
    state = model.begin(context(support))
    assert state.member.any(1).tolist() == [False] * 3 + [True] * 9  # no class mean is left
    nearest = torch.cdist(query, support).square().view(5, 3, 3).amin(-1)
    torch.testing.assert_close(model.predict(state, query), -nearest / 2e-4)


def test_a_class_of_two_heaps_gets_two_prototypes(monkeypatch: pytest.MonkeyPatch) -> None:
    heaps = torch.tensor([[0.0, 0, 0, 0], [0.1, 0, 0, 0], [9.0, 0, 0, 0]], dtype=F64)
    support = torch.cat([heaps, heaps[:1] + 30 + points(3, 0) / 100, heaps[:1] - 30 + points(3, 1) / 100])
    model = imp(12.0, 0.5, monkeypatch)
    state = model.begin(context(support))
    assert state.member.sum(0).tolist() == [2, 1, 1]
    centres = state.means[state.member[:, 0]][:, 0].sort().values
    torch.testing.assert_close(centres, torch.tensor([0.05, 9.0], dtype=F64), rtol=0, atol=1e-6)


def test_means_are_weighted_by_responsibilities(monkeypatch: pytest.MonkeyPatch) -> None:
    support, variance = points(9, 0), 0.7
    model = imp(0.0, variance, monkeypatch)
    state = model.begin(context(support))
    own = support[:3]
    z = (-(torch.cdist(own, own) ** 2) / (2 * variance)).softmax(1)  # of examples (rows) to the clusters at their class's examples
    torch.testing.assert_close(state.means[3:6], (z / z.sum(0)).T @ own)


def test_the_threshold_is_that_of_the_paper() -> None:
    means, variance, concentration = points(3, 0), 0.8, 0.2
    model = IMP(Identity(4), PROBLEM, variance=variance, concentration=concentration).double()
    spread = float(means.var(0).mean())
    expected = -2 * variance * math.log(concentration / (1 + spread / variance) ** (4 / 2))
    assert float(model._threshold(means, model.log_variance.exp()).detach()) == pytest.approx(expected, rel=1e-6)


def test_founding_clusters_does_not_depend_on_the_order_of_the_support(monkeypatch: pytest.MonkeyPatch) -> None:
    support, query = points(9, 0), points(5, 1)
    model = imp(2.0, 0.5, monkeypatch)
    state, order = model.begin(context(support)), torch.tensor([8, 3, 1, 0, 7, 5, 2, 4, 6])
    clusters = int(state.member.sum())
    assert 3 < clusters < 9
    shuffled = model.begin(context(support[order], Y[order]))
    torch.testing.assert_close(model.predict(shuffled, query), model.predict(state, query))


def test_the_variance_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    model = imp(0.5, 0.5, monkeypatch)
    PROBLEM.loss(model.predict(model.begin(context(points(9, 0))), points(3, 1)), torch.arange(3)).backward()
    assert 0 < abs(model.log_variance.grad) < math.inf
