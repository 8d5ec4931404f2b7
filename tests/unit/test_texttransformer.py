"""The Transformer over words of n-grams: what a word is, what is masked, what it begins as, and that methods map over tasks of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import engine, in_float64, meta_gradient, relative_error
from torch import Tensor

from metarun.config.compose import compose, resolve
from metarun.contract import checks
from metarun.data.text import encode
from metarun.nets.textbag import NGrams
from metarun.nets.texttransformer import SCALE, TextTransformer

TEXTS = ["what do i owe", "what is it", "owe", "käse aab aab"]
SETTINGS: dict[str, Any] = {"buckets": 512, "shortest": 2, "longest": 3, "tfidf": True, "words": 6, "width": 8, "heads": 2, "hidden": 8}


def rows(texts: list[str], length: int = 26) -> Tensor:
    return torch.stack([torch.from_numpy(encode(text, length)) for text in texts])


def built(length: int = 26, **changes: Any) -> TextTransformer:
    torch.manual_seed(0)
    return TextTransformer((length,), **SETTINGS | {"depth": 2} | changes).double()


def trained(**changes: Any) -> TextTransformer:
    """A net that is no longer what it begins as."""
    net = built(**changes)
    for parameter in net.stack.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return net


def test_a_word_is_the_weighted_sum_of_the_n_grams_that_begin_in_it() -> None:
    net = built()
    net.observe(rows(TEXTS))
    tokens, there = net.tokens(rows(TEXTS).double() / 255)
    assert there.sum(1).tolist() == [len(text.split()) for text in TEXTS]
    grams = NGrams(512, 2, 3)

    def bucket(gram: bytes) -> int:
        """The n-gram alone has no others of its length in it, once its own spaces are taken off."""
        text = torch.tensor([list(gram) + [0] * 3])
        found, letters = grams.places(text.double() / 255)
        assert bytes(letters[0, 1 : 1 + len(gram)].tolist()) == gram
        return int(found[0, 1, len(gram) - 2])

    said = " what do i owe "
    for i, start in enumerate([0, 5, 8, 10]):
        end = [5, 8, 10, 15][i]
        pieces = [said[k : k + n].encode() for k in range(start, end) for n in (2, 3) if k + n <= len(said)]
        wanted = net.position[i] + sum(net.grams.rarity[bucket(piece)] * net.embedding[bucket(piece)] for piece in pieces)
        torch.testing.assert_close(tokens[0, i], wanted)


def test_it_begins_as_a_projection_of_the_bag_of_n_grams() -> None:
    net = built()
    with torch.no_grad():
        net.position.zero_()
    net.observe(rows(TEXTS))
    x = rows(TEXTS).double() / 255
    bag = (net.grams.counts(x) * net.grams.rarity) @ net.embedding
    torch.testing.assert_close(net(x), 3 * bag / bag.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("depth", [0, 2])
def test_what_fills_a_text_up_changes_nothing(depth: int) -> None:
    short, long = trained(length=14, depth=depth), trained(length=40, depth=depth)
    long.load_state_dict(short.state_dict())
    texts = [text[:14] for text in TEXTS]
    torch.testing.assert_close(short(rows(texts, 14).double() / 255), long(rows(texts, 40).double() / 255))
    more = trained(words=12, depth=depth)
    state = trained(depth=depth).state_dict()
    state["position"] = torch.cat([state["position"], torch.ones(6, 8)])
    more.load_state_dict(state)
    torch.testing.assert_close(more(rows(TEXTS).double() / 255), trained(depth=depth)(rows(TEXTS).double() / 255))


def test_words_heed_each_other_and_their_order_once_it_is_trained() -> None:
    x = rows(["book a flight", "a flight book"]).double() / 255
    assert not torch.allclose(*trained()(x))
    far, near = trained(words=2)(x), trained(words=6)(x)
    assert not torch.allclose(far, near), "further words are added to the last"
    assert far.isfinite().all()


@pytest.mark.parametrize(
    ("shape", "changes", "wanted"),
    [
        ((1, 28, 28), {}, "net=texttransformer needs texts, these examples have shape \\[1, 28, 28\\]"),
        ((2,), {}, "net=texttransformer needs texts"),
        ((26,), {"longest": 1}, "net.longest=1 is below net.shortest=2"),
        ((26,), {"heads": 3}, "net.width=8 does not fall into net.heads=3"),
    ],
)
def test_what_it_cannot_use(shape: tuple[int, ...], changes: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        TextTransformer(shape, **SETTINGS | {"depth": 1} | changes)


WORDS = [
    *("data=text", "data.length=48", "net=texttransformer", "net.buckets=64", "net.width=8", "net.hidden=8", "net.heads=2"),
    *("way=3", "shot=2", "query=2", "device=cpu", "logger=quiet", "net.words=8"),
    *("trainer.iterations=2", "trainer.meta_batch=2", "trainer.val_every=2", "trainer.val_episodes=2", "trainer.test_episodes=2"),
]


@pytest.mark.parametrize("algo", ["maml", "protonet", "r2d2", "lstm"])
def test_methods_map_over_tasks_of_texts_as_they_loop(algo: str) -> None:
    algorithm, tasks = in_float64(resolve(compose([*WORDS, f"algo={algo}"])), tasks=2)
    gradients = [meta_gradient(algorithm, tasks, engine(map=how)) for how in ("vmap", "loop")]
    assert relative_error(*gradients) < 1e-9


@pytest.mark.parametrize("check", [*checks.CONTRACT.values(), checks.gradient], ids=lambda check: check.__name__)
@pytest.mark.parametrize("algo", ["maml", "protonet"])
def test_it_keeps_the_contract_of_nets(algo: str, check: checks.Check) -> None:
    check(resolve(compose([*WORDS, f"algo={algo}"])))


def test_weights_that_are_drawn_begin_as_those_of_a_new_net() -> None:
    """A projection of the bag of n-grams of a known length: other matrices, the same zeros and the same scale."""
    net = trained()
    drawn = net.draw(torch.tensor(5))
    assert drawn["scale"] == SCALE
    assert not torch.equal(drawn["embedding"], net.embedding)
    fresh = {name for name, w in built().named_parameters() if name.startswith("stack.") and w.dim() > 1 and not w.any()}
    assert len(fresh) == 2 * 2
    assert {name for name, w in drawn.items() if w.dim() > 1 and not w.any()} == fresh
    features = [torch.func.functional_call(net, drawn, (rows(texts).double() / 255,)) for texts in (["a b", "b a"], ["b a", "a b"])]
    torch.testing.assert_close(features[0].norm(dim=1), torch.full((2,), SCALE).double())


def test_the_space_behind_a_text_begins_no_word() -> None:
    net = built(shortest=1, longest=1)
    _, there = net.tokens(rows(["a b", "one", "cut at a space off"], 15).double() / 255)
    assert there.sum(1).tolist() == [2, 1, 4]


@pytest.mark.parametrize("algo", ["mlp_optimizer", "bmaml"])
def test_methods_take_its_single_number(algo: str) -> None:
    algorithm, tasks = in_float64(resolve(compose([*WORDS, f"algo={algo}"])), tasks=1)
    assert meta_gradient(algorithm, tasks, engine()).isfinite().all()
