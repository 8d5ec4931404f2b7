"""MAML for acting: returns, baseline and surrogates against closed forms, DiCE against exact enumeration, and the inner step."""

import itertools
import math
from typing import get_args

import numpy as np
import pytest
import torch
from helpers import control, double, engine, in_float64, meta_gradient, random, relative_error, small
from torch import nn

from metarun import inner
from metarun.algos.control._returns import PENALTY, Estimator, advantages, baseline, returns_to_go, surrogate
from metarun.errors import UserError
from metarun.inner import Mode
from metarun.problem import Trajectories
from metarun.run import Run
from metarun.task import select

ESTIMATORS = get_args(Estimator)
NAVIGATION = ["data=navigation2d", "net=mlp"]


def test_returns_to_go():
    rewards = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 8.0]], dtype=torch.float64)
    assert returns_to_go(rewards, 0.5).tolist() == [[3.0, 4.0, 4.0], [2.0, 4.0, 8.0]]
    torch.testing.assert_close(returns_to_go(rewards, 1.0)[:, 0], rewards.sum(1))


def test_the_baseline_is_the_least_squares_fit():
    observations, returns = random(7, 10, 2), random(7, 10, seed=1)
    time = np.tile(np.arange(10) / 10, 7)[:, None]
    s = observations.flatten(0, 1).numpy()
    rows = np.concatenate([s, s**2, time, time**2, time**3, np.ones_like(time)], 1)
    penalised = np.concatenate([rows, math.sqrt(PENALTY) * np.eye(8)])
    weights = np.linalg.lstsq(penalised, np.concatenate([returns.flatten().numpy(), np.zeros(8)]), rcond=None)[0]
    np.testing.assert_allclose(baseline(observations, returns).flatten().numpy(), rows @ weights, atol=1e-9)


def test_advantages_are_what_the_baseline_did_not_expect():
    done = Trajectories(random(6, 10, 2), random(6, 10, 2, seed=1), random(6, 10, seed=2))
    found, returns = advantages(done, 0.9), returns_to_go(done.rewards, 0.9)
    assert abs(float(found.mean())) < 1e-9
    assert float(found.std(unbiased=False)) == pytest.approx(1)
    left = returns - baseline(done.observations, returns)
    assert float(torch.corrcoef(torch.stack([found.flatten(), left.flatten()]))[0, 1]) == pytest.approx(1)
    assert left.std() < returns.std()
    straight = returns_to_go(torch.ones(6, 10, dtype=torch.float64), 1.0)  # undiscounted, linear in time
    assert float((straight - baseline(done.observations, straight)).abs().max()) < 1e-3 * float(straight.std())


class Bandit:
    """Two pulls of two arms, whose log-odds are θ = log 3: sixteen equally likely ways to act, which a mean weighs as they are likely.

    The second pull's reward depends on the first.
    """

    ways = torch.tensor([way for way in itertools.product([0, 1, 1, 1], repeat=2)])  # an arm of probability 3/4 counts three times
    rewards = torch.tensor([[0.3, -1.0], [2.0, 0.5]], dtype=torch.float64)  # by arm, of the first pull and, by product, of the second
    theta = torch.tensor(math.log(3.0), dtype=torch.float64, requires_grad=True)

    @classmethod
    def to_go(cls):
        first, second = cls.rewards[cls.ways[:, 0], 0], cls.rewards[cls.ways[:, 0], cls.ways[:, 1]]
        return torch.stack([first + second, second], 1)

    @classmethod
    def estimate(cls, theta, estimator):
        """The surrogate of all ways to act, undiscounted, without a baseline."""
        log_probs = torch.stack([nn.functional.logsigmoid(-theta), nn.functional.logsigmoid(theta)])[cls.ways]
        return surrogate(log_probs, cls.to_go(), estimator)

    @classmethod
    def exact(cls, theta):
        """The expected return, over the horizon of 2 as the surrogate's mean is."""
        p = torch.stack([torch.sigmoid(-theta), torch.sigmoid(theta)])
        return ((p * cls.rewards[:, 0]).sum() + (p[:, None] * p * cls.rewards).sum()) / 2


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_policy_gradient_is_that_of_the_expected_return(estimator):
    found, exact = (torch.autograd.grad(f(Bandit.theta), Bandit.theta)[0] for f in (lambda t: Bandit.estimate(t, estimator), Bandit.exact))
    assert abs(float(exact)) > 0.05
    assert float(found) == pytest.approx(float(exact), rel=1e-12)


WRONG = {"naive": 0.01, "promp": 5e-4}  # by how much an estimator that leaves something out is wrong at least


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_higher_derivatives_are_exact_with_dice_and_wrong_without(estimator):
    for order in (2, 3):
        values = [lambda t: Bandit.estimate(t, estimator), Bandit.exact]
        for i, value in enumerate(values):
            found = value(Bandit.theta)
            for _ in range(order):
                (found,) = torch.autograd.grad(found, Bandit.theta, create_graph=True)
            values[i] = float(found.detach())
        found, exact = values
        assert (abs(found - exact) < 1e-12) if estimator == "dice" else (abs(found - exact) > WRONG[estimator])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_meta_gradient_of_one_inner_step_is_exact_with_dice_and_wrong_without(estimator):
    def after(inner_value):
        slope = torch.autograd.grad(inner_value(Bandit.theta), Bandit.theta, create_graph=True)[0]
        return torch.autograd.grad(Bandit.exact(Bandit.theta + 0.7 * slope), Bandit.theta)[0]

    found, exact = float(after(lambda t: Bandit.estimate(t, estimator))), float(after(Bandit.exact))
    assert (abs(found - exact) < 1e-12) if estimator == "dice" else (abs(found - exact) > WRONG[estimator])


def test_promp_is_exact_where_an_episode_has_one_action():
    def second(value):
        (slope,) = torch.autograd.grad(value, Bandit.theta, create_graph=True)
        return float(torch.autograd.grad(slope, Bandit.theta)[0])

    def log_probs():
        return torch.stack([nn.functional.logsigmoid(-Bandit.theta), nn.functional.logsigmoid(Bandit.theta)])

    rewards, pulls = torch.tensor([0.3, -1.0], dtype=torch.float64), torch.tensor([0, 1, 1, 1])  # as likely as they are
    exact = second((log_probs().exp() * rewards).sum())
    assert second(surrogate(log_probs()[pulls][:, None], rewards[pulls][:, None], "promp")) == pytest.approx(exact, rel=1e-12)
    assert abs(second(surrogate(log_probs()[pulls][:, None], rewards[pulls][:, None], "naive")) - exact) > 1e-3


@pytest.fixture(scope="module")
def learner():
    return in_float64(control("maml_rl"))


def test_the_gradient_of_a_gaussian_policy_is_that_of_its_expected_return(learner):
    # One action, reward −‖a − g‖²: J = −‖μ − g‖² − Σ σ². Six equally likely points have the first five moments of N(0, 1).
    algorithm, _ = learner
    fast = {name: p.detach().clone() for name, p in algorithm.learner().items()}
    g, points = torch.tensor([0.4, -0.2], dtype=torch.float64), torch.tensor([-math.sqrt(3), 0, 0, 0, 0, math.sqrt(3)], dtype=torch.float64)
    noise = torch.cartesian_prod(points, points)[:, None]
    observations = torch.zeros(36, 1, 2, dtype=torch.float64)
    mean, std = algorithm.policy(fast, observations[:1, 0]).mean[0], fast["log_std"].exp()
    actions = mean + std * noise
    rewards = -(actions - g).square().sum(-1)
    found = torch.func.grad(algorithm.policy_loss)(fast, observations, actions, rewards, rewards)
    torch.testing.assert_close(-found["head.bias"], -2 * (mean - g))
    torch.testing.assert_close(-found["log_std"], -2 * std**2)


def test_a_policy_acts_as_its_likelihood_says(learner):
    algorithm, tasks = learner
    state = algorithm.begin(select(tasks, 0).context)
    done = algorithm.predict(state, torch.arange(3000))
    mean = algorithm.policy(state.fast, done.observations.flatten(0, 1)).mean.view_as(done.actions)
    score = ((done.actions - mean) / algorithm.log_std.exp()).detach()
    assert not done.actions.requires_grad
    assert abs(float(score.mean())) < 0.02
    assert float(score.std()) == pytest.approx(1, abs=0.02)
    correlations = np.corrcoef(score.flatten(1).T.numpy()) - np.eye(10)  # over times and coordinates
    assert np.abs(correlations).max() < 0.1


def test_an_inner_step_climbs_the_surrogate_of_its_own_new_trajectories(learner):
    algorithm, tasks = learner
    context = select(tasks, 0).context
    begun = algorithm.begin(context)
    seen = []
    for k in range(2):
        done = algorithm.predict(begun, inner.fold_in(context.support.x, k))
        loss = algorithm.policy_loss(begun.fast, *done, advantages(done, algorithm.discount))
        gradient = torch.autograd.grad(loss, list(begun.fast.values()))
        stepped = algorithm.step(begun, context, k)
        for (name, before), g in zip(begun.fast.items(), gradient):
            torch.testing.assert_close(stepped.fast[name], before - algorithm.inner_lr * g)
        seen.append(done.actions)
    assert not torch.isclose(*seen).any()
    assert set(begun.fast) == {name for name, _ in algorithm.named_parameters()}
    assert begun.fast["log_std"].tolist() == pytest.approx([math.log(0.2)] * 2)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_gradient_mode_agrees_and_first_order_is_another(estimator):
    def of(*words):
        values = control("maml_rl", f"algo.estimator={estimator}", *words)
        return meta_gradient(*in_float64(values), engine())

    unroll, mixed, first = of(), of("algo.mode=mixed"), of("algo.first_order=true")
    assert set(get_args(Mode)) == {"unroll", "mixed", "none"}
    assert relative_error(mixed, unroll) < 1e-9
    assert relative_error(first, unroll) > 1e-3


def test_the_estimators_differ_in_second_derivatives_alone():
    gradients = {
        (estimator, first): meta_gradient(
            *in_float64(control("maml_rl", f"algo.estimator={estimator}", f"algo.first_order={first}")), engine()
        )
        for estimator in ESTIMATORS
        for first in ("true", "false")
    }
    assert relative_error(gradients["dice", "true"], gradients["naive", "true"]) < 1e-9
    assert relative_error(gradients["dice", "false"], gradients["naive", "false"]) > 1e-3


def test_a_step_of_no_length_leaves_the_policy_gradient_on_the_mixture_of_tasks():
    algorithm, tasks = in_float64(control("maml_rl"))
    algorithm.inner_lr = 0.0
    found = meta_gradient(algorithm, tasks, engine())
    losses = []
    for i in range(3):
        task = select(tasks, i)
        done = algorithm.predict(algorithm.begin(task.context), task.query.x)
        losses.append(algorithm.policy_loss(algorithm.learner(), *done, advantages(done, algorithm.discount)))
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(algorithm.parameters()))
    assert relative_error(found, torch.cat([g.flatten() for g in expected])) < 1e-9


def test_its_objective_has_the_value_of_the_loss():
    algorithm, tasks = in_float64(control("maml_rl"))
    task = select(tasks, 0)
    state = algorithm.step(algorithm.begin(task.context), task.context, 0)
    loss, metrics = algorithm.objective([state], task, 0.0)
    done = algorithm.predict(state, task.query.x)
    value = float(loss.detach())
    assert value == pytest.approx(-float(done.returns.mean()))
    assert (float(metrics["loss"]), float(metrics["return"])) == pytest.approx((value, -value))


def test_memory_is_that_of_all_observations():
    run = Run(control("maml_rl"))
    task = select(run.episodes("train").batch([0]), 0)
    held = run.algorithm.footprint(task, train=True)
    assert (held.examples, held.repeated) == (5 * (4 + 4), 5 * 4)  # horizon by shot and query; by shot once more at every inner step


@pytest.mark.parametrize("norm", ["batch", "support", "running"])
def test_a_policy_sees_one_observation_at_a_time(norm):
    with pytest.raises(UserError, match=f"net.norm={norm} is not for policies"):
        Run(control("maml_rl", f"net.norm={norm}"))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["algo=protonet", *NAVIGATION], "algo=protonet is for classification, but data=navigation2d is control; choose another algo or"),
        (["algo=maml", *NAVIGATION], "algo=maml is for classification and regression, but data=navigation2d is control; choose another"),
        (["algo=maml_rl"], "algo=maml_rl is for bandits and control, but data=patterns is classification; choose another"),
        (["algo=maml_rl", "data=navigation2d"], r"net=conv4 needs images, these examples have shape \[2\]; use net=mlp"),
        (["algo=maml_rl", *NAVIGATION, "episode.unlabelled=1"], "unlabelled=1 is not possible: data=navigation2d has no images"),
        (["algo=maml_rl", *NAVIGATION, "augment=photos"], "augment changes images, and data=navigation2d has none"),
        (["algo=maml_rl", *NAVIGATION, "algo.discount=1.5"], "algo.discount=1.5 is not possible: it should be 1.0 or less"),
        (["algo=maml_rl", *NAVIGATION, "data.horizon=0"], "data.horizon=0 is not possible: it should be 1 or more"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(words, line):
    with pytest.raises(UserError, match=line) as refused:
        Run(small(*words))
    assert "\n" not in str(refused.value)


def test_float32_and_float64_see_the_same_trajectories():
    run = Run(control("maml_rl"))
    task = select(run.episodes("train").batch([0]), 0)
    narrow = run.algorithm.predict(run.algorithm.begin(task.context), task.query.x)
    algorithm = run.algorithm.double()
    wide = algorithm.predict(algorithm.begin(double(task).context), task.query.x)
    assert narrow.rewards.dtype == torch.float32
    assert wide.rewards.dtype == torch.float64
    torch.testing.assert_close(narrow.rewards.double(), wide.rewards, rtol=1e-4, atol=1e-5)
