"""Bayesian MAML: particles that adapt together by Stein variational gradient descent, trained to chase a better posterior.
Yoon, Kim, Dia, Kim, Bengio, Ahn 2018, arXiv:1806.03836; Liu, Wang 2016, arXiv:1608.04471."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn

from metarun import inner
from metarun.algorithm import Metrics
from metarun.algos.bayes._several import Several, SeveralLearner
from metarun.algos.bayes.ensemble import another
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.runtime.private import tree_leaves, tree_map
from metarun.task import Batch, Context, Task


class BMAML(SeveralLearner):
    """Bayesian model-agnostic meta-learning.

        θ_i ← θ_i + α mean over particles j of [k(θ_j, θ_i) ∇log p(θ_j | D) + ∇_{θ_j} k(θ_j, θ_i)] / n      (equation 5)
        k(θ, θ') = exp(−‖θ − θ'‖² / h),   h = median of ‖θ_i − θ_j‖² / log M
        Θ_n from Θ_0 by n steps on the support; Θ_{n+s} from Θ_n by s steps on support and query            (section 3.2)
        min over Θ_0  mean over tasks of Σ_i ‖θ_{n,i} − sg(θ_{n+s,i})‖²

    log p(θ | D) is the log-likelihood under a flat prior: with n examples (of a regression: numbers) it is −n L, L being the mean
    cross-entropy, or −n L / (2 noise²), L being the mean squared error. α is the step size on L, as MAML's: a particle alone takes
    the same steps.

    Deviations: (1) The authors give noise and weights of a regression gamma priors and learn them; here ``noise`` is fixed and the
    prior flat. (2) The median is that of pairs, without the zeros on the diagonal. (3) For images the authors have particles of the
    last layer alone; here they are of all weights.

    Args:
        net, problem: the backbone and the data's shape. The first particle begins as this net, the others as nets like it.
        particles: M.
        leader_steps: s.
        inner_lr: α.
        inner_steps, test_steps: n in meta-training, and in validation and test.
        noise: of a regression's targets around the answer of a particle, a standard deviation.
        mode: how second derivatives are computed, ``unroll`` or ``mixed`` (see ``inner.gradient``).
    """

    def __init__(
        self, net: Net, problem: Problem, *, particles: Annotated[int, Ge(1)], leader_steps: Annotated[int, Ge(0)], **settings: Any
    ) -> None:
        if net.norm == "running":
            raise ValueError(
                "net.norm=running keeps the statistics of one net, and particles are several: choose net.norm=batch or support"
            )
        super().__init__(net, problem, **settings)
        self.particles, self.leader_steps = particles, leader_steps
        # The others' weights in the order of ``learner``, [M - 1, *shape].
        drawn = [[*another(net).parameters(), *nn.Linear(net.features, problem.outputs).parameters()] for _ in range(particles - 1)]
        self.others = nn.ParameterList(torch.stack([w.detach() for w in same]) for same in zip(*drawn))

    def begin(self, context: Context) -> Several:
        first = self.learner()
        others = self.others or [w[None, ...][:0] for w in first.values()]
        return Several({name: torch.cat([w[None], rest]) for (name, w), rest in zip(first.items(), others)}, context.support.x)

    def step(self, state: Several, context: Context, k: int) -> Several:
        return state._replace(fast=self.moved(state.fast, *context.support))

    def moved(self, fast: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The particles after one step on the examples x, y."""
        grads = inner.gradient(self.sum_of_losses, fast, x, y, mode=self.mode)
        similar, width = kernel(fast)
        repulsion = 1 / len(y) if self.problem.kind.labelled else 2 * self.noise**2 / y.numel()

        def stein(w: Tensor, g: Tensor) -> Tensor:
            flat = w.reshape(len(w), -1)
            away = 2 / width * (similar.sum(1, keepdim=True) * flat - similar @ flat)
            return (repulsion * away - similar @ g.reshape(len(g), -1)).view_as(w) / self.particles

        return tree_map(lambda w, g: w + self.inner_lr * stein(w, g), fast, grads)

    def objective(self, states: Sequence[Several], task: Task, progress: float) -> tuple[Tensor, Metrics]:
        follower, (support, *_), query = states[-1].fast, task.context, task.query
        x, y = Batch(*(torch.cat(pair) for pair in zip(support, query)))
        with torch.no_grad():
            _, metrics = super().objective(states, task, progress)
            leader = inner.loop(lambda fast, _: self.moved(fast, x, y), inner.constant(follower), self.leader_steps)
        gaps = [(w - goal).square().sum() for w, goal in zip(tree_leaves(follower), tree_leaves(leader))]
        return torch.stack(gaps).sum(), metrics

    def follow_net(self) -> None:
        for (name, w), rest in zip(self.learner().items(), self.others):
            if name.startswith("net."):
                rest.data.copy_(w.detach().expand_as(rest))

    def sets(self, train: bool) -> int:
        return self.particles


def kernel(fast: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """k between all particles [M, M], and its width h [], through which no gradient flows."""
    rows = torch.cat([w.reshape(len(w), -1) for w in fast.values()], 1)
    products = (centred := inner.upcast(rows - rows.mean(0))) @ centred.T  # centred, so that little cancels
    squares = products.diagonal()
    distances = (squares[:, None] + squares - 2 * products).clamp(min=0)
    first, second = torch.triu_indices(len(rows), len(rows), 1, device=rows.device)
    if not len(first):
        return torch.ones_like(distances), torch.ones_like(squares[0])
    pairs = distances[first, second].detach().sort().values
    middle = (pairs[len(pairs) // 2] + pairs[(len(pairs) - 1) // 2]) / 2
    width = (middle / math.log(len(rows))).clamp(min=torch.finfo(rows.dtype).tiny)
    return torch.exp(-distances / width), width
