"""Several sets of weights: limits in which they are MAML, the kernel against its gradient by autodiff, divergences against Monte-Carlo."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import Builder, classification, engine, in_float64, meta_gradient, random, regression, vectors
from torch import Tensor, nn
from torch.func import functional_call

from metarun.adaptation import adapt
from metarun.algos.bayes.bmaml import BMAML, kernel
from metarun.algos.bayes.platipus import PLATIPUS, draw, kl
from metarun.algos.bayes.versa import VERSA
from metarun.problem import Samples, best_guess
from metarun.task import Task, select


def of(build: Builder, algo: str, **settings: Any) -> dict[str, Any]:
    values = build(algo)
    return {**values, "algo": {**values["algo"], **settings}}


def answered(algorithm: Any, task: Task) -> Tensor:
    """The best guess after the test's inner steps."""
    algorithm.eval()
    *_, state = adapt(algorithm, task.context, algorithm.test_steps)
    return best_guess(algorithm.predict(state, task.query.x)).detach()


# BMAML


@pytest.mark.parametrize("build", [classification, regression])
def test_one_particle_takes_the_steps_of_maml(build: Builder) -> None:
    (one, tasks), (maml, _) = in_float64(of(build, "bmaml", particles=1, inner_lr=0.05)), in_float64(of(build, "maml", inner_lr=0.05))
    task = select(tasks, 0)
    wanted = answered(maml, task)
    torch.testing.assert_close(answered(one, task), wanted.log_softmax(-1) if build is classification else wanted, rtol=1e-9, atol=1e-9)


def particles(m: int, build: Builder = regression, **settings: Any) -> tuple[BMAML, Task]:
    algorithm, tasks = in_float64(of(build, "bmaml", particles=m, **settings))
    assert isinstance(algorithm, BMAML)
    return algorithm, select(tasks, 0)


@pytest.mark.parametrize("build", [classification, regression])
def test_a_step_is_equation_5_by_autodiff_of_the_kernel(build: Builder) -> None:
    """Particle by particle and pair by pair, with the width held fixed."""
    m = 4
    algorithm, task = particles(m, build, inner_lr=0.3, noise=0.5)
    x, y = task.context.support
    state = algorithm.begin(task.context)
    fast = {name: w.detach() for name, w in state.fast.items()}
    _, width = kernel(fast)
    rows = torch.cat([w.flatten(1) for w in fast.values()], 1)
    distances = torch.stack([(rows[i] - rows[j]).square().sum() for i in range(m) for j in range(i)])
    torch.testing.assert_close(width, distances.sort().values[[2, 3]].mean() / math.log(m))

    def alike(one: Tensor, other: Tensor) -> Tensor:
        return torch.exp(-(one - other).square().sum() / width)

    def log_posterior(row: Tensor) -> Tensor:
        """Under a flat prior, over the number of examples times what makes a mean square a log-likelihood."""
        sizes = [w[0].numel() for w in fast.values()]
        weights = {name: part.view(w.shape[1:]) for (name, w), part in zip(fast.items(), row.split(sizes))}
        answer = functional_call(algorithm, weights, (x, x))
        if build is classification:
            return -nn.functional.cross_entropy(answer, y, reduction="sum")
        return -(answer - y).square().sum() / (2 * 0.5**2)

    scale = 1 / len(y) if build is classification else 2 * 0.5**2 / len(y)
    slopes = torch.stack([torch.func.grad(log_posterior)(row) for row in rows])
    wanted = []
    for i in range(m):
        ways = [alike(rows[j], rows[i]) * slopes[j] + torch.func.grad(alike)(rows[j], rows[i]) for j in range(m)]
        wanted.append(rows[i] + 0.3 * scale * torch.stack(ways).mean(0))
    after = algorithm.step(state, task.context, 0).fast
    torch.testing.assert_close(torch.cat([w.flatten(1) for w in after.values()], 1).detach(), torch.stack(wanted), rtol=1e-9, atol=1e-9)


def test_particles_that_are_equally_likely_push_each_other_apart() -> None:
    algorithm, task = particles(2, noise=1.0)
    state = algorithm.begin(task.context)
    fast = {name: torch.stack([w[0], w[0] + 1e-3 * random(*w[0].shape)]).detach() for name, w in state.fast.items()}
    # Where nothing is known of the task, all weights are equally likely: the gradient is that of the kernel alone.
    none = task.context.support.x[:0], task.context.support.y[:0]
    algorithm.sum_of_losses = lambda fast, x, y: 0 * sum(w.sum() for w in fast.values())  # type: ignore[method-assign]
    moved = algorithm.moved(fast, none[0].new_zeros(1, 1), none[1].new_zeros(1, 1))

    def apart(weights: dict[str, Tensor]) -> Tensor:
        return torch.stack([(w[0] - w[1]).square().sum() for w in weights.values()]).sum()

    assert apart(moved) > 1.5 * apart(fast)
    for name, w in fast.items():
        torch.testing.assert_close(moved[name].sum(0), w.sum(0))  # and neither is preferred


def test_the_order_of_particles_means_nothing() -> None:
    algorithm, task = particles(3, classification)
    state = algorithm.begin(task.context)
    order = torch.tensor([2, 0, 1])
    turned = state._replace(fast={name: w[order] for name, w in state.fast.items()})
    after, after_turned = (algorithm.step(each, task.context, 0).fast for each in (state, turned))
    for name, w in after.items():
        torch.testing.assert_close(after_turned[name], w[order], rtol=1e-9, atol=1e-12)


def test_who_chases_nobody_has_nothing_to_learn() -> None:
    """Without steps the leader is where the particles are; with one the gap is that step's."""
    for steps in (0, 1):
        algorithm, task = particles(3, leader_steps=steps)
        *_, state = adapt(algorithm, task.context, 2)
        loss, _ = algorithm.objective([state], task, 0.0)
        pair = zip(task.context.support, task.query)
        moved = algorithm.moved(state.fast, *(torch.cat(each) for each in pair))
        gap = sum((moved[name] - w).square().sum() for name, w in state.fast.items())
        torch.testing.assert_close(loss, torch.as_tensor(steps * gap, dtype=torch.float64))


# PLATIPUS and PMAML


@pytest.mark.parametrize("build", [classification, regression])
@pytest.mark.parametrize("algo", ["platipus", "pmaml"])
def test_without_spread_and_first_step_it_is_maml(algo: str, build: Builder) -> None:
    settings = {"deviation": 1e-12, "centre_lr": 0.0, "divergence": 0.0, "noise": math.sqrt(0.5), "inner_lr": 0.05}
    (one, tasks), (maml, _) = in_float64(of(build, algo, **settings)), in_float64(of(build, "maml", inner_lr=0.05))
    task = select(tasks, 0)
    wanted = answered(maml, task)
    torch.testing.assert_close(answered(one, task), wanted.log_softmax(-1) if build is classification else wanted, rtol=1e-7, atol=1e-7)
    one.train()
    maml.train()
    # With this noise the negative log-likelihood of a regression is the squared error, but for a constant.
    for algorithm in (one, maml):
        meta_gradient(algorithm, tasks, engine())
    for name, w in maml.named_parameters():
        torch.testing.assert_close(one.get_parameter(name).grad, w.grad, rtol=1e-7, atol=1e-9)


def test_divergences_are_those_of_monte_carlo_and_none_of_the_same() -> None:
    mean, other = ({"a": random(3, seed=seed), "b": random(2, 2, seed=seed + 1)} for seed in (0, 5))
    scale, other_scale = (nn.ParameterList([0.3 * random(3, seed=seed), 0.3 * random(2, 2, seed=seed + 1)]) for seed in (10, 15))
    assert kl(mean, scale, mean, scale).item() == pytest.approx(0, abs=1e-12)
    n = 200_000
    samples = draw(mean, scale, torch.tensor(7), n)

    def log_density(means: dict[str, Tensor], scales: nn.ParameterList) -> Tensor:
        parts = [
            torch.distributions.Normal(m, s.exp()).log_prob(samples[name]).flatten(1).sum(1) for (name, m), s in zip(means.items(), scales)
        ]
        return torch.stack(parts).sum(0)

    found = (log_density(mean, scale) - log_density(other, other_scale)).detach()
    assert kl(mean, scale, other, other_scale).item() == pytest.approx(found.mean().item(), abs=5 * found.std().item() / math.sqrt(n))


def test_the_encoder_is_not_asked_at_test_and_learns_in_training() -> None:
    algorithm, tasks = in_float64(of(classification, "platipus", divergence=1.0))
    assert isinstance(algorithm, PLATIPUS)
    task = select(tasks, 0)
    before = answered(algorithm, task)
    for w in (*algorithm.encoder_log_deviation, algorithm.encoder_lrs):
        w.data += 1.0
    assert torch.equal(answered(algorithm, task), before)
    algorithm.train()
    meta_gradient(algorithm, tasks, engine())
    learned = [*algorithm.encoder_log_deviation, algorithm.encoder_lrs, *algorithm.log_deviation, algorithm.centre_lrs]
    assert all(w.grad is not None and w.grad.abs().sum() > 0 for w in learned)


def test_no_number_moves_further_in_a_step_than_clipping_lets_it() -> None:
    algorithm, tasks = in_float64(of(regression, "platipus", inner_lr=0.5, clip=1e-3, centre_lr=0.0))
    task = select(tasks, 0)
    algorithm.eval()
    begun = algorithm.begin(task.context)
    moved = algorithm.step(begun, task.context, 0)
    farthest = max((after - before).abs().max().item() for before, after in zip(begun.fast.values(), moved.fast.values()))
    assert farthest == pytest.approx(0.5 * 1e-3)  # the steepest number goes as far as it may


def test_learned_step_sizes_begin_as_the_fixed_one_and_are_learned() -> None:
    (learned, tasks), (fixed, _) = (in_float64(of(regression, "platipus", learn_lr=each)) for each in (True, False))
    assert isinstance(learned, PLATIPUS)
    assert learned.rates is not None
    task = select(tasks, 0)
    torch.testing.assert_close(answered(learned, task), answered(fixed, task), rtol=1e-6, atol=1e-6)  # rates begin as float32
    learned.train()
    meta_gradient(learned, tasks, engine())
    assert all(rate.grad is not None and rate.grad.abs().sum() > 0 for rate in learned.rates)


# VERSA


def versa(way: int = 3, **settings: Any) -> tuple[VERSA, Task]:
    from helpers import Identity

    problem, task = vectors(4, way, 2)
    torch.manual_seed(0)
    algorithm = VERSA(Identity(4), problem, **{"samples": 10, "test_samples": 10, "hidden": 8, "log_variance": -1.0, **settings}).double()
    return algorithm, task


def test_without_variance_it_is_a_head_and_its_loss_the_cross_entropy() -> None:
    algorithm, task = versa(log_variance=-1000.0)
    logits = algorithm.predict(algorithm.begin(task.context), task.query.x).members
    assert isinstance(logits, Tensor)
    mean, _ = algorithm.distribution(task.context)
    wanted = task.query.x @ mean[:, :-1].T + mean[:, -1]
    torch.testing.assert_close(logits, wanted.expand_as(logits), rtol=1e-3, atol=1e-3)
    loss, _ = algorithm.objective([algorithm.begin(task.context)], task, 0.0)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(wanted, task.query.y), rtol=1e-3, atol=1e-3)


def test_logits_have_the_moments_of_the_local_reparameterisation() -> None:
    """Mean zᵀμ + μ_b, variance (z²)ᵀσ² + σ_b²."""
    algorithm, task = versa(samples=100_000)
    logits = algorithm.predict(algorithm.begin(task.context), task.query.x).members
    mean, deviation = algorithm.distribution(task.context)
    z = torch.cat([task.query.x, torch.ones(len(task.query.x), 1, dtype=torch.float64)], 1)
    variance = z.square() @ deviation.square().T
    torch.testing.assert_close(logits.mean(0), z @ mean.T, rtol=0, atol=0.05)
    torch.testing.assert_close(logits.var(0), variance, rtol=0.05, atol=0)


def test_more_samples_have_less_loss_in_the_mean() -> None:
    """−log of a mean of L, in expectation, falls with L (Burda et al. 2016, theorem 1)."""
    losses = []
    for samples in (1, 5, 50):
        algorithm, task = versa(samples=samples, log_variance=2.0)
        each = [
            algorithm.objective([algorithm.begin(task.context._replace(key=torch.tensor(key)))], task, 0.0)[0].item() for key in range(200)
        ]
        losses.append(sum(each) / len(each))
    assert losses[0] > losses[1] > losses[2]


def test_classes_may_be_more_at_test_and_share_their_nets() -> None:
    """The distribution of a class is its own: other classes do not change it, and their order turns with it."""
    algorithm, task = versa(way=5)
    mean, deviation = algorithm.distribution(task.context)
    x, y = task.context.support
    turn = torch.tensor([2, 0, 1, 4, 3])
    grouped = torch.cat([torch.nonzero(y == label)[:, 0] for label in turn])
    turned = task.context._replace(support=task.context.support._replace(x=x[grouped]))
    for before, after in zip((mean, deviation), algorithm.distribution(turned)):
        torch.testing.assert_close(after, before[turn])
    assert isinstance(algorithm.predict(algorithm.begin(task.context), task.query.x), Samples)


def test_extreme_variances_stay_numbers() -> None:
    algorithm, task = versa(log_variance=1e6)
    loss, _ = algorithm.objective([algorithm.begin(task.context)], task, 0.0)
    assert loss.isfinite()
