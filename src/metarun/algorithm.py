"""The one abstract class that every method implements, written for ONE task; only the engine knows the task axis.
An algorithm knows neither engine, trainer, device, logger nor config."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.func import functional_call

from metarun import inner
from metarun.nets.base import Net
from metarun.nets.mlp import MLP
from metarun.problem import Problem
from metarun.task import Context, Task

State = Any  # any nested tuple or dict of tensors: fast weights, prototypes, memory, a posterior …
Metrics = dict[str, Tensor]


class Footprint(NamedTuple):
    """What one task takes in memory: what ``engine.chunk=auto`` reckons with."""

    examples: int  # that pass the net, their activations being held at a time
    repeated: int = 0  # of them once more at every inner step that is kept for the way back
    bytes: int = 0  # held beside these


class Algorithm(nn.Module, ABC):
    """A meta-learner. Its ``parameters()`` ARE the meta-parameters.

    ``adapt = begin + K x step`` is run by the engine, in the same way for training, validation and test.
    Constructors take the net and the problem first, then only keyword arguments, which are the YAML's keys.

    Attributes:
        inner_steps: inner steps K of meta-training (>= 0), unless they depend on the task (``steps``).
        test_steps: inner steps of validation and test (>= 0), likewise; the adaptation curve shows 0 .. test_steps.
        kinds: names of the kinds of problem that the method can be asked to solve.
        fixed_way: the learner has one output per class of an episode, so training and evaluation need the same way.
        every_state: the objective reads the states of all inner steps; otherwise only the last is kept for it.
        zero_shot: the support is an attribute vector of each class, whatever ``shot`` is, and no image; the data must have such vectors.
        unrolls: meta-updates per training task, with ``inner_steps`` steps in each: more than 1 where the inner loop is too long for one,
            and is cut (truncated back-propagation). States are then handed on from one meta-update to the next, without their graph.
        label_dependent: the answer may depend on which class got which label (a learned head does, prototypes do not).
        ordered: the answer may depend on the order of the support's examples, minibatches included, though the key stays the same.
        pairwise: a logit says how alike the query and the support of that class are, whatever the other classes, so that it means the
            same in all episodes: validation and test then verify, too (same class or not, see ``verification``).
        encodes: the method sees images through ``net`` alone, whose weights are the same for every task; validation and test may then
            take each image through it once, however many episodes it is in.
        keeps: of a long inner loop for the way back: ``auto``, all while it is little; or ``states`` alone, from which steps are computed
            again, so that memory hardly grows with steps.
        batchable: false for a method that calls what torch.vmap has no rule for, as another library does; it is run task by task.
    """

    kinds: frozenset[str] = frozenset({"classification", "regression"})
    inner_steps: int = 0
    test_steps: int = 0
    fixed_way: bool = False
    every_state: bool = False
    zero_shot: bool = False
    unrolls: int = 1
    label_dependent: bool = False
    ordered: bool = False
    pairwise: bool = False
    encodes: bool = False
    keeps: Literal["auto", "states"] = "auto"
    batchable: bool = True

    def __init__(self, net: Net, problem: Problem) -> None:
        super().__init__()
        self.net = net
        self.problem = problem

    @property
    def learns(self) -> bool:
        """Whether there is anything to meta-train; if not, a run goes straight to its test."""
        return any(parameter.requires_grad for parameter in self.parameters())

    def steps(self, context: Context, train: bool) -> int:
        """How many inner steps this task takes in meta-training (``train``), or afterwards; it may depend on its shapes."""
        return self.inner_steps if train else self.test_steps

    @abstractmethod
    def begin(self, context: Context) -> State:
        """The task state before any inner step."""

    def step(self, state: State, context: Context, k: int) -> State:
        """Inner step k = 0, 1, …; methods without inner steps leave the state alone.

        With ``unrolls`` > 1 k may be a tensor [] int64, which counts since the task began and decides nothing but numbers.
        """
        return state

    @abstractmethod
    def predict(self, state: State, x: Tensor) -> Any:
        """The answers to x [n, *input_shape]: logits [n, way] or predictions [n, outputs], or another ``problem.Prediction``.

        For control x [n] int64 are keys of episodes, and the answer what the policy does in them, ``Trajectories``.
        """

    def objective(self, states: Sequence[State], task: Task, progress: float) -> tuple[Tensor, Metrics]:
        """The meta-training loss of one task, a scalar whose gradient is the outer rule, and named metrics to log.

        Args:
            states: after 0, 1, … inner_steps steps if ``every_state``, else the last one alone; ``states[-1]`` is the last in either case.
            task: the episode, query included.
            progress: how far meta-training is, 0 .. 1, for schedules.
        """
        prediction = self.predict(states[-1], task.query.x)
        loss = self.problem.loss(prediction, task.query.y)
        return loss, {"loss": loss, self.problem.metric: self.problem.score(prediction, task.query.y)}

    def footprint(self, task: Task, train: bool) -> Footprint:
        """What one task takes in memory; by default the activations of its images, in training those of the support at every step."""
        support, query, more = task.context.support.y.shape[0], task.query.y.shape[0], task.context.unlabelled.shape[0]
        return Footprint(support + query + more, support if train else 0)

    def groups(self) -> list[dict[str, Any]]:
        """The meta-parameters as the outer optimizer's groups; a group with an ``lr`` of its own keeps that in place of ``optim.lr``."""
        return [{"params": list(self.parameters())}]

    def anneal(self, progress: float) -> None:
        """Called before every meta-training step: set what changes in the inner loop while ``progress`` goes from 0 to 1."""

    @classmethod
    def backbone(cls, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """What another run begins with: of a trained learner's ``state_dict``, the net's weights by their names in the net."""
        return {name.removeprefix("net."): weight for name, weight in weights.items() if name.startswith("net.")}

    def follow_net(self) -> None:
        """Called after the net took the weights of another run: what begins as they are does so now."""

    def calibrate(self, tasks: Iterable[Task]) -> None:
        """Called before every validation: set the population statistics of ``net.norm=running`` from training tasks."""
        self.net.calibrate(task.query.x for task in tasks)


Method = Callable[[Net, Problem], Algorithm]  # what makes a method of another one's settings: in a YAML, a section of its own


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


class InnerLoop(StepLearner):
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
        self.keeps = "states" if self.mode == "mixed" else "auto"

    def step(self, state: State, context: Context, k: int) -> State:
        return state._replace(fast=inner.sgd(state.fast, self.gradient(state, context), self.step_size(state.fast)))

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

    def predict(self, state: State, x: Tensor) -> Tensor:
        return self.answer(state.fast, self.net(x, state.support_x))


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

    def predict(self, state: State, x: Tensor) -> Tensor:
        return self.scale * (self.rows(x, state.support_x) @ state.weight) + self.bias


class Prototypes(NamedTuple):
    """One prototype per class of the episode."""

    means: Tensor  # [way, features]
    support_x: Tensor  # [way * shot, *input_shape], for nets that normalise queries by the support


class PrototypeLearner(Algorithm):
    """A query belongs to the class of the nearest prototype: logit_c(x) = −‖f(x) − p_c‖²; methods make the prototypes in ``begin``."""

    kinds = frozenset({"classification"})
    pairwise = True
    encodes = True

    def predict(self, state: Prototypes, x: Tensor) -> Tensor:
        return -inner.squared_distances(inner.upcast(self.net(x, state.support_x)), inner.upcast(state.means))


class ZeroShotLearner(Algorithm):
    """Knows a class by its attribute vector, of which the support has one per class, and sees no image of it before the queries.

    Args:
        net, problem: the backbone and the data's shape.
        sizes: widths of the hidden layers through which attributes pass first; none leaves them as they are.
    """

    kinds = frozenset({"classification"})
    zero_shot = True
    pairwise = True
    encodes = True

    def __init__(self, net: Net, problem: Problem, *, sizes: list[Annotated[int, Ge(1)]]) -> None:
        if net.norm == "support":
            raise ValueError(
                "net.norm=support needs images of the classes, and a zero-shot method sees none; choose net.norm=running or batch"
            )
        super().__init__(net, problem)
        self.encoder = MLP((problem.attributes,), sizes=sizes, activation="relu", norm="none")
