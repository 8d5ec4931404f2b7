"""MAML for acting: a policy from which a few policy-gradient steps, each on what it then did in the new environment, suffice.
Finn, Abbeel, Levine 2017, arXiv:1703.03400, algorithm 3."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import torch
from annotated_types import Gt, Le
from torch import Tensor, nn
from torch.func import functional_call

from metarun import inner
from metarun.algorithm import Footprint, Metrics
from metarun.algos.control import _policies
from metarun.algos.control._returns import Estimator, advantages, surrogate
from metarun.learners import InnerLoop
from metarun.nets.base import Net
from metarun.problem import Past, Problem, Trajectories
from metarun.task import Context, Task


class Actor(NamedTuple):
    """A policy in its environment."""

    fast: dict[str, Tensor]  # adapted weights by parameter name
    params: dict[str, Tensor]  # the environment's, for it alone: the policy sees observations


class MAMLRL(InnerLoop):
    """Model-agnostic meta-learning of a policy π_φ(a|s): N(μ_φ(s), diag σ_φ²) where actions are numbers, a softmax where they are choices.

        φ_0 = θ,   φ_{k+1} = φ_k + α ∇_φ mean over t and trajectories of log π_φ(a_t|s_t) Â_t        (trajectories of π_φk, equation 5)
        max_θ  mean over tasks of the return of π_φK                                              (trajectories of π_φK, algorithm 3)

    Â are discounted returns to go, less a linear baseline that is fitted to them, normalised to mean 0 and deviation 1, per task. Both
    gradients are score functions: actions are drawn, and nothing flows through the environment. What is estimated otherwise than by
    ``naive``, which most implementations have and which is biased, are the second derivatives of the inner step: see ``surrogate``.

    Deviations: (1) The outer step is that of ``optim``, Adam, on new trajectories for each gradient, where the paper has TRPO, and ProMP
    several steps on the same ones, clipped; with one step each, its probability ratios are 1 and its clip and its KL penalty do nothing.
    (2) The bias transform of the authors' code is left out. (3) The last layer begins at a hundredth of torch's size, so that all actions
    begin alike.

    Args:
        net, problem, settings: as of ``InnerLoop``; inner_lr is α.
        discount: γ of returns to go.
        std: σ before meta-training; its logarithm is learned and adapted like a weight.
        estimator: of second derivatives, see above.
    """

    kinds = frozenset({"control", "bandits"})
    parts = ("net.", "head.", "log_std")

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        discount: Annotated[float, Gt(0), Le(1)],
        std: Annotated[float, Gt(0)],
        estimator: Estimator,
        **settings: Any,
    ) -> None:
        _policies.check(net)
        if not problem.most_support:
            raise ValueError("shot=0 is not for algo=maml_rl, whose steps need trajectories: choose shot >= 1, 20 for example")
        super().__init__(net, problem, **settings)
        self.log_std = None if problem.choices else nn.Parameter(torch.full((problem.outputs,), math.log(std)))
        self.discount = discount
        self.estimator: Estimator = estimator
        with torch.no_grad():
            for weight in self.head.parameters():
                weight.mul_(0.01)

    def begin(self, context: Context) -> Actor:
        return Actor(self.learner(), context.extras)

    def step(self, state: Actor, context: Context, k: int) -> Actor:
        done = self.predict(state, inner.fold_in(context.support.x, k))
        grads = inner.gradient(self.policy_loss, state.fast, *done, advantages(done, self.discount), mode=self.mode)
        return state._replace(fast=inner.sgd(state.fast, grads, self.inner_lr))

    @torch.no_grad()
    def predict(self, state: Actor, x: Tensor) -> Trajectories:
        """What the policy does in the episodes of the keys x [n] int64."""

        def act(past: Past, observations: Tensor, time: Tensor, noise: Tensor) -> tuple[Tensor, Any]:
            return self.policy(state.fast, observations).draw(noise), ()

        return self.problem.simulate(state.params, act, x, noise=_policies.noise(self.problem, x))[0]

    def policy(self, fast: dict[str, Tensor], observations: Tensor) -> _policies.Policy:
        """π_φ at observations [n, *observation]."""
        return _policies.policy(inner.upcast(functional_call(self, fast, (observations, observations))), fast.get("log_std"))

    def policy_loss(self, fast: dict[str, Tensor], observations: Tensor, actions: Tensor, rewards: Tensor, advantages: Tensor) -> Tensor:
        """Minus the ``surrogate`` of trajectories; pure, as ``inner.gradient`` asks."""
        log_probs = self.policy(fast, observations.flatten(0, 1)).log_prob(actions.flatten(0, 1)).view_as(rewards)
        return -surrogate(log_probs, advantages, self.estimator)

    def objective(self, states: Sequence[Actor], task: Task, progress: float) -> tuple[Tensor, Metrics]:
        done = self.predict(states[-1], task.query.x)
        loss = self.problem.loss(done, task.query.y)
        slope = self.policy_loss(states[-1].fast, *done, advantages(done, self.discount))
        return loss + slope - slope.detach(), {"loss": loss, self.problem.metric: self.problem.score(done, task.query.y)}

    def footprint(self, task: Task, train: bool) -> Footprint:
        held = super().footprint(task, train)
        return held._replace(examples=held.examples * self.horizon, repeated=held.repeated * self.horizon)

    @property
    def horizon(self) -> int:
        """Actions of an episode."""
        assert self.problem.simulator
        return self.problem.simulator.horizon
