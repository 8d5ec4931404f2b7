"""RL² against a second implementation that lives step by step: returns, the gradient in every parameter, and what is done at test."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from helpers import engine, in_float64, random, small
from reimplemented import Weights, parameters
from torch import Tensor

from metarun import inner
from metarun.algorithm import Algorithm
from metarun.algos.control import _policies
from metarun.contract.measures import answers
from metarun.task import Context, Task, count, select

F64 = torch.float64
HIDDEN, DISCOUNT, TRACE, CRITIC, ENTROPY, PROGRESS = 4, 0.9, 0.7, 0.6, 0.2, 0.25
WORDS = ["algo=rl2", f"algo.hidden={HIDDEN}", f"algo.discount={DISCOUNT}", f"algo.trace={TRACE}"]
WORDS += [f"algo.critic={CRITIC}", f"algo.entropy={ENTROPY}", "net=mlp", "net.sizes=[5]", "net.activation=tanh", "way=1", "query=3"]
PLACES = {
    "choices": ["data=gridnav", "data.side=3", "data.horizon=4", "shot=2"],
    "numbers": ["data=navigation2d", "data.horizon=3", "shot=1"],
}


class Moment(NamedTuple):
    """One action of all actors, and what they thought."""

    action: Tensor
    reward: Tensor
    log_prob: Tensor
    entropy: Tensor
    value: Tensor  # v(h_t)


class Actors:
    """n actors in one environment, whose memory lasts (handbook 9.2)."""

    def __init__(self, algorithm: Algorithm, w: Weights, context: Context, n: int) -> None:
        self.problem, self.w, self.params = algorithm.problem, w, context.extras
        self.h = self.c = torch.zeros(n, HIDDEN, dtype=F64)
        self.told, self.reward = torch.zeros(n, self.problem.outputs, dtype=F64), torch.zeros(n, dtype=F64)

    def multiplied(self, n: int) -> None:
        self.h, self.c, self.told, self.reward = (part.repeat_interleave(n, 0) for part in (self.h, self.c, self.told, self.reward))

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.w[name + ".weight"].T + self.w[name + ".bias"]

    def episode(self, keys: Tensor) -> list[Moment]:
        """One episode each, by the method's own noise; no gradient flows through what was done."""
        world = self.problem.simulator
        assert world is not None
        state, chance, noise = world.reset(self.params, keys), world.noise(keys), _policies.noise(self.problem, keys)
        done = []
        for t in range(world.horizon):
            begins = torch.full((len(keys), 1), float(t == 0), dtype=F64)
            f = self.linear("net.linears.0", world.observe(self.params, state)).tanh()
            reward = self.reward[:, None]
            gates = self.linear("cell.gates", torch.cat([f, self.told, self.told * reward, reward, begins, self.h], 1))
            read, forget, write, new = gates.split(HIDDEN, 1)
            self.c = self.c / (1 + (-forget).exp()) + new.tanh() / (1 + (-read).exp())
            self.h = self.c.tanh() / (1 + (-write).exp())
            answer, value = self.linear("actor", self.h), self.linear("value", self.h)[:, 0]
            if "log_std" in self.w:
                std = self.w["log_std"].exp()
                action = self.told = (answer + std * noise[:, t]).detach()
                log_prob = (-((action - answer) ** 2) / (2 * std**2) - std.log() - math.log(2 * math.pi) / 2).sum(1)
                entropy = (std.log() + 0.5 + math.log(2 * math.pi) / 2).sum().expand(len(keys))
            else:
                p = answer.exp() / answer.exp().sum(1, keepdim=True)
                action = (answer + noise[:, t]).argmax(1)
                log_prob, entropy = p[torch.arange(len(keys)), action].log(), -(p * p.log()).sum(1)
                self.told = torch.eye(self.problem.outputs, dtype=F64)[action]
            state, self.reward = world.step(self.params, state, action, chance[:, t])
            done.append(Moment(action, self.reward, log_prob, entropy, value))
        return done


def objective(algorithm: Algorithm, w: Weights, task: Task) -> tuple[Tensor, Tensor, Tensor]:
    """−mean return of an episode; what is descended, over whole lives: actor, critic and entropy (docstring of RL2); the mean entropy."""
    n, episodes = len(task.query.x), len(task.context.support.x) + 1
    actors, life = Actors(algorithm, w, task.context, n), []
    for i in range(episodes):
        life += actors.episode(inner.fold_in(task.query.x, i))
    length = len(life)
    left = [sum(DISCOUNT**i for i in range(length - t)) for t in range(length)]
    values = [moment.value.detach() * left[t] for t, moment in enumerate(life)]
    advantages: list[Tensor] = []
    following = later = torch.zeros(n, dtype=F64)
    for t in reversed(range(length)):
        following = life[t].reward + DISCOUNT * later - values[t] + DISCOUNT * TRACE * following
        later = values[t]
        advantages.insert(0, following)
    slope = torch.zeros((), dtype=F64)
    for t, moment in enumerate(life):
        for i in range(n):
            baseline = sum(advantages[t][j] for j in range(n) if j != i) / (n - 1)
            slope = slope - moment.log_prob[i] * (advantages[t][i] - baseline)
            slope = slope + CRITIC * (moment.value[i] - (advantages[t][i] + values[t][i]) / left[t]) ** 2
            slope = slope - (1 - PROGRESS) * ENTROPY * moment.entropy[i]
    entropy = torch.stack([moment.entropy for moment in life]).mean()
    rewards = torch.stack([moment.reward for moment in life])
    return -rewards.sum() / (n * episodes), slope / (n * length), entropy


@pytest.fixture(params=PLACES)
def learner(request: pytest.FixtureRequest) -> tuple[Algorithm, Task]:
    """With weights that make actions depend on the past."""
    algorithm, tasks = in_float64(small(*WORDS, *PLACES[request.param]), tasks=2)
    for i, parameter in enumerate(algorithm.parameters()):
        parameter.data.add_(0.5 * random(*parameter.shape, seed=i))
    return algorithm, tasks


def test_the_gradient_is_that_of_advantage_actor_critic(learner: tuple[Algorithm, Task]) -> None:
    algorithm, tasks = learner
    w = parameters(algorithm)
    both = [objective(algorithm, w, select(tasks, i)) for i in range(count(tasks))]
    loss, slope, entropy = (sum(parts) / len(both) for parts in zip(*both))
    expected = torch.autograd.grad(slope, list(w.values()))
    algorithm.zero_grad(set_to_none=True)
    metrics = engine().meta_gradient(algorithm, tasks, PROGRESS)
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-9)
    assert metrics["entropy"] == pytest.approx(float(entropy.detach()), rel=1e-9)
    for (name, parameter), gradient in zip(algorithm.named_parameters(), expected):
        assert parameter.grad is not None, name
        assert gradient.norm() > 0, name
        assert (parameter.grad - gradient).norm() <= 1e-9 * gradient.norm(), name


def test_at_test_every_query_goes_on_from_the_episodes_of_the_support(learner: tuple[Algorithm, Task]) -> None:
    algorithm, tasks = learner
    for i in range(count(tasks)):
        context, query, *_ = select(tasks, i)
        with torch.no_grad():
            actors = Actors(algorithm, parameters(algorithm), context, 1)
            for k in range(len(context.support.x)):
                actors.episode(inner.fold_in(context.key, k)[None])
            actors.multiplied(len(query.x))
            last = actors.episode(query.x)
        _, actions, rewards = answers(algorithm, context, query.x)
        torch.testing.assert_close(actions, torch.stack([moment.action for moment in last], 1), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(rewards, torch.stack([moment.reward for moment in last], 1), rtol=1e-9, atol=1e-12)
