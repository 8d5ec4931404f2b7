"""The attention layer: it is torch's, heeds masks, knows no order, and is batched and differentiated like everything else."""

from __future__ import annotations

import pytest
import torch
from helpers import random
from torch import Tensor, nn

from metarun.nets.attention import MultiHeadAttention, TransformerLayer

F64 = torch.float64


def layer(**changes: int | None) -> MultiHeadAttention:
    torch.manual_seed(0)
    settings: dict[str, int | None] = {"queries": 6, "keys": 6, "values": 6, "heads": 2, "size": 3, "outputs": 6}
    return MultiHeadAttention(**(settings | changes)).double().requires_grad_(False)  # type: ignore[arg-type]


QUERY, KEY = random(4, 6, seed=1), random(5, 6, seed=2)
MASK = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1], [0, 1, 0, 0, 0]], dtype=torch.bool)


@pytest.mark.parametrize("mask", [None, MASK])
def test_it_is_torchs_attention(mask: Tensor | None) -> None:
    ours = layer()
    torchs = nn.MultiheadAttention(6, 2, batch_first=True).double()
    torchs.in_proj_weight.data = torch.cat([ours.query.weight, ours.key.weight, ours.value.weight])
    torchs.in_proj_bias.data = torch.cat([ours.query.bias, ours.key.bias, ours.value.bias])
    torchs.out_proj.load_state_dict(ours.output.state_dict())
    expected, weights = torchs(QUERY, KEY, KEY, attn_mask=None if mask is None else ~mask, average_attn_weights=False)
    torch.testing.assert_close(ours(QUERY, KEY, KEY, mask), expected)
    torch.testing.assert_close(ours.weights(QUERY, KEY, mask), weights)


def test_queries_and_keys_have_no_order() -> None:
    attention, swap, turn = layer(), torch.tensor([2, 0, 3, 1]), torch.tensor([4, 2, 0, 1, 3])
    answer = attention(QUERY, KEY, KEY, MASK)
    torch.testing.assert_close(attention(QUERY[swap], KEY, KEY, MASK[swap]), answer[swap])
    torch.testing.assert_close(attention(QUERY, KEY[turn], KEY[turn], MASK[:, turn]), answer)


def test_what_is_masked_is_as_if_it_were_not_there() -> None:
    attention, seen = layer(), torch.tensor([True, False, True, True, False])
    torch.testing.assert_close(attention(QUERY, KEY, KEY, seen), attention(QUERY, KEY[seen], KEY[seen]))
    rows = attention.weights(QUERY, KEY, MASK)
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, 4, dtype=F64))
    assert rows.masked_select(~MASK).eq(0).all()


def test_a_query_that_looks_at_itself_as_well_is_one_more_key_for_itself_alone() -> None:
    attention = layer()
    for query, answer in zip(QUERY, attention(QUERY, KEY, KEY, own=True)):
        seen = torch.cat([KEY, query[None]])
        torch.testing.assert_close(answer, attention(query[None], seen, seen)[0])


def test_a_query_that_may_look_at_nothing_reads_zeros_and_has_a_gradient() -> None:
    attention = layer(outputs=None)
    query = QUERY.clone().requires_grad_()
    nothing = torch.zeros(5, dtype=torch.bool)
    answer = attention(query, KEY, KEY, nothing)
    assert answer.eq(0).all()
    assert torch.autograd.grad(answer.sum(), query)[0].eq(0).all()
    assert attention(QUERY, KEY[:0], KEY[:0]).eq(0).all()


def test_heads_may_read_another_length_than_they_compare() -> None:
    attention = layer(keys=4, values=7, read=5, outputs=None)
    assert attention(QUERY, random(5, 4), random(5, 7)).shape == (4, 10)
    assert attention(QUERY.expand(3, 4, 6), random(3, 5, 4), random(3, 5, 7)).shape == (3, 4, 10)


def test_vmap_and_both_derivatives_agree_with_a_loop_and_finite_differences() -> None:
    attention, queries = layer(), random(3, 4, 6, seed=3)
    mapped = torch.vmap(lambda query: attention(query, KEY, KEY, MASK))(queries)
    torch.testing.assert_close(mapped, torch.stack([attention(query, KEY, KEY, MASK) for query in queries]))
    torch.testing.assert_close(mapped, attention(queries, KEY.expand(3, 5, 6), KEY.expand(3, 5, 6), MASK))
    inputs = (QUERY.clone().requires_grad_(), KEY.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda q, k: attention(q, k, k, MASK), inputs)
    assert torch.autograd.gradgradcheck(lambda q, k: attention(q, k, k, MASK).square(), inputs)


def test_a_transformer_layer_is_torchs_with_its_norms_first() -> None:
    torch.manual_seed(0)
    ours = TransformerLayer(width=6, heads=2, hidden=8).double().requires_grad_(False)
    torchs = nn.TransformerEncoderLayer(6, 2, 8, dropout=0, activation="gelu", batch_first=True, norm_first=True).double()
    for part in (ours.before, ours.between):
        part.weight.data, part.bias.data = random(6, seed=4), random(6, seed=5)
    parts = {"norm1": ours.before, "norm2": ours.between, "linear1": ours.mlp[0], "linear2": ours.mlp[2]}
    for name, part in parts.items():
        getattr(torchs, name).load_state_dict({key: value for key, value in part.state_dict().items() if key in ("weight", "bias")})
    attention = ours.attention
    torchs.self_attn.in_proj_weight.data = torch.cat([attention.query.weight, attention.key.weight, attention.value.weight])
    torchs.self_attn.in_proj_bias.data = torch.cat([attention.query.bias, attention.key.bias, attention.value.bias])
    torchs.self_attn.out_proj.load_state_dict(attention.output.state_dict())
    mask = torch.rand(5, 5, generator=torch.Generator().manual_seed(0)) < 0.6
    mask.fill_diagonal_(True)
    torch.testing.assert_close(ours(KEY, mask=mask), torchs(KEY[None], src_mask=~mask)[0])
    torch.testing.assert_close(ours(KEY, KEY, mask), ours(KEY, mask=mask))
    with pytest.raises(ValueError, match="a width of 6 does not fall into 4 heads"):
        TransformerLayer(width=6, heads=4, hidden=8)
