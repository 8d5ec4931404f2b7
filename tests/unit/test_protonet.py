"""ProtoNet's identities: a linear classifier, blind to duplicates, translations and rotations."""

from __future__ import annotations

import pytest
import torch
from helpers import Identity, composed
from torch import Tensor

from metarun import inner
from metarun.algos.metric._views import views
from metarun.algos.metric.protonet import ProtoNet
from metarun.problem import Classification, EpisodeSpec, Problem
from metarun.protocols.episodes import LAST
from metarun.run import Run
from metarun.task import Batch, Context, select

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


def test_balanced_answers_are_the_nearest_that_give_each_class_its_share() -> None:
    scores = 3 * torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    answers = inner.balanced(scores, 300).exp()
    torch.testing.assert_close(answers.sum(1), torch.ones(12, dtype=F64))
    torch.testing.assert_close(answers.sum(0), torch.full((4,), 3.0, dtype=F64))
    changes = answers.log() - scores.log_softmax(1)
    alone = changes - changes[:, :1] - (changes - changes[:, :1])[:1]  # of queries and classes, no more: what is left of both together
    torch.testing.assert_close(alone, torch.zeros_like(alone))


def test_matching_mends_what_two_queries_claim() -> None:
    support, query = torch.tensor([[0.0, 0, 0, 0], [1.0, 0, 0, 0]], dtype=F64), torch.tensor([[0.1, 0, 0, 0], [0.45, 0, 0, 0]], dtype=F64)
    y, problem = torch.tensor([0, 1]), Problem(Classification(), (4,), 2, 10, SPEC, SPEC)
    plain, matched = ProtoNet(Identity(4), problem).eval(), ProtoNet(Identity(4), problem, matching=True).eval()
    state = plain.begin(Context(Batch(10 * support, y), torch.arange(2), torch.tensor(0), {}))
    assert plain.predict(state, 10 * query).argmax(1).tolist() == [0, 0]
    assert matched.predict(state, 10 * query).argmax(1).tolist() == [0, 1]
    assert matched.transductive
    assert not matched.pairwise
    assert torch.equal(matched.train().predict(state, query), plain.predict(state, query))  # nothing changes in training


def test_features_are_means_over_views_and_each_image_is_seen_once() -> None:
    run = Run(composed("algo=protonet", "algo.views=3", "net.norm=running", "net.hidden=8", "data=glyphs", "way=5", "shot=1", "device=cpu"))
    learner, episodes = run.algorithm.eval(), run.episodes("test")
    task = select(episodes.batch([0]), 0)
    x = task.query.x
    with torch.no_grad():
        expected = torch.stack([learner.net(view) for view in views(x, 3)]).mean(0)
        torch.testing.assert_close(learner.features_of(x), expected)
        assert torch.equal(next(views(x, 3)), x)
        assert not torch.equal(learner.net(x), expected)
        encoded, known = run.engine.encoded(learner, episodes, 10**6)
        assert known is not episodes
        direct = run.engine.evaluate(learner, episodes.batch([0, 1]), LAST)["score"]
        torch.testing.assert_close(run.engine.evaluate(encoded, known.batch([0, 1]), LAST)["score"], direct)
        assert torch.equal(learner.train().features_of(x), learner.net(x))


def test_views_are_of_images() -> None:
    with pytest.raises(ValueError, match="views=2 needs images"):
        ProtoNet(Identity(4), Problem(Classification(), (4,), 3, 10, SPEC, SPEC), views=2)
