"""RL²: a recurrent policy that is told its last action and reward; what it learns of an environment is in its memory, across episodes.
Duan et al. 2016, arXiv:1611.02779, and, with an LSTM and actor-critic, Wang et al. 2016, arXiv:1611.05763."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from metarun import inner
from metarun.algorithm import Footprint, Metrics
from metarun.algos.control import _policies
from metarun.algos.control._lives import Life, Living
from metarun.algos.control._returns import gae, others, returns_to_go
from metarun.nets.base import Net
from metarun.nets.lstm import LSTMCell, Memory
from metarun.problem import Past, Problem, Trajectories
from metarun.task import Context, Task


class RL2(Living):
    """A policy with a memory, trained on whole lives of ``shot`` + 1 episodes in one environment.

        h_t = LSTM([f(o_t), a_{t−1}, a_{t−1} r_{t−1}, r_{t−1}, whether an episode begins], h_{t−1})
        π_t = softmax(W h_t), or N(W h_t, diag σ²) for actions of numbers;   V_t = n_t v(h_t), n_t = Σ_{i<T−t} γ^i
        min  mean over t of −log π_t(a_t) (Â_t − b_t) + ``critic`` (v(h_t) − R_t / n_t)² − ``entropy`` H(π_t)       (A2C)

    Â_t = Σ_i (γλ)^i δ_{t+i} with δ_t = r_t + γ V_{t+1} − V_t are generalised advantages (Schulman et al. 2016, arXiv:1506.02438), R_t =
    Â_t + V_t; b_t is the mean of Â_t over the task's other lives, of which there are ``query``. All three are constants. Rewards of later
    episodes count, so that it pays to explore in the first. Every gradient has new lives: a simulator of tensors has them for less than the
    further steps on old ones that PPO would take.

    Deviations: (1) The outer rule is the A2C of Wang et al. and ``optim``, where Duan et al. have TRPO and a GRU. (2) The critic says the
    mean of the rewards to come, as it is known how many there are. (3) The weight of the entropy falls to 0. (4) A net f reads
    observations, and the product of action and reward is read, too. (5) The memory is there before it is learned: inputs have large initial
    weights, recurrence has small ones, and units forget after 1 to T times (Tallec & Ollivier 2018, arXiv:1804.11188).

    Args:
        net, problem: the backbone and the data's shape.
        hidden: units of the LSTM.
        discount: γ, within a life.
        trace: λ.
        critic: weight of its error.
        entropy: weight of the policy's entropy at the beginning of meta-training.
        std: σ before meta-training, where actions are numbers.
    """

    weight: Tensor  # [], of the entropy, now

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        hidden: Annotated[int, Ge(1)],
        discount: Annotated[float, Gt(0), Le(1)],
        trace: Annotated[float, Ge(0), Le(1)],
        critic: Annotated[float, Ge(0)],
        entropy: Annotated[float, Ge(0)],
        std: Annotated[float, Gt(0)],
    ) -> None:
        _policies.check(net)
        super().__init__(net, problem)
        self.hidden, self.discount, self.trace, self.critic, self.entropy = hidden, discount, trace, critic, entropy
        outputs = problem.outputs
        self.cell = LSTMCell(net.features + 2 * outputs + 2 + hidden, hidden)
        self.actor, self.value = nn.Linear(hidden, outputs), nn.Linear(hidden, 1)
        self.log_std = None if problem.choices else nn.Parameter(torch.full((outputs,), math.log(std)))
        self.register_buffer("weight", torch.tensor(entropy), persistent=False)
        with torch.no_grad():
            self.actor.weight.mul_(0.1)
            weight, (read, forget, *_) = self.cell.gates.weight.normal_(), self.cell.gates.bias.split(hidden)
            weight[:, : net.features] /= math.sqrt(net.features)
            weight[:, -hidden:] *= 0.1 / math.sqrt(hidden)
            forget.copy_(torch.linspace(1, self.horizon * (problem.most_support + 1), hidden).log())
            read.copy_(-forget)

    def steps(self, context: Context, train: bool) -> int:
        return 0 if train else super().steps(context, train)  # the objective lives whole lives of its own

    def anneal(self, progress: float) -> None:
        self.weight.fill_(self.entropy * (1 - progress))

    def blank(self, like: Tensor) -> Memory:
        return Memory(*[like.new_zeros(like.shape[0], self.hidden)] * 2)

    def noise(self, keys: Tensor) -> Tensor:
        return _policies.noise(self.problem, keys)

    def act(self, past: Past, observation: Tensor, time: Tensor, noise: Tensor) -> tuple[Tensor, Memory]:
        x = self.inputs(observation, past.action, past.reward, (time == 0).expand(past.reward.shape))
        memory = self.read(past.memory, x)
        return self.policy(memory.output).draw(noise), memory

    def inputs(self, observations: Tensor, actions: Tensor, rewards: Tensor, begins: Tensor) -> Tensor:
        """What the LSTM reads [n, …] at n times, of observations [n, *observation] and of the action and the reward before them."""
        seen = inner.upcast(self.net(observations, observations))
        done = (inner.one_hot(actions, self.problem.outputs) if self.problem.choices else actions).to(seen.dtype)
        return torch.cat([seen, done, done * rewards[:, None], rewards[:, None], begins[:, None].to(seen.dtype)], -1)

    def read(self, memory: Memory, x: Tensor) -> Memory:
        """The memory after one more input x [n, …]."""
        return Memory(*self.cell(torch.cat([x, memory.output], -1), memory.cell))

    def policy(self, outputs: Tensor) -> _policies.Policy:
        """π at outputs [..., hidden] of the LSTM."""
        return _policies.policy(self.actor(outputs), self.log_std)

    def lives(self, task: Task) -> tuple[Trajectories, Past]:
        """Whole lives, one for each query: what was done in all episodes, [n, T, …], and of what went before each action the last two."""
        blank = self.problem.rest(task.context.extras, task.query.x.shape[0])
        life, all_done = Life(blank._replace(memory=self.blank(blank.reward)), task.context.extras), []
        for i in range(task.context.support.x.shape[0] + 1):
            done, past = self.live(life, inner.fold_in(task.query.x, i))
            life = life._replace(past=past)
            all_done.append(done)
        whole = Trajectories(*(torch.cat(parts, 1) for parts in zip(*all_done)))
        before = (torch.cat([first[:, None], later[:, :-1]], 1) for first, later in zip(blank[1:], whole[1:]))
        return whole, Past((), *before)

    def replay(self, lives: Trajectories, before: Past) -> tuple[_policies.Policy, Tensor]:
        """The policy and the critic [n, T] at every time of these lives, with a gradient."""
        n, length = lives.rewards.shape
        begins = torch.arange(length, device=lives.rewards.device) % self.horizon == 0
        flat = (part.flatten(0, 1) for part in (lives.observations, before.action, before.reward, begins.expand(n, -1)))
        x = self.inputs(*flat).unflatten(0, (n, length)).movedim(1, 0)
        _, outputs = inner.loop(self.read, self.blank(lives.rewards[:, 0]), length, x, read=lambda memory: memory.output)
        outputs = outputs.movedim(0, 1)
        return self.policy(outputs), self.value(outputs).squeeze(-1)

    def objective(self, states: Sequence[Life], task: Task, progress: float) -> tuple[Tensor, Metrics]:
        lives, before = self.lives(task)
        policy, means = self.replay(lives, before)
        episodes = lives.rewards.shape[1] // self.horizon
        left = returns_to_go(torch.ones_like(lives.rewards), self.discount)
        values = left * means
        ahead = gae(lives.rewards, values.detach(), self.discount, self.trace)
        error = (means - (ahead + values).detach() / left).square().mean()
        better = ahead - others(ahead)
        slope = -(policy.log_prob(lives.actions) * better).mean() + self.critic * error - self.weight * policy.entropy.mean()
        loss = -lives.returns.mean() / episodes
        return loss + slope - slope.detach(), {"loss": loss, "return": -loss, "critic": error, "entropy": policy.entropy.mean()}

    def footprint(self, task: Task, train: bool) -> Footprint:
        times = task.query.x.shape[0] * (task.context.support.x.shape[0] + 1) * self.horizon
        return Footprint(times, bytes=times * 64 * self.hidden if train else 0)  # some sixteen numbers for each unit
