"""What several methods share: learners that adapt weights by gradient steps, that solve for a head, or that compare with prototypes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.func import functional_call

from metarun import inner
from metarun.abilities import Continues
from metarun.algorithm import Algorithm, Footprint, State
from metarun.nets.base import Net
from metarun.nets.mlp import MLP
from metarun.problem import Problem
from metarun.task import Context, Task


class Adapted(NamedTuple):
    """The state of a learner that adapts weights."""

    fast: dict[str, Tensor]  # adapted weights by parameter name
    support_x: Tensor  # [way * shot, *input_shape], for nets that normalise queries by the support


class GradientLearner(Algorithm):
    """A net with a linear head whose weights, or some of them, take gradient steps on the support loss.

    ``forward`` answers with the meta-learned weights; ``functional_call`` of it with ``fast`` answers with adapted ones.

    Attributes:
        parts: how the names of the learner's own weights begin; all others are a method's further meta-parameters.
    """

    parts: tuple[str, ...] = ("net.", "head.")
    fixed_way = True
    label_dependent = True

    def __init__(self, net: Net, problem: Problem) -> None:
        super().__init__(net, problem)
        self.head = nn.Linear(net.features, problem.outputs)

    def forward(self, x: Tensor, support_x: Tensor) -> Tensor:
        """Logits or predictions [n, outputs] of x [n, *input_shape]."""
        return self.head(self.net(x, support_x))

    def learner(self) -> dict[str, Tensor]:
        """The learner's weights by name: what ``fast`` starts from, without a method's other meta-parameters."""
        return {name: p for name, p in self.named_parameters() if name.startswith(self.parts)}

    def support_loss(self, fast: dict[str, Tensor], shared: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        """Mean loss on the support x, y with adapted weights ``fast``, the others being ``shared``; pure, as ``inner.gradient`` asks."""
        return self.problem.loss(functional_call(self, {**shared, **fast}, (x, x)), y)

    def support_gradient(self, fast: dict[str, Tensor], context: Context, mode: inner.Mode) -> dict[str, Tensor]:
        """The inner gradient at the adapted weights ``fast``, a tree like them."""
        shared = {name: p for name, p in self.learner().items() if name not in fast}
        return inner.gradient(self.support_loss, fast, shared, *context.support, mode=mode)

    def predict(self, state: State, x: Tensor) -> Any:
        return functional_call(self, state.fast, (x, state.support_x))


class CarriesWeights(Continues):
    """What lasts from one task to the next is the adapted weights, ``fast`` of the state."""

    def carry_on(self, before: State, fresh: State, context: Context) -> State:
        return fresh._replace(fast=before.fast)


class StepLearner(GradientLearner):
    """A learner with an inner loop of steps of one size; from the meta-learned weights on, unless a method begins elsewhere.

    Args:
        net, problem: the backbone and the data's shape.
        inner_lr: step size, on the mean support loss.
        inner_steps, test_steps: steps in meta-training, and in validation and test.
    """

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        inner_lr: Annotated[float, Gt(0)],
        inner_steps: Annotated[int, Ge(0)],
        test_steps: Annotated[int, Ge(0)],
    ) -> None:
        super().__init__(net, problem)
        self.inner_lr, self.inner_steps, self.test_steps = inner_lr, inner_steps, test_steps

    def begin(self, context: Context) -> State:
        return Adapted(self.learner(), context.support.x)


class InnerLoop(StepLearner, CarriesWeights):
    """A learner whose inner loop is gradient descent that meta-training differentiates through.

        φ_{k+1} = φ_k − step_size ∘ gradient(φ_k)

    By default φ are all weights of the learner; methods say otherwise in ``begin``, or what a step is made of in the two others.

    Args:
        net, problem, settings: as of ``StepLearner``.
        first_order: drop the second derivatives.
        mode: how second derivatives are computed, ``unroll`` or ``mixed`` (see ``inner.gradient``).
    """

    def __init__(self, net: Net, problem: Problem, *, first_order: bool, mode: inner.Mode, **settings: Any) -> None:
        super().__init__(net, problem, **settings)
        self.mode: inner.Mode = "none" if first_order else mode

    def step(self, state: State, context: Context, k: int) -> State:
        return state._replace(fast=inner.sgd(state.fast, self.gradient(state, context), self.step_size(state.fast)))

    def footprint(self, task: Task, train: bool) -> Footprint:
        return super().footprint(task, train)._replace(kept=inner.kept_by(self.mode))

    def gradient(self, state: State, context: Context) -> dict[str, Tensor]:
        """The direction of an inner step, upwards: a tree like ``state.fast``."""
        return self.support_gradient(state.fast, context, self.mode)

    def step_size(self, fast: dict[str, Tensor]) -> float | Tensor | dict[str, Tensor]:
        """One number for all of ``fast``, or a tree like it."""
        return self.inner_lr


class AdaptedHead(NamedTuple):
    """A head on features that were computed once."""

    fast: dict[str, Tensor]  # adapted weights of the head by parameter name
    features: Tensor  # [way * shot, features] of the support, in the graph of the body
    support_x: Tensor  # [way * shot, *input_shape], for nets that normalise queries by the support


class HeadLearner(InnerLoop):
    """A net with a linear head which alone takes gradient steps, on features that are computed once."""

    encodes = True

    def begin(self, context: Context) -> State:
        x = context.support.x
        return AdaptedHead({"head.weight": self.head.weight, "head.bias": self.head.bias}, self.net(x, x), x)

    def gradient(self, state: State, context: Context) -> dict[str, Tensor]:
        return inner.gradient(self.head_loss, state.fast, state.features, context.support.y, mode=self.mode)

    def head_loss(self, fast: dict[str, Tensor], features: Tensor, y: Tensor) -> Tensor:
        """Mean loss of an adapted head on features [n, features]; pure, as ``inner.gradient`` asks."""
        return self.problem.loss(self.answer(fast, features), y)

    def answer(self, fast: dict[str, Tensor], features: Tensor) -> Tensor:
        """Logits or predictions [n, outputs] of an adapted head for features [n, features]."""
        return F.linear(features, fast["head.weight"], fast["head.bias"])

    def answers(self, state: State, x: Tensor) -> Callable[[State], Tensor]:
        features = self.net(x, state.support_x)
        return lambda state: self.answer(state.fast, features)

    def predict(self, state: State, x: Tensor) -> Tensor:
        return self.answers(state, x)(state)


class SolvedHead(Algorithm):
    """A linear head that is solved for, by regression on features and a column of ones z(x) = (f(x), 1).

        logits(x) = α z(x) W + β                                      (arXiv:1805.08136, equation 7)

    Methods make W [features + 1, way] in ``begin`` or in steps, as the state's ``weight`` beside ``support_x``. Meta-training learns
    α, β and the penalty; the penalty by its logarithm, which keeps it positive.

    Args:
        net, problem: the backbone and the data's shape.
        penalty: λ before meta-training.
        scale: α before meta-training; a regression's answers lie near 0..1, flat for a softmax.
    """

    kinds = frozenset({"classification"})
    encodes = True

    def __init__(self, net: Net, problem: Problem, *, penalty: Annotated[float, Gt(0)], scale: Annotated[float, Gt(0)]) -> None:
        super().__init__(net, problem)
        self.log_penalty = nn.Parameter(torch.tensor(math.log(penalty)))
        self.scale, self.bias = nn.Parameter(torch.tensor(scale)), nn.Parameter(torch.tensor(0.0))

    def rows(self, x: Tensor, support_x: Tensor) -> Tensor:
        """z [n, features + 1] of x [n, *input_shape]."""
        return inner.with_ones(inner.upcast(self.net(x, support_x)))

    def penalty(self, n: int) -> Tensor:
        """λ for a sum over n examples, being meant for their mean."""
        return n * self.log_penalty.exp()

    def answers(self, state: State, x: Tensor) -> Callable[[State], Tensor]:
        rows = self.rows(x, state.support_x)
        return lambda state: self.scale * (rows @ state.weight) + self.bias

    def predict(self, state: State, x: Tensor) -> Tensor:
        return self.answers(state, x)(state)


class Prototypes(NamedTuple):
    """One prototype per class of the episode."""

    means: Tensor  # [way, features]
    support_x: Tensor  # [way * shot, *input_shape], for nets that normalise queries by the support


def as_they_come(before: Tensor, fresh: Tensor, context: Context) -> Tensor:
    """Rows [way, …] of classes: ``fresh`` ones of those that have come in this task, and of all others those of ``before``."""
    come = inner.one_hot(context.support.y, context.classes.shape[0]).any(0)
    return torch.where(come.view(-1, *[1] * (fresh.dim() - 1)), fresh, before)


class PrototypeLearner(Algorithm, Continues):
    """A query belongs to the class of the nearest prototype: logit_c(x) = −‖f(x) − p_c‖²; methods make the prototypes in ``begin``."""

    kinds = frozenset({"classification"})
    pairwise = True
    encodes = True

    def carry_on(self, before: Prototypes, fresh: Prototypes, context: Context) -> Prototypes:
        """Prototypes of the classes that have come now; those of others stay."""
        return fresh._replace(means=as_they_come(before.means, fresh.means, context))

    def predict(self, state: Prototypes, x: Tensor) -> Tensor:
        return -inner.squared_distances(inner.upcast(self.features_of(x, state.support_x)), inner.upcast(state.means))


class ZeroShotLearner(Algorithm):
    """Knows a class by its attribute vector, of which the support has one per class, and sees no image of it before the queries.

    Args:
        net, problem: the backbone and the data's shape.
        sizes: widths of the hidden layers through which attributes pass first; none leaves them as they are.
    """

    kinds = frozenset({"classification"})
    reads = "attributes"
    pairwise = True
    encodes = True

    def __init__(self, net: Net, problem: Problem, *, sizes: list[Annotated[int, Ge(1)]]) -> None:
        if net.norm == "support":
            raise ValueError(
                "net.norm=support needs images of the classes, and a zero-shot method sees none; choose net.norm=running or batch"
            )
        super().__init__(net, problem)
        self.encoder = MLP((problem.attributes,), sizes=sizes, activation="relu", norm="none")


class Caller(nn.Module):
    """A method as a module that calls what it is given with it: ``functional_call`` then puts other weights into the method meanwhile."""

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        self.method = method

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.method, *arguments)
