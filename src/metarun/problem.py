"""What is to be solved: the shape of its episodes, the kind of answers, and how they are judged.
A problem knows nothing of data sets, methods or devices. Nobody outside asks which kind it is: a kind answers for itself."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor

from metarun.errors import UserError
from metarun.inner import loop, uniform, upcast
from metarun.runtime.private import tree_map


class Gaussian(NamedTuple):
    """A prediction with its uncertainty, for regression."""

    mean: Tensor  # [n, outputs]
    variance: Tensor  # [n, outputs], > 0


class Samples(NamedTuple):
    """The answers of several members: of an ensemble, of particles, of samples of a posterior.

    For regression the members are Gaussian: one that predicts points alone says with which noise.
    """

    members: Tensor | Gaussian  # logits [members, n, way], or a Gaussian of [members, n, outputs]


class Trajectories(NamedTuple):
    """What a policy did in n episodes of an environment."""

    observations: Tensor  # [n, horizon, *observation], before each action
    actions: Tensor  # [n, horizon, size] numbers, or [n, horizon] int64 choices
    rewards: Tensor  # [n, horizon]

    @property
    def returns(self) -> Tensor:
        """The sum of rewards of every episode, [n]."""
        return self.rewards.sum(-1)


Prediction = Tensor | Gaussian | Samples | Trajectories


def best_guess(prediction: Tensor | Gaussian | Samples) -> Tensor:
    """One answer: logits as they are, a mean, or of several members the logarithm of the mean probability or the mean; [n, outputs]."""
    if isinstance(prediction, Samples):
        members = prediction.members
        return members.mean.mean(0) if isinstance(members, Gaussian) else _log_mean(F.log_softmax(upcast(members), -1))
    return prediction.mean if isinstance(prediction, Gaussian) else prediction


def spread(prediction: Gaussian | Samples) -> Tensor:
    """The variance of a regression's answer [n, outputs]: of a mixture, the members' mean variance plus the variance of their means."""
    if isinstance(prediction, Gaussian):
        return prediction.variance
    members = prediction.members
    if not isinstance(members, Gaussian):
        raise TypeError("logits have no variance")
    return members.variance.mean(0) + members.mean.var(0, unbiased=False)


def _log_mean(logs: Tensor) -> Tensor:
    """The logarithm of the mean over the first axis of numbers that come as logarithms."""
    return torch.logsumexp(logs, 0) - math.log(logs.shape[0])


def _log_density(prediction: Gaussian, y: Tensor) -> Tensor:
    """Of every target y [n, outputs] under its own Gaussian."""
    mean, variance = map(upcast, prediction)
    return -0.5 * ((mean - y).square() / variance + torch.log(2 * math.pi * variance))


# What is wrong with a support. ``labels``: so many of them, at random, are those of another class. ``imbalance``: the last class keeps that
# part of its images, the classes between the first and the last geometrically more (Cui et al. 2019, arXiv:1901.05555). ``noise``: so many
# images are noise with the mean and spread of the data (Zhang et al. 2017, arXiv:1611.03530, Gaussian pixels).
Corruption = Literal["none", "labels", "imbalance", "noise"]


@dataclass(frozen=True, kw_only=True)
class EpisodeSpec:
    """The shape of an episode. For regression ``shot`` and ``query`` count points and ``way`` is 1; for control they count trajectories.

    With ``shot`` 0 the support is one attribute vector per class.
    ``unlabelled`` images per class come from the ``way`` classes and from ``distractors`` classes more, of which there is nothing else.
    With ``uneven`` the support has as many images, but ``shot`` is their mean number per class: each class has at least one.
    The support may be a training set that is not what it should be: a ``rate`` of its images is ``corrupt``, see ``Corruption``; ``clean``
    further images per class, with labels, are not. With ``whole`` the support holds places of the data, which lie in memory once.
    """

    way: Annotated[int, Ge(1)]
    shot: Annotated[int, Ge(0)]
    query: Annotated[int, Ge(1)]
    unlabelled: Annotated[int, Ge(0)] = 0
    distractors: Annotated[int, Ge(0)] = 0
    uneven: bool = False
    clean: Annotated[int, Ge(0)] = 0
    corrupt: Corruption = "none"
    rate: Annotated[float, Ge(0), Le(1)] = 0.0
    whole: bool = False

    @property
    def images(self) -> int:
        """How many there are in an episode."""
        return (self.shot + self.query + self.clean) * self.way + self.unlabelled * (self.way + self.distractors)

    def __str__(self) -> str:
        words = f"{self.way}-way {self.shot}-shot{' (uneven)' * self.uneven}, {self.query} queries per class"
        if self.unlabelled:
            words += f", {self.unlabelled} unlabelled" + (f" (and of {self.distractors} further classes)" if self.distractors else "")
        if self.clean:
            words += f", {self.clean} clean"
        if self.corrupt != "none":
            words += f", corrupt={self.corrupt} at rate {self.rate:g}"
        return words


@dataclass(frozen=True)
class Space:
    """What a search chooses from: every candidate is a word of decisions.

    Attributes:
        options: how many each decision has, 2 or more.
    """

    options: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many candidates there are."""
        return math.prod(self.options)

    def index(self, words: Tensor) -> Tensor:
        """The places [...] int64 of candidates [..., decisions] in a table of all, whose last decision turns fastest."""
        place = torch.zeros_like(words[..., 0])
        for decision, options in enumerate(self.options):
            place = options * place + words[..., decision]
        return place

    def draw(self, key: Tensor) -> Tensor:
        """A random candidate [decisions] int64, determined by the key [] int64."""
        options = torch.tensor(self.options, device=key.device)
        return (uniform(key, (len(self.options),)) * options).long()

    def value(self, table: Tensor, words: Tensor) -> Tensor:
        """Of a table [candidates] the rows [...] of candidates [..., decisions]."""
        index = self.index(words)
        return table.gather(0, index.flatten()).view(index.shape)


@dataclass(frozen=True)
class Kind(ABC):
    """A kind of problem: how long an answer is, and how answers are judged.

    Attributes:
        name: what algorithms declare in ``kinds``.
        metric: name of the score.
        higher_is_better: whether a larger score is the better one.
        labelled: whether targets are classes, 0..way-1.
        acts: whether answers are what is done in an environment, there being no examples.
        alone: whether an example can be answered by itself; a node of a graph cannot.
    """

    name: ClassVar[str]
    higher_is_better: ClassVar[bool]
    labelled: ClassVar[bool] = False
    acts: ClassVar[bool] = False
    alone: ClassVar[bool] = True

    @property
    @abstractmethod
    def metric(self) -> str: ...

    @property
    def space(self) -> Space | None:
        """What is to be chosen from, where a task is a search."""
        return None

    @abstractmethod
    def outputs(self, spec: EpisodeSpec) -> int:
        """How many numbers an answer has in episodes of this shape."""

    @abstractmethod
    def loss(self, prediction: Any, y: Tensor) -> Tensor:
        """What a method minimises by default, a scalar."""

    @abstractmethod
    def score(self, prediction: Any, y: Tensor) -> Tensor:
        """The metric of one batch, a scalar."""

    def describe(self, spec: EpisodeSpec) -> str:
        """An episode of this shape in a few words."""
        return f"{spec.shot} support and {spec.query} query points"

    def check(self, spec: EpisodeSpec, key: Callable[[str], str], data: str) -> None:
        """Is this a shape of episodes that such problems have?

        Args:
            key: of a field of the spec, what the user calls it.
            data: the name of the data.

        Raises:
            UserError: it is not.
        """
        if spec.unlabelled:
            raise UserError(f"{key('unlabelled')}={spec.unlabelled} is not possible: data={data} has no images")
        if spec.uneven:
            raise UserError(f"{key('uneven')}=true is not possible: data={data} has no classes; leave it at false")
        if spec.clean or spec.corrupt != "none":
            wrong = f"{key('clean')}={spec.clean}" if spec.clean else f"{key('corrupt')}={spec.corrupt}"
            raise UserError(f"{wrong} is not possible: data={data} has no classes of images; leave it at {0 if spec.clean else 'none'}")


@dataclass(frozen=True)
class Classification(Kind):
    """Telling ``way`` classes apart: predictions are logits [n, way], y [n] int64; the score is the accuracy, a fraction."""

    name = "classification"
    metric = "accuracy"
    higher_is_better = True
    labelled = True

    def outputs(self, spec: EpisodeSpec) -> int:
        return spec.way

    def describe(self, spec: EpisodeSpec) -> str:
        return f"{spec.way}-way {spec.shot}-shot{' (uneven)' * spec.uneven}, {spec.query} queries a class"

    def loss(self, prediction: Tensor | Samples, y: Tensor) -> Tensor:
        """Mean cross-entropy; of several members, −log of their mean probability."""
        if isinstance(prediction, Samples):
            return F.nll_loss(best_guess(prediction), y)
        return F.cross_entropy(upcast(prediction), y)

    def score(self, prediction: Tensor | Samples, y: Tensor) -> Tensor:
        return (best_guess(prediction).argmax(-1) == y).float().mean()

    def check(self, spec: EpisodeSpec, key: Callable[[str], str], data: str) -> None:
        if spec.way < 2:
            raise UserError(f"{key('way')}={spec.way} is out of range: telling classes apart needs way >= 2")
        if (spec.corrupt == "none") != (spec.rate == 0):
            raise UserError(
                f"{key('rate')}={spec.rate:g} does nothing with {key('corrupt')}=none: choose corrupt=labels, imbalance or noise"
                if spec.rate
                else f"{key('corrupt')}={spec.corrupt} needs {key('rate')} above 0, up to 1: how much of the support it takes"
            )
        if spec.uneven and (spec.clean or spec.corrupt != "none"):
            raise UserError(f"{key('uneven')}=true goes with neither clean nor corrupt: corrupt=imbalance makes classes of other sizes")


@dataclass(frozen=True)
class Regression(Kind):
    """Predicting numbers: predictions [n, size] or a ``Gaussian``, or Gaussian ``Samples``; y [n, size].

    Args:
        size: numbers per target.
        summed: the squared error is summed over examples, as of the loss of a training problem, in place of their mean.
    """

    name = "regression"
    higher_is_better = False
    size: int = 1
    summed: bool = False

    @property
    def metric(self) -> str:
        return "sse" if self.summed else "mse"

    def outputs(self, spec: EpisodeSpec) -> int:
        return self.size

    def loss(self, prediction: Tensor | Gaussian | Samples, y: Tensor) -> Tensor:
        """Squared error, or −log density a number: of several members, of their mixture."""
        if isinstance(prediction, Gaussian):
            return -_log_density(prediction, y).mean()
        if isinstance(prediction, Samples):
            members = prediction.members
            if not isinstance(members, Gaussian):
                raise TypeError("members of a regression are Gaussian: those that predict points name their noise")
            return -_log_mean(_log_density(members, y).sum(-1)).mean() / self.size
        return self._error(prediction, y)

    def score(self, prediction: Tensor | Gaussian | Samples, y: Tensor) -> Tensor:
        return self._error(best_guess(prediction), y)

    def _error(self, guess: Tensor, y: Tensor) -> Tensor:
        squares = (upcast(guess) - y).square()
        return squares.sum() if self.summed else squares.mean()


@dataclass(frozen=True)
class Density(Regression):
    """Predicting numbers and how sure one is of them, by a ``Gaussian`` or Gaussian ``Samples``; the score is −loss, in nats a number."""

    name = "density"
    higher_is_better = True

    @property
    def metric(self) -> str:
        return "ll"

    def score(self, prediction: Tensor | Gaussian | Samples, y: Tensor) -> Tensor:
        if isinstance(prediction, Tensor):
            raise TypeError("an answer without a density cannot be judged by it: predict a Gaussian")
        return -self.loss(prediction, y)


@dataclass(frozen=True)
class NodeClassification(Kind):
    """Telling the classes of a graph's nodes: x [n] int64 are nodes, y [n] int64 their classes, 0..size-1.

    Predictions are logits [n, size], or [n, size, models] of several models that are judged one by one; the score is the error, the
    fraction of nodes that are misclassified, in the mean over models.

    Args:
        size: classes of the graph.
    """

    name = "node classification"
    metric = "error"
    higher_is_better = False
    labelled = True
    alone = False
    size: int = 2

    def outputs(self, spec: EpisodeSpec) -> int:
        return self.size

    def describe(self, spec: EpisodeSpec) -> str:
        return f"a graph with {spec.way} classes of nodes, about {spec.shot} labelled and {spec.query} to be told in each"

    def loss(self, prediction: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy over nodes and models."""
        logits = upcast(prediction).reshape(*prediction.shape[:2], -1)
        return F.cross_entropy(logits, y[:, None].expand(-1, logits.shape[2]))

    def score(self, prediction: Tensor, y: Tensor) -> Tensor:
        return (prediction.reshape(*prediction.shape[:2], -1).argmax(1) != y[:, None]).float().mean()


@dataclass(frozen=True)
class Control(Kind):
    """Acting: x [n] int64 are keys of episodes of an environment, y [n, 0] is empty; the score is the mean return.

    Args:
        size: numbers per action, where actions are numbers.
        choices: how many actions there are to choose from, 0..choices-1; 0 where actions are numbers.
    """

    name = "control"
    metric = "return"
    higher_is_better = True
    acts = True
    size: int = 1
    choices: int = 0

    def outputs(self, spec: EpisodeSpec) -> int:
        return self.choices or self.size

    def describe(self, spec: EpisodeSpec) -> str:
        return f"{spec.shot} trajectories to adapt by, {spec.query} to be judged by"

    def loss(self, prediction: Trajectories, y: Tensor) -> Tensor:
        """Minus the mean return, a value to look at: through it no gradient reaches a policy whose actions are drawn."""
        return -prediction.returns.mean()

    def score(self, prediction: Trajectories, y: Tensor) -> Tensor:
        return prediction.returns.mean()

    def none(self, like: Tensor) -> Tensor:
        """What stands for the last action before there is one, for rows ``like`` [n]: zeros [n, size], or choices −1 [n]."""
        return torch.full_like(like, -1, dtype=torch.int64) if self.choices else like.new_zeros(like.shape[0], self.size)


@dataclass(frozen=True)
class Bandit(Control):
    """Pulling arms: control without a state, whose choices are the arms and whose rewards are 0 or 1, an episode being many pulls."""

    name = "bandits"


class Past(NamedTuple):
    """What an actor brings along from its last action, and from one episode to the next."""

    memory: Any  # its own, nested tensors [n, …]
    action: Tensor  # [n, size] or [n], the last one; ``Control.none`` before the first
    reward: Tensor  # [n], what came of it


# Of n actors at once: past, observations [n, *observation], time [] int64 = 0, 1, … and this time's noise [n, …] to actions and memory.
Policy = Callable[[Past, Tensor, Tensor, Any], tuple[Tensor, Any]]


@dataclass(frozen=True)
class Search(Kind):
    """Choosing by trying: to try a candidate of ``space`` tells its accuracy on validation data, and the score is the choice's on the test.

    There are no examples: ``Context.extras["validation"]`` [candidates] holds what trying tells, the query's y [1, candidates] what the
    choice is worth, and the answer is a word of decisions [1, decisions] int64.

    Args:
        options: of every decision, see ``Space``.
    """

    name = "search"
    metric = "accuracy"
    higher_is_better = True
    options: tuple[int, ...] = ()

    @property
    def space(self) -> Space:
        return Space(self.options)

    def outputs(self, spec: EpisodeSpec) -> int:
        return len(self.options)

    def describe(self, spec: EpisodeSpec) -> str:
        return f"one search among {self.space.size:,} candidates"

    def loss(self, prediction: Tensor, y: Tensor) -> Tensor:
        """The error of the choice, a value to look at: it has no gradient."""
        return 1 - self.score(prediction, y)

    def score(self, prediction: Tensor, y: Tensor) -> Tensor:
        return self.space.value(y[0], prediction[0])


class Simulator(Protocol):
    """An environment in pure tensor functions of n episodes at once; what tells one task from another is in ``params``."""

    @property
    def horizon(self) -> int:
        """Actions of an episode."""

    def reset(self, params: dict[str, Tensor], keys: Tensor) -> Tensor:
        """First states [n, …], for the keys [n] int64 of episodes."""

    def noise(self, keys: Tensor) -> Tensor:
        """All chance in the steps of episodes, [n, horizon, …]; where there is none, [n, horizon, 0]."""

    def observe(self, params: dict[str, Tensor], state: Tensor) -> Tensor:
        """What an actor sees of states [n, …]: [n, *observation]."""

    def step(self, params: dict[str, Tensor], state: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Next states [n, …] and rewards [n], for actions [n, size] or [n], and the noise [n, …] of this time."""


@dataclass(frozen=True)
class Problem:
    """What a net and an algorithm need to know of the data, and how a prediction is judged.

    ``outputs`` is the length of an answer, see ``Kind.outputs``; ``classes`` the number of training classes (0 where there are none);
    ``input_shape`` one example's shape, no batch axis, for control an observation's, for nodes that of their features; ``attributes`` the
    length of a class's attribute vector (0: the data have none); ``simulator`` the environment of control; ``attacked`` whether the method
    is an adversary, who wants the score to be bad.
    """

    kind: Kind
    input_shape: tuple[int, ...]
    outputs: int
    classes: int
    train: EpisodeSpec
    eval: EpisodeSpec
    attributes: int = 0
    simulator: Simulator | None = None
    attacked: bool = False

    @property
    def most_classes(self) -> int:
        """The largest way of an episode."""
        return max(self.train.way, self.eval.way)

    @property
    def most_support(self) -> int:
        """The largest number of labelled examples of an episode."""
        return max(self.train.way * self.train.shot, self.eval.way * self.eval.shot)

    @property
    def metric(self) -> str:
        return self.kind.metric

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger score is the better one, for the method that is run."""
        return self.kind.higher_is_better != self.attacked

    @property
    def choices(self) -> int:
        """How many actions there are to choose from; 0 where actions are numbers, or nothing acts."""
        return self.kind.choices if isinstance(self.kind, Control) else 0

    def loss(self, prediction: Any, y: Tensor) -> Tensor:
        """See the kind's."""
        return self.kind.loss(prediction, y)

    def score(self, prediction: Any, y: Tensor) -> Tensor:
        """See the kind's."""
        return self.kind.score(prediction, y)

    def rest(self, params: dict[str, Tensor], n: int, memory: Any = ()) -> Past:
        """Of n actors with this memory, before their first action in an environment of these ``params``."""
        assert isinstance(self.kind, Control)
        rewards = next(iter(params.values())).new_zeros(n)
        return Past(memory, self.kind.none(rewards), rewards)

    def simulate(
        self, params: dict[str, Tensor], policy: Policy, keys: Tensor, past: Past | None = None, noise: Any = ()
    ) -> tuple[Trajectories, Past]:
        """The trajectories of n episodes of the environment, one for each of the keys [n] int64, and what actors take along from them.

        Args:
            params: of the task, its ``Context.extras``.
            policy: decides, by chance through ``noise`` alone, so that the same keys give the same episodes.
            past: of the n actors, before these episodes; None: they have no memory, and have done nothing yet.
            noise: of the policy, nested tensors [n, horizon, …].

        Raises:
            TypeError: there is no environment.
        """
        world = self.simulator
        if world is None:
            raise TypeError("this problem has no environment to act in")
        past = past or self.rest(params, keys.shape[0])

        def act(now: tuple[Tensor, Past, Trajectories], x: Any) -> tuple[Tensor, Past, Trajectories]:
            (state, past, _), (time, chance, noise) = now, x
            seen = world.observe(params, state)
            action, memory = policy(past, seen, time, noise)
            state, reward = world.step(params, state, action, chance)
            return state, Past(memory, action, reward), Trajectories(seen, action, reward)

        state = world.reset(params, keys)
        begun = (state, past, Trajectories(world.observe(params, state), past.action, past.reward))
        times = torch.arange(world.horizon, device=keys.device)
        xs = tree_map(lambda leaf: leaf.movedim(1, 0), (world.noise(keys), noise))
        (_, past, _), done = loop(act, begun, world.horizon, (times, *xs), read=lambda now: now[2])
        return tree_map(lambda leaf: leaf.movedim(0, 1), done), past
