"""MAML++: MAML made stable by six changes, each of which can be switched off.
Antoniou, Edwards, Storkey 2019, arXiv:1810.09502."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, NamedTuple

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.func import functional_call

from metarun import inner
from metarun.algorithm import Metrics
from metarun.learners import StepLearner
from metarun.nets.base import Net
from metarun.nets.norm import Norm
from metarun.problem import Problem
from metarun.task import Context, Task


class Stepped(NamedTuple):
    """A learner that has come some steps far."""

    fast: dict[str, Tensor]  # adapted weights by parameter name
    own: dict[str, Tensor]  # what belongs to this step alone, norm weights and statistics, by name
    support_x: Tensor  # [way * shot, *input_shape], for nets that normalise queries by the support


class MAMLPP(StepLearner):
    """MAML++.

        φ_{k+1,l} = φ_{k,l} − α_{k,l} ∇_l L_support(φ_k; γ_k, β_k)               (l: the weight tensors)
        min_{θ, α, γ, β}  mean over tasks of Σ_k v_k L_query(φ_k; γ_k, β_k)      (k = 1 … K)

    The changes of section 4: multi-step loss (v_k, see ``loss_weights``), derivative-order annealing, running statistics per step,
    norm weights γ_k, β_k per step, learned rates per layer and step, and cosine annealing of the outer rate, which is the outer
    optimizer's ``schedule: cosine``. Without all of them it is MAML, bit for bit.

    Deviations: (1) Statistics and norm weights belong to the weights after k = 0 … K steps, for support and query alike; in the
    authors' code the query after step k shares those of the support before it. (2) That code collects running statistics and never
    uses them; here ``net.norm=running`` does, after calibration, and ``net.norm=batch`` is what the paper's figures come from. (3) The
    test takes the one best checkpoint, where the authors average the answers of five.

    Args:
        net, problem: the backbone and the data's shape.
        inner_lr: α, on the mean support loss, or what the learned rates start from.
        inner_steps, test_steps: K in meta-training, and in validation and test, where later steps use what belongs to step K.
        multi_step_loss: fraction of meta-training in which the losses after all steps count; 0 for never.
        first_order_until: fraction of meta-training in which second derivatives are dropped.
        step_statistics: with ``net.norm=running``, population statistics per step.
        step_norms: norm weights per step, which the inner loop does not adapt; otherwise it does, as in ``maml``.
        step_rates: learned rates per weight tensor and step.
        mode: how second derivatives are computed, ``unroll`` or ``mixed`` (see ``inner.gradient``).
    """

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        inner_steps: Annotated[int, Ge(1)],
        multi_step_loss: Annotated[float, Ge(0), Le(1)],
        first_order_until: Annotated[float, Ge(0), Le(1)],
        step_statistics: bool,
        step_norms: bool,
        step_rates: bool,
        mode: inner.Mode,
        **settings: Any,
    ) -> None:
        super().__init__(net, problem, inner_steps=inner_steps, **settings)
        self.multi_step_loss, self.first_order_until, self.full_mode, self.mode = multi_step_loss, first_order_until, mode, mode
        self.every_state = self.every_loss = multi_step_loss > 0
        self.loss_weights: Tensor
        # A buffer, not a setting: it changes with every training step, and each setting has a recording of its own.
        self.register_buffer("loss_weights", torch.zeros(inner_steps), persistent=False)
        norms = {name: module for name, module in self.named_modules() if isinstance(module, Norm)}
        self.scales = [f"{name}.{part}" for name in norms for part in ("weight", "bias") if step_norms]
        # The net's own are those of step 0.
        self.later_scales = nn.ParameterList(self.get_parameter(name).repeat(inner_steps, 1) for name in self.scales)
        if step_rates:
            self.rates = nn.Parameter(torch.full((inner_steps, len(self.learner()) - len(self.scales)), self.inner_lr))
        self.step_rates = step_rates
        self.moments = [f"{name}.{part}" for name in norms for part in ("mean", "var") if step_statistics and net.norm == "running"]
        if self.moments:
            self.register_buffer("statistics", torch.cat([self.get_buffer(name) for name in self.moments]).repeat(inner_steps + 1, 1))

    @torch.no_grad()
    def follow_net(self) -> None:
        for name, rows in zip(self.scales, self.later_scales):
            rows.copy_(self.get_parameter(name).expand_as(rows))

    def anneal(self, progress: float) -> None:
        self.mode = "none" if progress < self.first_order_until else self.full_mode
        self.every_loss = progress < self.multi_step_loss
        if self.every_loss:
            weights = loss_weights(self.inner_steps, progress / self.multi_step_loss)
            self.loss_weights.copy_(self.loss_weights.new_tensor(weights))

    def own(self, k: int) -> dict[str, Tensor]:
        """What belongs to the weights after k steps alone, by name; from step K on it stays."""
        k = min(k, self.inner_steps)
        own = {name: rows[k - 1] if k else self.get_parameter(name) for name, rows in zip(self.scales, self.later_scales)}
        if self.moments:
            sizes = [len(self.get_buffer(name)) for name in self.moments]
            own |= dict(zip(self.moments, self.get_buffer("statistics")[k].split(sizes)))
        return own

    def begin(self, context: Context) -> Stepped:
        fast = {name: weight for name, weight in self.learner().items() if name not in self.scales}
        return Stepped(fast, self.own(0), context.support.x)

    def step(self, state: Stepped, context: Context, k: int) -> Stepped:
        grads = inner.gradient(self.support_loss, state.fast, state.own, *context.support, mode=self.mode)
        rates = dict(zip(state.fast, self.rates[min(k, self.inner_steps - 1)])) if self.step_rates else self.inner_lr
        return state._replace(fast=inner.sgd(state.fast, grads, rates), own=self.own(k + 1))

    def predict(self, state: Stepped, x: Tensor) -> Tensor:
        return functional_call(self, {**state.fast, **state.own}, (x, state.support_x))

    def objective(self, states: Sequence[Stepped], task: Task, progress: float) -> tuple[Tensor, Metrics]:
        last, metrics = super().objective(states, task, progress)
        if not self.every_loss:
            return last, metrics
        x, y = task.query
        earlier = [self.problem.loss(self.predict(state, x), y) for state in states[1:-1]]
        return self.loss_weights @ torch.stack([*earlier, last]), metrics

    @torch.no_grad()
    def calibrate(self, tasks: Iterable[Task]) -> None:
        if not self.moments:
            return super().calibrate(tasks)
        tasks, was_training = list(tasks), self.training
        self.eval()
        states = [self.begin(task.context) for task in tasks]
        for k in range(self.inner_steps + 1):
            self.net.calibrate(zip(states, tasks), lambda pair: self.predict(pair[0], pair[1].query.x))
            self.get_buffer("statistics")[k] = torch.cat([self.get_buffer(name) for name in self.moments])
            states = [self.step(state._replace(own=self.own(k)), task.context, k) for state, task in zip(states, tasks)]
        self.train(was_training)


def loss_weights(steps: int, annealed: float) -> list[float]:
    """v_1 … v_K: all equal at ``annealed`` 0, then less and less for all but the last, down to 0.03 / K; they sum to 1."""
    early = max(1 - annealed, 0.03) / steps
    return [*[early] * (steps - 1), 1 - (steps - 1) * early]
