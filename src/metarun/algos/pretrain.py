"""Joint supervised pre-training on all training classes, then fine-tuning on the support set: the baseline of meta-learning.
The baseline of Finn et al. 2017 (arXiv:1703.03400, section 5) and Chen et al. 2019 (arXiv:1904.04232, "Baseline")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from metarun import inner
from metarun.algorithm import Adapted, GradientLearner, Metrics
from metarun.nets.base import Net
from metarun.task import Context, Problem, Task


class Pretrain(GradientLearner):
    """Joint pre-training and fine-tuning.

        train:  min_θ  mean over examples of CE(W f(x), class of x), all training classes at once
        test:   a new zero head on top of f, ``test_steps`` gradient steps on the support loss

    For regression one net is fitted to the points of all tasks, and fine-tuned as a whole.

    Args:
        net, problem: the backbone and the data's shape.
        inner_lr: step size of fine-tuning, on the mean support loss.
        test_steps: gradient steps of fine-tuning.
        adapt: ``head`` fine-tunes the new head only, ``all`` the whole net.
    """

    fixed_way = False
    class_ordered = False

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        inner_lr: Annotated[float, Gt(0)],
        test_steps: Annotated[int, Ge(0)],
        adapt: Literal["head", "all"],
    ) -> None:
        super().__init__(net, problem)
        self.inner_lr, self.test_steps, self.adapt = inner_lr, test_steps, adapt
        self.classify = problem.kind == "classification"
        if self.classify:
            self.head = nn.Linear(net.features, problem.classes)  # of the joint task; an episode gets a new one

    def begin(self, context: Context) -> Adapted:
        fast = self.learner()
        if self.classify:
            way, like = context.classes.shape[0], self.head.weight
            fast |= {"head.weight": like.new_zeros(way, like.shape[1]), "head.bias": like.new_zeros(way)}
        if self.adapt == "head":
            fast = {name: weight for name, weight in fast.items() if name.startswith("head.")}
        return Adapted(fast, context.support.x)

    def step(self, state: Adapted, context: Context, k: int) -> Adapted:
        grads = self.support_gradient(state.fast, context, "none")
        return state._replace(fast=inner.sgd(state.fast, grads, self.inner_lr))

    def objective(self, states: Sequence[Adapted], task: Task, progress: float) -> tuple[Tensor, Metrics]:
        support, query = task.context.support, task.query
        x, y = torch.cat([support.x, query.x]), torch.cat([support.y, query.y])
        target = task.context.classes[y] if self.classify else y
        prediction = self(x, x)
        loss = self.problem.loss(prediction, target)
        return loss, {"loss": loss, self.problem.metric: self.problem.score(prediction, target)}
