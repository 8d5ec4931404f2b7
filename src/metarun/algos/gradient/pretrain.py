"""Joint supervised pre-training on all training classes, then fine-tuning on the support set: the baseline of meta-learning.
The baseline of Finn et al. 2017 (arXiv:1703.03400, section 5) and Chen et al. 2019 (arXiv:1904.04232, "Baseline", "Baseline++")."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.func import functional_call

from metarun import inner
from metarun.algorithm import Metrics
from metarun.learners import Adapted, AdaptedHead, CarriesWeights, GradientLearner
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Context, Task


class Pretrain(GradientLearner, CarriesWeights):
    """Joint pre-training and fine-tuning.

        train:  min_θ  mean over examples of CE(W f(x), class of x), all training classes at once
        test:   a new zero head on top of f, ``test_steps`` gradient steps on the support loss

    Baseline++ (``head: cosine``) has scale · ‖w_c‖ cos(w_c, f(x)) in place of W f(x), in training and at test; the length of w_c is
    learned, as in the authors' code. For regression one net with a linear head is fitted to the points of all tasks.

    Deviations from Chen et al.: (1) A fine-tuning step takes the whole support, not 4 examples, so that their order does not matter.
    (2) A new head does not start at random: a linear one from zero, a cosine one from the classes' mean directions, where it is the
    nearest class mean by cosine. (3) The cosine head of all training classes starts with logits as small as a linear one's, whatever
    the scale: with large ones in random directions, features take long to come. (4) Steps are plain gradient descent, without momentum
    and dampening, and ``test_steps`` of them instead of 100 epochs of small batches. (5) ``scale`` is 10 for any number of classes; the
    authors' is 2 up to 200.

    Args:
        net, problem: the backbone and the data's shape.
        inner_lr: step size of fine-tuning, on the mean support loss.
        test_steps: gradient steps of fine-tuning.
        adapt: ``head`` fine-tunes the new head only, ``all`` the whole net.
        head: ``linear`` or ``cosine``.
        scale: of the cosine head.
        decay: weight decay of fine-tuning.
    """

    fixed_way = False
    label_dependent = False

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        inner_lr: Annotated[float, Gt(0)],
        test_steps: Annotated[int, Ge(0)],
        adapt: Literal["head", "all"],
        head: Literal["linear", "cosine"] = "linear",
        scale: Annotated[float, Gt(0)] = 10.0,
        decay: Annotated[float, Ge(0)] = 0.0,
    ) -> None:
        super().__init__(net, problem)
        self.inner_lr, self.test_steps, self.adapt = inner_lr, test_steps, adapt
        self.encodes = adapt == "head"
        self.decay = decay
        self.classify = problem.kind.labelled
        if self.classify:
            # Of the joint task; an episode gets a new one.
            cosine, sizes = head == "cosine", (net.features, problem.classes)
            self.head = CosineHead(*sizes, scale) if cosine else nn.Linear(*sizes)

    def begin(self, context: Context) -> Adapted | AdaptedHead:
        x, cosine = context.support.x, isinstance(self.head, CosineHead)
        features = self.net(x, x) if cosine or self.adapt == "head" else x
        head = {name: weight for name, weight in self.learner().items() if name.startswith("head.")}
        if self.classify:
            head = self.new_head(features, context)
        return AdaptedHead(head, features, x) if self.adapt == "head" else Adapted(self.learner() | head, x)

    def new_head(self, features: Tensor, context: Context) -> dict[str, Tensor]:
        """A head for the classes of an episode, by parameter name, from ``features`` [n, features] of its support."""
        way, like = context.classes.shape[0], self.head.weight
        if isinstance(self.head, CosineHead):
            return {"head.weight": inner.directions(inner.class_means(inner.directions(features), context.support.y, way))}
        return {"head.weight": like.new_zeros(way, like.shape[1]), "head.bias": like.new_zeros(way)}

    def step(self, state: Adapted | AdaptedHead, context: Context, k: int) -> Adapted | AdaptedHead:
        if isinstance(state, AdaptedHead):
            grads = inner.gradient(self.head_loss, state.fast, state.features, context.support.y, mode="none")
        else:
            grads = self.support_gradient(state.fast, context, "none")
        shrunk = inner.sgd(state.fast, state.fast, self.inner_lr * self.decay) if self.decay else state.fast
        return state._replace(fast=inner.sgd(shrunk, grads, self.inner_lr))

    def head_loss(self, fast: dict[str, Tensor], features: Tensor, y: Tensor) -> Tensor:
        """Mean loss of an adapted head on features [n, features]; pure, as ``inner.gradient`` asks."""
        return self.problem.loss(self.headed(fast, features), y)

    def headed(self, fast: dict[str, Tensor], features: Tensor) -> Tensor:
        """What an adapted head makes of features [n, features]."""
        return functional_call(self.head, {name.removeprefix("head."): weight for name, weight in fast.items()}, features)

    def answers(self, state: Adapted | AdaptedHead, x: Tensor) -> Callable[[Adapted | AdaptedHead], Tensor]:
        if not isinstance(state, AdaptedHead):
            return super().answers(state, x)
        features = self.net(x, state.support_x)
        return lambda state: self.headed(state.fast, features)

    def predict(self, state: Adapted | AdaptedHead, x: Tensor) -> Tensor:
        return self.answers(state, x)(state) if isinstance(state, AdaptedHead) else super().predict(state, x)

    def objective(self, states: Sequence[Adapted | AdaptedHead], task: Task, progress: float) -> tuple[Tensor, Metrics]:
        support, query = task.context.support, task.query
        x, y = torch.cat([support.x, query.x]), torch.cat([support.y, query.y])
        target = task.context.classes[y] if self.classify else y
        prediction = self(x, x)
        loss = self.problem.loss(prediction, target)
        return loss, {"loss": loss, self.problem.metric: self.problem.score(prediction, target)}


class CosineHead(nn.Linear):
    """Logits scale · ‖w_c‖ cos(w_c, x): [n, features] to [n, classes]. The length of x does not matter."""

    def __init__(self, features: int, classes: int, scale: float) -> None:
        super().__init__(features, classes, bias=False)
        self.scale = scale
        self.weight.data.div_(scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(inner.directions(x), self.weight)
