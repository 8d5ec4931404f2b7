"""What every dataset offers: named splits, the shape of an example, and episodes over a split.
A dataset is one file that subclasses ``ImageDataset`` (images in classes, or what is like them) or ``Dataset`` (anything else)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun.data.episodes import ClassEpisodes, Episodes, Split
from metarun.data.picture import Reader
from metarun.errors import UserError, nearest
from metarun.problem import Classification, EpisodeSpec, Kind, Simulator


class Scaling(NamedTuple):
    """What turns anybody's numbers into those that a net is given: (x − mean) / deviation, by column."""

    mean: Tensor  # [columns]
    deviation: Tensor  # [columns], above 0

    @classmethod
    def of(cls, numbers: Tensor) -> Scaling:
        """By which these numbers [n, columns] have mean 0 and deviation 1; a column that is constant keeps its scale."""
        deviation = numbers.std(0, correction=0)
        return cls(numbers.mean(0), torch.where(deviation > 0, deviation, 1.0))

    def __call__(self, numbers: Tensor) -> Tensor:
        """Of anybody's numbers [..., columns]."""
        return (numbers - self.mean.to(numbers)) / self.deviation.to(numbers)

    def back(self, numbers: Tensor) -> Tensor:
        """Anybody's numbers again."""
        return numbers * self.deviation.to(numbers) + self.mean.to(numbers)


class TableForm(NamedTuple):
    """What the columns of anybody's table are to a learner that reads rows of numbers."""

    inputs: tuple[str, ...] | None  # in order; None: any, up to the length of an input, whatever they are called
    targets: tuple[str, ...]  # what is to be told: the one column of classes, or numbers


class Dataset(ABC):
    """A source of episodes. Constructors take the run's seed first, then only keyword arguments, which are the YAML's keys."""

    kind: Kind = Classification()
    splits: Collection[str]  # names; what has no ``train`` can only be evaluated on
    input_shape: tuple[int, ...]  # one example, without batch axis
    classes: int = 0  # training classes; 0 where there are none
    attributes: int = 0  # length of a class's attribute vector; 0: there are none
    simulator: Simulator | None = None  # control: the environment
    note: str = ""  # in what the data are not as published, or which they are, for reports: "100 a class"
    scaling: Scaling | None = None  # of inputs that are rows of numbers; None: they are taken as they are
    target_scaling: Scaling | None = None  # of the targets of regression, likewise
    form: TableForm | None = None  # of tables whose rows are examples; None: they are not, or have no names
    fixed_spec: EpisodeSpec | None = None  # a benchmark whose episodes are given, not sampled, says their shape here

    @abstractmethod
    def episodes(self, split: str, spec: EpisodeSpec, seed: int, device: str | torch.device = "cpu") -> Episodes:
        """The episodes of a split (``train``, ``val`` or ``test``).

        Raises:
            UserError: the split does not exist here, or the spec asks for more than it holds.
        """

    def check_split(self, split: str) -> None:
        """Refuse, with a UserError, a split that does not exist here."""
        if split not in self.splits:
            raise UserError(f"these data have no {split} split, only {', '.join(self.splits)}{nearest(split, self.splits)}")

    def describe(self, split: str) -> str:
        """What a split holds, in a few words."""
        return f"{self.kind.name} tasks"

    def examples(self) -> Tensor | None:
        """All inputs of training as they are stored, [n, *input_shape]; None where they are not kept."""
        return None

    @classmethod
    def reader(cls, **values: Any) -> Reader | None:
        """How anybody's files become inputs like those of the dataset with these ``values`` (the YAML's); None: they cannot.

        Nothing is read, so that a trained run works where its data are not.
        """
        return None


class ImageDataset(Dataset):
    """Images in classes, one ``Split`` per name; so are spectrograms, and texts as rows of bytes."""

    splits: dict[str, Split]

    def __init__(self, splits: dict[str, Split]) -> None:
        self.splits = splits
        first = next(iter(splits.values()))
        self.input_shape = tuple(first.images.shape[1:])
        self.classes = splits["train"].classes if "train" in splits else 0
        self.attributes = first.attributes.shape[1]

    def episodes(self, split: str, spec: EpisodeSpec, seed: int, device: str | torch.device = "cpu") -> Episodes:
        self.check_split(split)
        return ClassEpisodes(self.splits[split], split, spec, seed, device)

    def examples(self) -> Tensor | None:
        return self.splits["train"].images if "train" in self.splits else None

    def describe(self, split: str) -> str:
        data = self.splits[split]
        held = f"{data.classes:,} classes, {len(data.images):,} images of {'x'.join(map(str, self.input_shape))}"
        return f"{held} ({self.note})" if self.note else held
