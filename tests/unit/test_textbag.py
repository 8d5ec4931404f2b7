"""The bag of n-grams against a few lines of Python that count them, and what the net says of examples and settings that it cannot use."""

import math
from collections import Counter

import pytest
import torch
from helpers import engine, in_float64, meta_gradient, relative_error

from metarun.config.compose import compose, resolve
from metarun.data.text import encode
from metarun.nets.textbag import NGrams, TextBag
from metarun.run import Run

TEXTS = ["aab ab", "b", "käse aab", "aab ab aab ab aab ab aab a"]
SETTINGS = {"buckets": 2**16, "shortest": 2, "longest": 3, "tfidf": True, "size": 4, "keep": True}


def rows(texts, length=26):
    return torch.stack([torch.from_numpy(encode(text, length)) for text in texts])


def counted(text, sizes=(2, 3)):
    """How often each run of bytes is there, a space before and behind."""
    content = b" " + text.encode() + b" "
    return Counter(content[i : i + n] for n in sizes for i in range(len(content) - n + 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_buckets_hold_the_number_of_their_n_grams(dtype):
    found = NGrams(2**16, 2, 3).counts(rows(TEXTS).to(dtype) / 255)
    for row, text in zip(found, TEXTS):
        assert sorted(row[row > 0].tolist()) == sorted(counted(text).values())  # so large a hash tells these few apart
    assert torch.equal((found[0] > 0) & (found[2] > 0), (found[0] > 0) & (found[2] > 0) & (found[3] > 0))  # what all but "b" share


def test_similarity_of_texts_is_that_of_their_weighted_n_grams():
    net = TextBag((26,), **SETTINGS | {"size": 0})
    net.observe(rows(TEXTS))
    bags = [counted(text) for text in TEXTS]
    weight = {gram: 1 + math.log((1 + len(bags)) / (1 + sum(gram in bag for bag in bags))) for bag in bags for gram in bag}
    vectors = [{gram: weight[gram] * math.log1p(n) for gram, n in bag.items()} for bag in bags]
    features = net(rows(TEXTS).double() / 255)
    for i, one in enumerate(vectors):
        for j, other in enumerate(vectors):
            product = sum(one[gram] * other.get(gram, 0) for gram in one)
            product /= math.sqrt(sum(v * v for v in one.values()) * sum(v * v for v in other.values()))
            assert float(features[i] @ features[j]) == pytest.approx(product, abs=1e-6)


def test_without_tfidf_nothing_is_counted_and_features_are_what_was_chosen():
    plain = TextBag((26,), **SETTINGS | {"tfidf": False})
    plain.observe(rows(TEXTS))
    assert torch.equal(plain.grams.rarity, torch.ones(2**16))
    x = rows(TEXTS) / 255
    short = TextBag((26,), **SETTINGS | {"keep": False})
    assert (plain.features, short.features) == (2**16 + 4, 4)
    assert plain(x).shape == (4, plain.features)
    assert short(x).shape == (4, 4)
    short.load_state_dict(plain.state_dict())
    assert torch.allclose(plain(x)[:, -4:], short(x))
    assert torch.allclose(plain(x)[:, :-4].norm(dim=1), torch.ones(4))


@pytest.mark.parametrize(
    ("shape", "changes", "wanted"),
    [
        ((1, 28, 28), {}, "net=textbag needs texts, these examples have shape \\[1, 28, 28\\]"),
        ((1,), {}, "net=textbag needs texts"),
        ((26,), {"longest": 1}, "net.longest=1 is below net.shortest=2"),
        ((26,), {"size": 0, "keep": False}, "leave no features"),
    ],
)
def test_what_it_cannot_use(shape, changes, wanted):
    with pytest.raises(ValueError, match=wanted):
        TextBag(shape, **SETTINGS | changes)


WORDS = [
    *(
        "data=text",
        "data.length=64",
        "net=textbag",
        "net.buckets=64",
        "net.size=8",
        "way=3",
        "shot=2",
        "query=2",
        "device=cpu",
        "logger=quiet",
    ),
    *("trainer.iterations=2", "trainer.meta_batch=2", "trainer.val_every=2", "trainer.val_episodes=2", "trainer.test_episodes=2"),
]


@pytest.mark.parametrize("algo", ["maml", "protonet", "r2d2", "lstm"])
def test_methods_map_over_tasks_of_texts_as_they_loop(algo):
    values = resolve(compose([*WORDS, f"algo={algo}"]))
    algorithm, tasks = in_float64(values, tasks=2)
    gradients = [meta_gradient(algorithm, tasks, engine(map=how)) for how in ("vmap", "loop")]
    assert relative_error(*gradients) < 1e-9


def test_rarity_is_that_of_training_and_travels_with_the_checkpoint():
    values = resolve(compose([*WORDS, "algo=protonet"]))
    run = Run(values)
    texts = run.data.splits["train"].images
    grams = run.algorithm.net.grams
    assert torch.allclose(grams.rarity, 1 + torch.log((1 + len(texts)) / (1 + (grams.counts(texts / 255) > 0).sum(0))))
    trained = {"algorithm": run.algorithm.state_dict(), "problem": {"classes": 50, "outputs": 3, "attributes": 0}}
    trained["algorithm"]["net.grams.rarity"] = torch.full((64,), 2.0)
    assert torch.equal(Run(values, trained).algorithm.net.grams.rarity, torch.full((64,), 2.0))
