"""LEO: an amortised classifier without steps, its inner loop as a plain program, its regularisers, equivariance, samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import engine, in_float64, slopes, small

from metarun.adaptation import adapt
from metarun.algos.heads.leo import LEO
from metarun.task import Batch, Task, select

WORDS = ["net=mlp", "net.sizes=[10,7]", "net.activation=tanh", "algo.latent=3", "algo.latent_lr=0.3", "algo.fine_lr=0.2"]


def leo(**changes: Any) -> tuple[LEO, Task]:
    values = small("algo=leo", *WORDS)
    values["algo"] |= {"inner_steps": 3, "test_steps": 3, "latent_steps": 2, **changes}
    return in_float64(values, 2)


def test_without_steps_it_is_an_amortised_classifier() -> None:
    algorithm, tasks = leo(inner_steps=0, test_steps=0)
    algorithm.eval()
    (x, y), query = select(tasks, 0).context.support, select(tasks, 0).query
    codes = algorithm.net(x) @ algorithm.encoder.weight.T
    n, means = len(x), []
    for c in range(3):
        pairs = [algorithm.relation(torch.cat([codes[i], codes[j]])) for i in range(n) if y[i] == c for j in range(n)]
        means.append(torch.stack(pairs).mean(0)[:3])
    weights = (torch.stack(means) @ algorithm.decoder.weight.T)[:, :7]
    state = algorithm.begin(select(tasks, 0).context)
    torch.testing.assert_close(algorithm.predict(state, query.x), algorithm.net(query.x) @ weights.T)


def test_the_inner_loop_is_a_plain_program() -> None:
    algorithm, tasks = leo()
    context, query = select(tasks, 1).context, select(tasks, 1).query
    *_, state = adapt(algorithm, context, 3)  # in training: with samples
    begun = algorithm.begin(context)
    y, features = context.support.y, algorithm.net(context.support.x).detach()
    mean, log_std = begun.code
    assert ((begun.start - mean) / log_std.exp()).abs().max() > 0.1
    z, change, decoder = begun.start.detach(), torch.zeros(3, 7).double(), algorithm.decoder.weight.detach()

    def weights(z: torch.Tensor) -> torch.Tensor:
        centre, spread = (z @ decoder.T).split(7, 1)
        return centre + (2 / 10) ** 0.5 * spread.exp() * begun.noise

    for _ in range(2):
        z.requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(features @ weights(z).T, y), z)
        z = (z - 0.3 * g).detach()
    change.requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(features @ (weights(z) + change).T, y), change)
    change = (change - 0.2 * g).detach()
    torch.testing.assert_close(state.z, z, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(algorithm.predict(state, query.x), algorithm.net(query.x) @ (weights(z) + change).T, rtol=1e-6, atol=1e-9)


def test_permuted_labels_permute_the_answers() -> None:
    algorithm, tasks = leo()
    algorithm.eval()
    context, x = select(tasks, 0).context, select(tasks, 0).query.x
    order = torch.tensor([2, 0, 1])
    turned = context._replace(support=Batch(context.support.x, order[context.support.y]))
    (*_, a), (*_, b) = (adapt(algorithm, which, 3) for which in (context, turned))
    torch.testing.assert_close(algorithm.predict(b, x)[:, order], algorithm.predict(a, x), rtol=1e-9, atol=1e-12)


def test_the_divergence_is_that_of_torch_and_zero_at_the_prior() -> None:
    algorithm, tasks = leo(kl=1.0, gap=0.0, orthogonality=0.0)
    task = select(tasks, 0)
    *_, state = adapt(algorithm, task.context, 3)
    loss, metrics = algorithm.objective([state], task, 0.0)
    mean, log_std = state.code
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, log_std.exp()), normal(torch.zeros_like(mean), 1.0)).sum(-1).mean()
    torch.testing.assert_close(metrics["kl"], expected)
    torch.testing.assert_close(loss - metrics["loss"], expected)
    prior = state._replace(code=(torch.zeros_like(mean), torch.zeros_like(mean)))
    assert float(algorithm.objective([prior], task, 0.0)[1]["kl"]) == 0


def test_the_gap_moves_the_beginning_alone_and_the_decoder_becomes_orthogonal() -> None:
    algorithm, tasks = leo(kl=0.0, gap=1.0, orthogonality=0.0)
    task = select(tasks, 0)
    *_, state = adapt(algorithm, task.context, 3)
    loss, metrics = algorithm.objective([state], task, 0.0)
    goal = state.z.detach()
    expected = torch.autograd.grad((goal - state.start).square().sum(-1).mean(), algorithm.encoder.weight, retain_graph=True)[0]
    found = torch.autograd.grad(loss - metrics["loss"], algorithm.encoder.weight, retain_graph=True)[0]
    torch.testing.assert_close(found, expected)
    algorithm.gap, algorithm.orthogonality = 0.0, 1.0
    for _ in range(300):
        loss, metrics = algorithm.objective([state], task, 0.0)
        (slope,) = torch.autograd.grad(loss - metrics["loss"], algorithm.decoder.weight, retain_graph=True)
        algorithm.decoder.weight.data -= 5 * slope
    rows = F.normalize(algorithm.decoder.weight, dim=1)
    # Welch's bound for 14 directions in 3 dimensions.
    assert float((rows @ rows.T - torch.eye(14)).square().mean().detach()) == pytest.approx((14**2 / 3 - 14) / 14**2, rel=1e-3)


def test_the_meta_gradient_agrees_with_finite_differences() -> None:
    by_gradient, by_differences = slopes(*leo(kl=0.1, gap=0.0, orthogonality=0.1))
    assert by_gradient == pytest.approx(by_differences, rel=1e-5)


def test_it_learns() -> None:
    algorithm, tasks = leo(kl=0.0, gap=0.0)
    optimizer, losses, how = torch.optim.Adam(algorithm.parameters(), 0.02), [], engine()
    for _ in range(200):
        optimizer.zero_grad()
        losses.append(how.meta_gradient(algorithm, tasks, 0.0)["loss"])
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
