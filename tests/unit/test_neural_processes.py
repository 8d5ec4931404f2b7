"""Neural processes: sets without order or with none in them, what each may look at, the bounds of their deviation; by equations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import in_float64, small
from torch import Tensor
from torch.utils._pytree import tree_leaves

from metarun.algorithm import Algorithm
from metarun.algos.blackbox._neural_process import Joined
from metarun.algos.blackbox.attentive_np import AttentiveNP, divergence
from metarun.algos.blackbox.cnp import CNP
from metarun.algos.blackbox.tnp import TNP
from metarun.contract import checks
from metarun.contract.measures import slopes
from metarun.errors import UserError
from metarun.problem import Gaussian
from metarun.run import Run
from metarun.task import Batch, Context, Task, select

FOUR = ["cnp", "attentive_np", "latent", "tnp", "convcnp"]
WORDS = {
    "latent": ["algo=attentive_np", "algo.latent=3", "algo.samples=4"],
    "convcnp": ["algo=convcnp", "algo.domain=[-3,3]", "algo.levels=2"],
}


def values(method: str, *words: str) -> dict[str, Any]:
    few = ["data=gp", "net=fourier", "net.bands=3", "way=1", "shot=6", "query=4"]
    return small(*few, *WORDS.get(method, [f"algo={method}"]), *words)


def one(method: str, *words: str) -> tuple[Any, Task]:
    """A method with random weights and one task in which not all of the support is seen, in float64."""
    algorithm, tasks = in_float64(values(method, *words), tasks=8)
    index = next(i for i, n in enumerate(tasks.context.extras["seen"].sum(1).tolist()) if 1 < n < 6)
    return algorithm.eval().requires_grad_(False), select(tasks, index)


def only(context: Context, rows: Tensor) -> Context:
    """The context with these rows of its support alone, all seen."""
    x, y = context.support
    return context._replace(support=Batch(x[rows], y[rows]), extras={})


def ask(algorithm: Algorithm, context: Context, x: Tensor) -> Tensor:
    """Means and variances, [2, n, 1], or of several members [2, members, n, 1]; logits [1, n, way]."""
    return torch.stack(tree_leaves(algorithm.predict(algorithm.begin(context), x)))


@pytest.mark.parametrize("method", FOUR)
def test_support_that_is_not_seen_is_as_if_it_were_not_there_whatever_it_holds(method: str) -> None:
    algorithm, (context, query, *_) = one(method)
    expected = ask(algorithm, only(context, context.seen), query.x)
    assert expected.shape == ((2, 4, 4, 1) if method == "latent" else (2, 4, 1))
    torch.testing.assert_close(ask(algorithm, context, query.x), expected)
    x, y = (torch.where(context.seen[:, None], part, 7.0) for part in context.support)
    torch.testing.assert_close(ask(algorithm, context._replace(support=Batch(x, y)), query.x), expected)


@pytest.mark.parametrize("method", FOUR)
def test_an_empty_support_has_a_finite_answer(method: str) -> None:
    algorithm, (context, query, *_) = one(method)
    none = context._replace(extras={"seen": torch.zeros(6, dtype=torch.bool)})
    found = ask(algorithm, none, query.x)
    assert found.isfinite().all()
    torch.testing.assert_close(found, ask(algorithm, only(context, torch.zeros(6, dtype=torch.bool)), query.x))
    algorithm.requires_grad_(True)
    loss = algorithm.objective([algorithm.begin(none)], Task(none, query), 0.0)[0]
    assert all(g is None or g.isfinite().all() for g in torch.autograd.grad(loss, list(algorithm.parameters()), allow_unused=True))


@pytest.mark.parametrize("method", FOUR)
def test_the_contract_holds_where_supports_differ_in_length(method: str) -> None:
    for name in ("mapping", "order", "recording"):
        assert checks.CONTRACT[name](values(method))


@pytest.mark.parametrize("method", ["cnp", "attentive_np", "latent", "tnp"])
def test_a_support_that_comes_twice_says_what_it_said_once(method: str) -> None:
    """Means and attention weigh; a sum, or a count of examples, would answer otherwise. (ConvCNP has one, its density.)"""
    algorithm, (context, query, *_) = one(method)
    once = only(context, context.seen)
    twice = only(context, torch.arange(6)[context.seen].repeat(2))
    torch.testing.assert_close(ask(algorithm, twice, query.x), ask(algorithm, once, query.x))


@pytest.mark.parametrize("method", FOUR)
def test_no_answer_is_surer_than_the_floor(method: str) -> None:
    algorithm, (context, query, *_) = one(method, "algo.floor=0.3")
    *_, variance = ask(algorithm, context, query.x)
    assert variance.min() > 0.09
    mean, variance = algorithm.gaussian(torch.tensor([[1.5, -1e3], [1.5, 0.0]]))
    torch.testing.assert_close(mean, torch.full((2, 1), 1.5))
    torch.testing.assert_close(variance.sqrt()[:, 0], torch.tensor([0.3, 0.3 + 0.7 * 0.693147]))


@pytest.mark.parametrize("method", ["attentive_np", "latent", "tnp"])
def test_the_meta_gradient_agrees_with_finite_differences(method: str) -> None:
    by_gradient, by_differences = slopes(*in_float64(values(method)))
    assert by_gradient == pytest.approx(by_differences, rel=1e-4)


@pytest.mark.parametrize("words", [[], ["algo.modulate=true"], ["algo.pool=sum"]])
def test_a_cnp_is_a_mean_of_encodings_and_a_decoder(words: list[str]) -> None:
    algorithm, (context, query, *_) = one("cnp", "algo.modulate=false", *words)
    assert isinstance(algorithm, CNP)

    def first(layer: Joined, x: Tensor, told: Tensor) -> Tensor:
        if layer.modulates:
            scale, shift = layer.film(told).chunk(2)
            return (1 + scale) * layer.linear(x) + shift
        return layer.linear(torch.cat([x, told]))

    assert algorithm.joined.modulates == ("algo.modulate=true" in words)
    f, (x, y) = algorithm.net, only(context, context.seen).support
    encoded = torch.stack([algorithm.encoder(first(algorithm.joined, f(a[None])[0], b)) for a, b in zip(x, y)])
    r = encoded.sum(0) / 6**0.5 if "algo.pool=sum" in words else encoded.mean(0)
    for a, mean, variance in zip(query.x, *ask(algorithm, context, query.x)):
        mu, s = algorithm.decoder(first(algorithm.asked, f(a[None])[0], r))
        torch.testing.assert_close(mean[0], mu)
        torch.testing.assert_close(variance[0].sqrt(), 0.1 + 0.9 * s.exp().log1p())


def test_a_cnp_that_classifies_has_a_mean_for_every_class_side_by_side() -> None:
    algorithm, tasks = in_float64(small("algo=cnp", "algo.modulate=false", "net=mlp"), tasks=1)
    context, query, *_ = select(tasks, 0)
    algorithm.eval().requires_grad_(False)
    encoded = algorithm.encoder(algorithm.joined.linear(algorithm.net(context.support.x)))
    r = torch.cat([encoded[context.support.y == c].mean(0) for c in range(3)])
    expected = [algorithm.decoder(algorithm.asked.linear(torch.cat([algorithm.net(x[None])[0], r]))) for x in query.x]
    torch.testing.assert_close(ask(algorithm, context, query.x)[0], torch.stack(expected))


def test_a_query_reads_by_attention_what_lies_near_its_key() -> None:
    algorithm, (context, query, *_) = one("attentive_np")
    assert isinstance(algorithm, AttentiveNP)
    f, (x, y) = algorithm.net, only(context, context.seen).support
    keys, values = algorithm.key(f(x)), algorithm.value(torch.cat([f(x), y], 1))
    read = algorithm.attention(algorithm.key(f(query.x)), keys, values)
    mean, _ = algorithm.decoder(torch.cat([f(query.x), read], 1)).chunk(2, 1)
    torch.testing.assert_close(ask(algorithm, context, query.x)[0], mean)


def test_a_latent_process_samples_functions_whole_and_descends_its_bound() -> None:
    algorithm, task = one("latent")
    state = algorithm.begin(task.context)
    members = algorithm.predict(state, task.query.x).members
    assert members.mean.shape == (4, 4, 1)
    alone = algorithm.predict(state, task.query.x[:1]).members
    torch.testing.assert_close(alone.mean[:, 0], members.mean[:, 0])  # one function, wherever it is asked
    assert members.mean.std(0).min() > 0
    seen, (x, y) = only(task.context, task.context.seen).support, task.query
    every = torch.cat([torch.cat([algorithm.net(a), b], 1) for a, b in (seen, task.query)])
    mean, raw = algorithm.moments(algorithm.path(every).mean(0)).chunk(2)
    posterior = torch.distributions.Normal(mean, 0.1 + 0.9 * raw.sigmoid())
    prior = torch.distributions.Normal(state.belief.mean, state.belief.variance.sqrt())
    kl = torch.distributions.kl_divergence(posterior, prior).sum()
    torch.testing.assert_close(divergence(Gaussian(mean, posterior.variance), state.belief), kl)
    # The draw of z is the objective's own. Where its decoder does not heed z, the bound is known but for that.
    algorithm.decoder[0].weight.data[:, -3:] = 0
    guess = algorithm.predict(state, x).members
    density = torch.distributions.Normal(guess.mean[0], guess.variance[0].sqrt()).log_prob(y)
    loss, metrics = algorithm.objective([state], task, 0.0)
    torch.testing.assert_close(loss, (kl - density.sum()) / 4)
    torch.testing.assert_close(metrics["loss"], -density.mean())
    assert metrics.keys() == {"loss", "ll", "bound"}


def test_in_a_transformer_everybody_looks_at_the_seen_examples_and_nobody_at_a_query() -> None:
    """All tokens through torch-like layers at once, with the mask of the paper."""
    algorithm, (context, query, *_) = one("tnp")
    assert isinstance(algorithm, TNP)
    f, (x, y) = algorithm.net, context.support
    ones, none = torch.ones(6, 1, dtype=torch.float64), torch.zeros(4, 2, dtype=torch.float64)
    tokens = algorithm.embed(torch.cat([torch.cat([f(x), y, ones], 1), torch.cat([f(query.x), none], 1)]))
    mask = torch.cat([context.seen, torch.zeros(4, dtype=torch.bool)]).expand(10, 10)
    for layer in algorithm.layers:
        tokens = layer(tokens, mask=mask)
    mean, _ = algorithm.head(algorithm.norm(tokens[6:])).chunk(2, 1)
    torch.testing.assert_close(ask(algorithm, context, query.x)[0], mean)
    torch.testing.assert_close(ask(algorithm, context, query.x[1:2])[0], mean[1:2])


@pytest.mark.parametrize("method", ["attentive_np", "tnp"])
def test_heads_divide_the_width(method: str) -> None:
    with pytest.raises(UserError, match=r"algo\.width"):
        Run(values(method, "algo.width=10", "algo.heads=4"))
