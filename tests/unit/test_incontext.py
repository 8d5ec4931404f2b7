"""The in-context learner: its codes, what permutations and other ways do, and torch's own Transformer as the judge."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import Identity, vectors
from torch import Tensor, nn

from metarun.algos.blackbox.incontext import InContext, equiangular
from metarun.task import Batch, Task


def learner(way: int = 3, ways: int = 5) -> tuple[InContext, Task]:
    torch.manual_seed(0)
    problem, task = vectors(4, way=way, shot=2)
    algorithm = InContext(Identity(4), problem, ways=ways, width=8, layers=2, heads=2, hidden=12).double()
    nn.init.normal_(algorithm.unknown)
    return algorithm, task


def test_codes_are_as_far_apart_as_they_can_be() -> None:
    codes = equiangular(5).double()
    products = codes @ codes.T
    torch.testing.assert_close(products, torch.full((5, 5), -0.25).double() + 1.25 * torch.eye(5), atol=1e-6, rtol=0)


@torch.no_grad()
def test_it_is_torchs_transformer_encoder_with_norms_first() -> None:
    algorithm, task = learner()
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    other = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8), enable_nested_tensor=False).double()
    for theirs, ours in zip(other.layers, algorithm.layers):
        attention = ours.attention
        theirs.self_attn.in_proj_weight.copy_(torch.cat([part.weight for part in (attention.query, attention.key, attention.value)]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([part.bias for part in (attention.query, attention.key, attention.value)]))
        theirs.self_attn.out_proj.load_state_dict(attention.output.state_dict())
        theirs.linear1.load_state_dict(ours.mlp[0].state_dict())
        theirs.linear2.load_state_dict(ours.mlp[2].state_dict())
    state = algorithm.begin(task.context)
    for query, answer in zip(task.query.x, algorithm.predict(state, task.query.x)):
        asked = algorithm.embed(torch.cat([query, algorithm.unknown]))
        sequence = torch.cat([state.tokens[0], asked[None]])
        hidden = torch.zeros(7, 7, dtype=torch.bool)
        hidden[:6, 6] = True  # from the support
        expected = algorithm.head(other(sequence[None], mask=hidden)[0, -1]) @ state.codes.T
        torch.testing.assert_close(answer, expected, rtol=1e-9, atol=1e-9)


def answers(algorithm: InContext, support: Batch, codes: Tensor, x: Tensor) -> Tensor:
    return algorithm.predict(algorithm.shown(support.x, support.y, codes, support.x), x)


@torch.no_grad()
def test_permuted_labels_permute_the_answers_if_their_codes_go_along() -> None:
    algorithm, task = learner()
    support, x, codes = task.context.support, task.query.x, algorithm.codes[:3]
    before = answers(algorithm, support, codes, x)
    for new_label in map(torch.tensor, itertools.permutations(range(3))):
        relabelled = Batch(support.x, new_label[support.y])
        after = answers(algorithm, relabelled, codes[new_label.argsort()], x)
        torch.testing.assert_close(after[:, new_label], before, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_every_episode_draws_codes_of_its_own_for_any_number_of_classes() -> None:
    algorithm, _ = learner(way=5)
    drawn = []
    for way, key in itertools.product((2, 3, 5), range(4)):
        _, task = learner(way)
        context = task.context._replace(key=torch.tensor(key))
        state = algorithm.begin(context)
        places = [int((algorithm.codes == code).all(1).nonzero()) for code in state.codes]
        assert len(set(places)) == way
        assert algorithm.predict(state, task.query.x).shape == (2 * way, way)
        drawn.append(tuple(places))
    assert len(set(drawn)) > 6


def test_more_classes_than_codes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"episodes have up to 3 classes, and algo.ways=2 is the most"):
        learner(3, ways=2)
