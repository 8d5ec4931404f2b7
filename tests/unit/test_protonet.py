"""ProtoNet's identities: a linear classifier, blind to duplicates, translations and rotations."""

from __future__ import annotations

import torch
from helpers import Identity
from torch import Tensor

from metarun.algos.metric.protonet import ProtoNet
from metarun.problem import Classification, EpisodeSpec, Problem
from metarun.task import Batch, Context

F64 = torch.float64
SPEC = EpisodeSpec(way=3, shot=2, query=2)
Y = torch.tensor([0, 0, 1, 1, 2, 2])


def protonet() -> ProtoNet:
    return ProtoNet(Identity(4), Problem(Classification(), (4,), 3, 10, SPEC, SPEC))


def context(x: Tensor, y: Tensor = Y) -> Context:
    return Context(Batch(x, y), torch.arange(3), torch.tensor(0), {})


def logits(support: Tensor, query: Tensor, y: Tensor = Y) -> Tensor:
    model = protonet()
    return model.predict(model.begin(context(support, y)), query)


def points(n: int, seed: int) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_logits_are_minus_squared_distances_to_the_class_means() -> None:
    support, query = points(6, 0), points(5, 1)
    means = support.view(3, 2, 4).mean(1)
    torch.testing.assert_close(logits(support, query), -(torch.cdist(query, means) ** 2))


def test_it_equals_the_linear_classifier_of_its_prototypes() -> None:
    support, query = points(6, 0), points(5, 1)
    means = support.view(3, 2, 4).mean(1)
    linear = query @ (2 * means).T - means.square().sum(1)
    torch.testing.assert_close(logits(support, query).softmax(-1), linear.softmax(-1))


def test_duplicates_of_the_support_change_nothing() -> None:
    support, query = points(6, 0), points(5, 1)
    torch.testing.assert_close(logits(torch.cat([support] * 3), query, torch.cat([Y] * 3)), logits(support, query))


def test_translations_and_rotations_of_the_embedding_change_nothing() -> None:
    support, query = points(6, 0), points(5, 1)
    rotation = torch.linalg.qr(points(4, 2)).Q
    torch.testing.assert_close(logits(support @ rotation + 3, query @ rotation + 3), logits(support, query))


def test_it_has_no_parameters_beside_its_net() -> None:
    assert list(protonet().parameters()) == []
