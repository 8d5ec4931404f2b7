"""Matching networks: attention over labels, the loss of summed probabilities, ProtoNet at one shot, LSTMs that do nothing when zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import Identity
from torch import Tensor

from metarun.algos.metric.matching import Matching
from metarun.algos.metric.protonet import ProtoNet
from metarun.problem import Classification, EpisodeSpec, Problem
from metarun.task import Batch, Context

F64 = torch.float64
SPEC = EpisodeSpec(way=3, shot=2, query=2)
PROBLEM = Problem(Classification(), (4,), 3, 10, SPEC, SPEC)
Y = torch.tensor([0, 0, 1, 1, 2, 2])


def matching(**values: Any) -> Matching:
    torch.manual_seed(0)
    defaults = {"similarity": "cosine", "temperature": 0.5, "fce": False, "reads": 3}
    return Matching(Identity(4), PROBLEM, **(defaults | values)).double()


def context(x: Tensor, y: Tensor = Y, key: int = 0) -> Context:
    return Context(Batch(x, y), torch.arange(int(y.max()) + 1), torch.tensor(key), {})


def answers(model: Matching, support: Tensor, query: Tensor, y: Tensor = Y, key: int = 0) -> Tensor:
    return model.predict(model.begin(context(support, y, key)), query)


def points(n: int, seed: int) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_answers_are_logs_of_the_attention_summed_by_class() -> None:
    support, query = points(6, 0), points(5, 1)
    attention = (F.cosine_similarity(query[:, None], support[None], dim=-1) / 0.5).softmax(-1)
    torch.testing.assert_close(answers(matching(), support, query).exp(), attention.view(5, 3, 2).sum(-1))


@pytest.mark.parametrize("fce", [False, True])
def test_probabilities_sum_to_one_and_the_loss_is_that_of_their_sum(fce: bool) -> None:
    logits, y = answers(matching(fce=fce), points(6, 0), points(5, 1)), torch.tensor([0, 1, 2, 0, 1])
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(5, dtype=F64))
    torch.testing.assert_close(PROBLEM.loss(logits, y), F.nll_loss(logits, y))


def test_with_one_example_per_class_and_squared_distances_it_is_protonet() -> None:
    support, query, y = points(3, 0), points(5, 1), torch.arange(3)
    protonet = ProtoNet(Identity(4), PROBLEM)
    expected = protonet.predict(protonet.begin(context(support, y)), query).softmax(-1)
    torch.testing.assert_close(answers(matching(similarity="euclidean", temperature=1.0), support, query, y).exp(), expected)


@pytest.mark.parametrize("fce", [False, True])
def test_a_lone_support_example_gives_its_label_for_certain(fce: bool) -> None:
    torch.testing.assert_close(answers(matching(fce=fce), points(1, 0), points(5, 1), Y[:1]), torch.zeros(5, 1, dtype=F64))


def test_full_context_embeddings_with_zero_weights_are_plain() -> None:
    model, support, query = matching(fce=True), points(6, 0), points(5, 1)
    assert not torch.allclose(answers(model, support, query), answers(matching(), support, query))
    for parameter in model.parameters():
        parameter.data.zero_()
    torch.testing.assert_close(answers(model, support, query), answers(matching(), support, query))


def test_no_read_leaves_the_query_plain() -> None:
    model, support, query = matching(fce=True, reads=0), points(6, 0), points(5, 1)
    torch.testing.assert_close(model._read_by_query(query, support), query)


def test_the_support_is_read_from_both_sides_as_torch_reads_it() -> None:
    model, support = matching(fce=True), points(6, 0)
    lstm = torch.nn.LSTM(4, 4, bidirectional=True).double()
    for cell, suffix in ((model.onwards, ""), (model.backwards, "_reverse")):
        weight = cell.gates.weight.detach()
        getattr(lstm, f"weight_ih_l0{suffix}").data.copy_(torch.cat([weight[:4], weight[4:8], weight[12:], weight[8:12]])[:, :4])
        getattr(lstm, f"weight_hh_l0{suffix}").data.copy_(torch.cat([weight[:4], weight[4:8], weight[12:], weight[8:12]])[:, 4:])
        bias = cell.gates.bias.detach()
        getattr(lstm, f"bias_ih_l0{suffix}").data.copy_(torch.cat([bias[:4], bias[4:8], bias[12:], bias[8:12]]))
        getattr(lstm, f"bias_hh_l0{suffix}").data.zero_()
    onwards, backwards = lstm(support)[0].chunk(2, dim=-1)
    torch.testing.assert_close(model._read_support(support), support + onwards + backwards)


def test_with_full_context_every_example_sees_all_others_and_the_key_sets_their_order() -> None:
    model, support, query = matching(fce=True), points(6, 0), points(5, 1)
    features = model.begin(context(support)).features
    moved = model.begin(context(torch.cat([support[:5], support[5:] + 1]))).features
    assert bool(((features - moved).abs().amax(1) > 1e-9).all())
    assert not torch.allclose(answers(model, support, query, key=1), answers(model, support, query, key=2))
