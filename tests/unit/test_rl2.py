"""RL²: what its policy sees and when, its objective against an independent computation, and what a memory of nothing can do."""

import math

import numpy as np
import pytest
import torch
from helpers import bandits, control, double, in_float64, random, small

from metarun.algos.control._policies import Categorical, Gaussian
from metarun.algos.control._returns import gae, others
from metarun.errors import UserError
from metarun.run import Run
from metarun.task import select

GRID = ["data=gridnav", "data.horizon=4", "net=mlp", "way=1", "query=3", "algo=rl2"]


@pytest.fixture(scope="module")
def grid():
    return in_float64(small(*GRID, "shot=2"))


def test_generalised_advantages_by_their_sum():
    rewards, values = random(3, 5), random(3, 5, seed=1)
    found = gae(rewards, values, 0.9, 0.7)
    for i in range(3):
        later = [*values[i, 1:].tolist(), 0.0]
        errors = [float(rewards[i, t]) + 0.9 * later[t] - float(values[i, t]) for t in range(5)]
        expected = [sum(0.63**k * error for k, error in enumerate(errors[t:])) for t in range(5)]
        assert found[i].tolist() == pytest.approx(expected)


def test_a_trace_of_one_trusts_rewards_and_of_zero_the_critic():
    rewards, values = random(2, 4), random(2, 4, seed=1)
    returns = torch.stack([sum(0.9**k * rewards[:, t + k] for k in range(4 - t)) for t in range(4)], 1)
    torch.testing.assert_close(gae(rewards, values, 0.9, 1.0) + values, returns)
    torch.testing.assert_close(gae(rewards, values, 0.9, 0.0)[:, -1], rewards[:, -1] - values[:, -1])


def test_the_others_are_all_but_oneself():
    values = random(4, 3)
    torch.testing.assert_close(others(values)[1], values[[0, 2, 3]].mean(0))
    assert others(values[:1]).tolist() == [[0.0] * 3]


def test_policies_against_torchs_distributions():
    logits, mean, log_std = random(6, 3), random(6, 2), random(2, seed=1)
    other = torch.distributions.Categorical(logits=logits)
    choices = torch.tensor([0, 1, 2, 0, 1, 2])
    torch.testing.assert_close(Categorical(logits).log_prob(choices), other.log_prob(choices))
    torch.testing.assert_close(Categorical(logits).entropy, other.entropy())
    normal, action = torch.distributions.Normal(mean, log_std.exp()), random(6, 2, seed=2)
    torch.testing.assert_close(Gaussian(mean, log_std).log_prob(action), normal.log_prob(action).sum(-1))
    torch.testing.assert_close(Gaussian(mean, log_std).entropy, normal.entropy().sum(-1))


def test_choices_are_drawn_as_often_as_their_probabilities_say():
    run = Run(bandits("rl2", "shot=0", "query=4000"))
    task = select(run.episodes("test").batch([0]), 0)
    with torch.no_grad():
        run.algorithm.actor.bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
        run.algorithm.actor.weight.zero_()
    done = run.algorithm.predict(run.algorithm.begin(task.context), task.query.x)
    for t in (0, 5):
        shares = torch.bincount(done.actions[:, t], minlength=3) / 4000
        torch.testing.assert_close(shares, torch.tensor([1.0, 0.0, -1.0]).softmax(0), atol=0.03, rtol=0)


def test_the_first_action_is_drawn_alike_in_all_environments_and_later_ones_are_not(grid):
    algorithm, tasks = grid
    seen = []
    for i in range(2):
        lives, before = algorithm.lives(select(tasks, i))
        policy, _ = algorithm.replay(lives, before)
        seen.append(policy.logits.detach())
    assert torch.equal(seen[0][:, 0], seen[1][:, 0])
    assert torch.equal(seen[0][0, 0], seen[0][1, 0])
    assert not torch.isclose(seen[0][:, 1:], seen[1][:, 1:]).all()


def test_lives_are_episodes_of_one_memory_and_what_is_told_is_one_step_old(grid):
    algorithm, tasks = grid
    task = select(tasks, 0)
    lives, before = algorithm.lives(task)
    assert lives.actions.shape == lives.rewards.shape == (3, 12)  # of 2 + 1 episodes of 4 actions
    assert (lives.observations[:, ::4] == 0).all()  # where episodes begin
    assert (before.action[:, 0] == -1).all()
    assert torch.equal(before.action[:, 1:], lives.actions[:, :-1])
    assert torch.equal(before.reward[:, 1:], lives.rewards[:, :-1])


def test_replayed_lives_are_those_that_were_lived(grid):
    """Step by step, by hand: logits from what went before; with the same noise they give the same actions."""
    algorithm, tasks = grid
    task = select(tasks, 1)
    lives, before = algorithm.lives(task)
    policy, _ = algorithm.replay(lives, before)
    output = cell = torch.zeros(3, algorithm.hidden, dtype=torch.float64)
    for t in range(12):
        told = torch.zeros(3, 5, dtype=torch.float64)
        if t:
            told[torch.arange(3), lives.actions[:, t - 1]] = 1
        reward = lives.rewards[:, t - 1 : t] if t else torch.zeros(3, 1, dtype=torch.float64)
        begins = torch.full((3, 1), float(t % 4 == 0), dtype=torch.float64)
        x = torch.cat([algorithm.net(lives.observations[:, t]), told, told * reward, reward, begins], 1)
        output, cell = algorithm.cell(torch.cat([x, output], 1), cell)
        torch.testing.assert_close(policy.logits[:, t], algorithm.actor(output))


def test_its_objective_is_actor_and_critic(grid):
    algorithm, tasks = grid
    task = select(tasks, 2)
    algorithm.anneal(0.25)
    loss, metrics = algorithm.objective([], task, 0.25)
    found = torch.autograd.grad(loss, list(algorithm.parameters()))
    lives, before = algorithm.lives(task)
    policy, means = algorithm.replay(lives, before)
    log_probs = policy.logits.log_softmax(-1)
    n, length, gamma = 3, 12, algorithm.discount
    left = torch.tensor([sum(gamma**i for i in range(length - t)) for t in range(length)], dtype=torch.float64)
    returns = torch.stack([sum(gamma**k * lives.rewards[:, t + k] for k in range(length - t)) for t in range(length)], 1)
    better = (returns - left * means).detach()  # a trace of 1
    total = 0.0
    for i in range(n):
        for t in range(length):
            baseline = sum(float(better[j, t]) for j in range(n) if j != i) / (n - 1)
            entropy = -(log_probs[i, t].exp() * log_probs[i, t]).sum()
            total = total - log_probs[i, t, lives.actions[i, t]] * (better[i, t] - baseline) - 0.75 * algorithm.entropy * entropy
            total = total + algorithm.critic * (means[i, t] - returns[i, t] / left[t]) ** 2
    expected = torch.autograd.grad(total / (n * length), list(algorithm.parameters()))
    for mine, theirs in zip(found, expected):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10)
    assert float(loss.detach()) == pytest.approx(-float(lives.returns.mean()) / 3)  # per episode
    assert float(metrics["return"]) == pytest.approx(-float(loss.detach()))


def test_the_curve_is_the_return_by_episode(grid):
    algorithm, tasks = grid
    task = select(tasks, 0)
    assert (algorithm.steps(task.context, True), algorithm.steps(task.context, False)) == (0, 2)
    state = algorithm.begin(task.context)
    blank = state.past
    assert (blank.memory.output == 0).all()
    state = algorithm.step(state, task.context, 0)
    assert not torch.equal(state.past.memory.output, blank.memory.output)
    again = algorithm.step(algorithm.begin(task.context), task.context, 0)
    assert torch.equal(again.past.memory.cell, state.past.memory.cell)


def test_without_a_memory_nothing_is_better_than_a_fixed_arm():
    run = Run(bandits("rl2", "shot=0", "query=50"))
    with torch.no_grad():
        run.algorithm.actor.weight.zero_()
        run.algorithm.actor.bias.copy_(torch.tensor([50.0, 0.0, 0.0]))
    episodes = run.episodes("test")
    returns = []
    for i in range(40):
        task = select(episodes.batch([i]), 0)
        returns.append(float(run.algorithm.predict(run.algorithm.begin(task.context), task.query.x).returns.mean()))
    assert np.mean(returns) == pytest.approx(6 * episodes.drawn(range(40))["means"][:, 0].mean(), abs=0.2)


def test_actions_may_be_numbers():
    run = Run(control("rl2"))
    assert run.algorithm.log_std.tolist() == pytest.approx([math.log(0.2)] * 2)
    task = select(run.episodes("test").batch([0]), 0)
    narrow = run.algorithm.predict(run.algorithm.begin(task.context), task.query.x)
    algorithm = run.algorithm.double()
    wide = algorithm.predict(algorithm.begin(double(task).context), task.query.x)
    assert wide.rewards.dtype == torch.float64
    torch.testing.assert_close(narrow.rewards.double(), wide.rewards, rtol=1e-4, atol=1e-5)


def test_memory_is_that_of_whole_lives(grid):
    algorithm, tasks = grid
    held = algorithm.footprint(select(tasks, 0), train=True)
    assert held.examples == 3 * 3 * 4
    assert held.bytes == held.examples * 64 * algorithm.hidden


@pytest.mark.parametrize("norm", ["batch", "support", "running"])
def test_a_policy_sees_one_observation_at_a_time(norm):
    with pytest.raises(UserError, match=f"net.norm={norm} is not for policies"):
        Run(control("rl2", f"net.norm={norm}"))
