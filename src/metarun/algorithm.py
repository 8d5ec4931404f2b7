"""The one abstract class that every method implements, written for ONE task; only the engine knows the task axis.
An algorithm knows neither engine, trainer, device, logger nor config."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Context, Task

State = Any  # any nested tuple or dict of tensors: fast weights, prototypes, memory, a posterior …
Metrics = dict[str, Tensor]


class Footprint(NamedTuple):
    """What one task takes in memory: what ``engine.chunk=auto`` and ``engine.remat=auto`` reckon with."""

    examples: int  # that pass the net, their activations being held at a time
    repeated: int = 0  # of them once more at every inner step that is kept for the way back
    bytes: int = 0  # held beside these
    # Of a long inner loop for the way back: all while it is little, or states alone, so that memory hardly grows with steps.
    kept: Literal["auto", "states"] = "auto"


class Algorithm(nn.Module, ABC):
    """A meta-learner. Its ``parameters()`` ARE the meta-parameters.

    ``adapt = begin + K x step`` is run by the engine, in the same way for training, validation and test.
    Constructors take the net and the problem first, then only keyword arguments, which are the YAML's keys.
    What only some methods can do, as to go on from one task to the next, they inherit from a class of ``abilities``.

    Attributes:
        inner_steps: inner steps K of meta-training (>= 0), unless they depend on the task (``steps``).
        test_steps: inner steps of validation and test (>= 0), likewise; the adaptation curve shows 0 .. test_steps.
        kinds: names of the kinds of problem that the method can be asked to solve.
        fixed_way: the learner has one output per class of an episode, so training and evaluation need the same way.
        every_state: the objective reads the states of all inner steps; otherwise only the last is kept for it.
        reads: how it meets the support. ``examples``: all at once. ``one_by_one``: inner step k reads example k of ``inner.order``,
            whatever comes later, so that answers on the way can be judged (``protocols.presentations``). ``minibatches``: through
            ``Context.examples`` alone, some at a time; it may then be a whole training set, of which a task holds places in what all
            tasks share. ``attributes``: a vector of each class, whatever ``shot`` is, and no image; the data must have such vectors.
        unrolls: meta-updates per training task, with ``inner_steps`` steps in each: more than 1 where the inner loop is too long for one,
            and is cut (truncated back-propagation). States are then handed on from one meta-update to the next, without their graph.
        label_dependent: the answer may depend on which class got which label (a learned head does, prototypes do not).
        ordered: the answer may depend on the order of the support's examples, minibatches included, though the key stays the same.
        pairwise: a logit says how alike the query and the support of that class are, whatever the other classes, so that it means the
            same in all episodes: a test then verifies, too (same class or not, see ``protocols.verification``).
        encodes: the method sees images through ``features_of`` alone, the same for every task; validation and test may then take each
            image through it once, however many episodes it is in.
    """

    kinds: frozenset[str] = frozenset({"classification", "regression"})
    inner_steps: int = 0
    test_steps: int = 0
    fixed_way: bool = False
    every_state: bool = False
    reads: Literal["examples", "one_by_one", "minibatches", "attributes"] = "examples"
    unrolls: int = 1
    label_dependent: bool = False
    ordered: bool = False
    pairwise: bool = False
    encodes: bool = False

    def __init__(self, net: Net, problem: Problem) -> None:
        super().__init__()
        self.net = net
        self.problem = problem

    @property
    def learns(self) -> bool:
        """Whether there is anything to meta-train; if not, a run goes straight to its test."""
        return any(parameter.requires_grad for parameter in self.parameters())

    @property
    def transductive(self) -> bool:
        """Whether the answer to one query depends on the others."""
        return self.net.transductive

    def features_of(self, x: Tensor, support_x: Tensor | None = None) -> Tensor:
        """What the method sees of images x [n, *input_shape] where ``encodes``: features [n, features], the same for every task."""
        features: Tensor = self.net(x, support_x)
        return features

    def steps(self, context: Context, train: bool) -> int:
        """How many inner steps this task takes in meta-training (``train``), or afterwards; it may depend on its shapes."""
        return self.inner_steps if train else self.test_steps

    @abstractmethod
    def begin(self, context: Context) -> State:
        """The task state before any inner step."""

    def step(self, state: State, context: Context, k: int) -> State:
        """Inner step k = 0, 1, …; methods without inner steps leave the state alone.

        Nothing is kept on ``self``: what a later step or the objective needs is in the state. Where tasks are mapped k is a tensor []
        int64, which decides nothing but numbers; with ``unrolls`` > 1 it counts since the task began.
        """
        return state

    @abstractmethod
    def predict(self, state: State, x: Tensor) -> Any:
        """The answers to x [n, *input_shape]: logits [n, way] or predictions [n, outputs], or another ``problem.Prediction``.

        For control x [n] int64 are keys of episodes, and the answer what the policy does in them, ``Trajectories``.
        """

    def answers(self, state: State, x: Tensor) -> Callable[[State], Any]:
        """``predict`` of x for this state and those that inner steps make of it: what of it they leave alone is computed here, once."""
        return lambda state: self.predict(state, x)

    def objective(self, states: Sequence[State], task: Task, progress: float) -> tuple[Tensor, Metrics]:
        """The meta-training loss of one task, a scalar whose gradient is the outer rule, and named metrics to log.

        Args:
            states: after 0, 1, … inner_steps steps if ``every_state``, else the last one alone; ``states[-1]`` is the last in either case.
            task: the episode, query included.
            progress: how far meta-training is, 0 .. 1, for schedules.
        """
        return self.judged(self.predict(states[-1], task.query.x), task.query.y)

    def judged(self, prediction: Any, y: Tensor) -> tuple[Tensor, Metrics]:
        """The loss of answers to queries with the targets y, and named metrics: the objective, unless that is another one."""
        loss = self.problem.loss(prediction, y)
        return loss, {"loss": loss, self.problem.metric: self.problem.score(prediction, y)}

    def footprint(self, task: Task, train: bool) -> Footprint:
        """What one task takes in memory; by default the activations of its images, in training those of the support at every step."""
        support, query, more = len(task.context.support.y), len(task.query.y), len(task.context.unlabelled)
        return Footprint(support + query + more, support if train else 0)

    def groups(self) -> list[dict[str, Any]]:
        """The meta-parameters as the outer optimizer's groups; a group with an ``lr`` of its own keeps that in place of ``optim.lr``.

        In a game each player is a group that ``descends`` the metric of this name, holding the others constant; the objective is their sum.
        """
        return [{"params": list(self.parameters())}]

    def anneal(self, progress: float) -> None:
        """Called before every meta-training step: set what changes in the inner loop while ``progress`` goes from 0 to 1."""

    @classmethod
    def backbone(cls, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """What another run begins with: of a trained learner's ``state_dict``, the net's weights by their names in the net."""
        return {name.removeprefix("net."): weight for name, weight in weights.items() if name.startswith("net.")}

    def found(self) -> dict[str, Any]:
        """What meta-training has found that people can read, by name, for the summary: values, lines of text, or rows of a table with
        numbers by column. By default the net's form."""
        return self.net.found()

    def follow_net(self) -> None:
        """Called after the net took the weights of another run: what begins as they are does so now."""

    def calibrate(self, tasks: Iterable[Task]) -> None:
        """Called before every validation: set the population statistics of ``net.norm=running`` from training tasks."""
        self.net.calibrate(task.query.x for task in tasks)


Method = Callable[[Net, Problem], Algorithm]  # what makes a method of another one's settings: in a YAML, a section of its own
