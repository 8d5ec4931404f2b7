"""What only some methods can do: each ability is a small class that a method inherits beside ``Algorithm``; others ask by isinstance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from metarun.algorithm import Algorithm, State
from metarun.errors import UserError
from metarun.nets.base import Net
from metarun.problem import JointGaussian
from metarun.task import Context

Fast = dict[str, Tensor]  # weights by parameter name
Word = dict[str, Tensor]  # a candidate of a search: tensors by name


class Continues(ABC):
    """One learner can meet tasks one after the other (``protocols.continual``)."""

    @abstractmethod
    def carry_on(self, before: State, fresh: State, context: Context) -> State:
        """The state in which a learner begins a task after others, with what it learned of them.

        Args:
            before: the state after the last task.
            fresh: what ``begin`` made of the new task's context, in form the same.
            context: of the new task; its support has examples of some of the classes alone, the others being those of other tasks.
        """


class WeighsExamples(ABC):
    """Examples of a training set count more or less (``protocols.weights``); ``metarun export RUN weights`` writes by how much."""

    @abstractmethod
    def example_weights(self, state: State) -> Tensor:
        """What the examples of the support were worth to the learner, [n] >= 0, 1 where they count as ever."""


class UpdateRule(nn.Module, ABC):
    """Weights of whatever net move by a rule of their gradients, and nothing but the rule is learned.

    So a trained learner can be tested with other nets and other numbers of classes, and ``metarun export RUN optimizer`` writes the rule.
    """

    @abstractmethod
    def remember(self, fast: Fast) -> Any:
        """The memory, nested tensors, before the first step of weights ``fast``."""

    @abstractmethod
    def advance(self, fast: Fast, grads: Fast, memory: Any, k: int | Tensor) -> tuple[Fast, Any]:
        """Weights and memory after step k = 0, 1, …; ``grads`` is a tree like ``fast``."""

    @classmethod
    @abstractmethod
    def lasting(cls, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of a trained learner's ``state_dict``, the rule, of which another learner of this class is built; the rest begins anew."""


class AnswersTogether(ABC):
    """A process, whose errors at near points go together: it says more of several targets than ``predict`` does of each for itself."""

    @abstractmethod
    def together(self, state: State, x: Tensor) -> JointGaussian:
        """What is said of the targets of x [n, *input_shape] together; takes [outputs, n, n] numbers."""


class HasRivals(ABC):
    """There are methods of old for the same tasks (``protocols.rivals``).

    Attributes:
        rivals: by name the numbers, such as rates, among which development tasks choose.
    """

    rivals: Mapping[str, Sequence[float]]

    @abstractmethod
    def rival(self, name: str, number: float) -> Algorithm:
        """The method ``name`` of ``rivals`` with this number, for the same problem.

        Raises:
            KeyError: there is none of this name.
        """


class Changes(Protocol):
    """Random changes of images that leave their classes as they are."""

    def noise(self, key: Tensor, n: int) -> Tensor:
        """What n images are changed by, [n, numbers], determined by a key [] int64."""

    def __call__(self, x: Tensor, noise: Tensor) -> Tensor:
        """Images [n, channels, height, width] in 0..1 changed by ``noise``; same shape and range."""


class Augments(ABC):
    """How images are changed is learned; ``metarun show --what augmentation RUN`` draws it."""

    @property
    @abstractmethod
    def augmentation(self) -> Changes | None:
        """How the method changes images; None if its settings say that it does not."""


class Evolvable(ABC):
    """A method, parts of which a search changes that knows no gradient (``optim=ageing``).

    A candidate comes to a task in ``Context.extras``, under the names of its tensors, so that tasks try different ones side by side.
    """

    @abstractmethod
    def seeds(self) -> list[Word]:
        """What a search begins with, one or more."""

    @abstractmethod
    def child(self, parent: Word, key: Tensor) -> Word:
        """A candidate with a random change, determined by the key [] int64."""

    @abstractmethod
    def adopt(self, word: Word) -> None:
        """Become this candidate."""


class Searches:
    """A method that chooses between the alternatives of a net, which must have some (``Net.architecture``)."""

    net: Net

    @property
    def mixture(self) -> nn.Parameter:
        """By which the net weighs its alternatives."""
        return self.net.get_parameter(self.net.architecture)


class Attacks:
    """An adversary, for whom a bad score of its victim is a good one."""

    victim: Algorithm


class LimitedWay:
    """There is room for so many classes and no more, whatever way the method was trained for. A method, or a part of one.

    Attributes:
        most_classes: that it tells apart.
    """

    most_classes: int


class OneByOne:
    """What calls that for which torch.vmap has no rule, as another library: tasks are run one after the other.

    A method, or a part of one; or the simulator of an environment.
    """


# What were flags of ``Algorithm``, and what a method does in their place.
FLAGS_OF_OLD = {
    "continues": "derive it from metarun.abilities.Continues, which asks for carry_on",
    "exports": "derive it from metarun.abilities.WeighsExamples or UpdateRule",
    "fits_any_net": "derive it from metarun.abilities.UpdateRule",
    "searches": "derive it from metarun.abilities.Searches",
    "attacks": "derive it from metarun.abilities.Attacks",
    "batchable": "derive it from metarun.abilities.OneByOne where that was False",
    "players": "let each group of groups() say the metric that it descends, as {'params': …, 'descends': 'learner_loss'}",
    "keeps": "let footprint return Footprint(…, kept='states')",
}
ASKED_FOR = (Continues, WeighsExamples, UpdateRule, HasRivals, Augments, Evolvable)


def refuse_forgotten(algorithm: Algorithm) -> None:
    """What a method says that nobody asks for any more, or that nobody asks for without its ability, is an error rather than of no effect.

    Raises:
        UserError: the method, or one that it is built around, has such a thing.
    """
    for method in (part for part in algorithm.modules() if isinstance(part, Algorithm)):
        name = type(method).__name__
        for flag, now in FLAGS_OF_OLD.items():
            if isinstance(getattr(method, flag, None), (bool, str, tuple, list)):  # a method's own things of that name are not flags
                raise UserError(f"{name}.{flag} is a flag no more: {now}")
        for ability in ASKED_FOR:
            asked: frozenset[str] = ability.__abstractmethods__
            if not isinstance(method, ability) and all(hasattr(type(method), part) for part in asked):
                has, of = ", ".join(sorted(asked)), ability.__name__
                raise UserError(f"{name} has {has}, which is asked of none but metarun.abilities.{of}: derive it from that as well")
