"""The shape of an episode, and what may be wrong with its support."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le

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
    Of ``unknown`` classes more there are queries alone, for protocols that ask whether a learner notices.
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
    unknown: Annotated[int, Ge(0)] = 0

    @property
    def images(self) -> int:
        """How many there are in an episode."""
        return (
            (self.shot + self.query + self.clean) * self.way + self.unlabelled * (self.way + self.distractors) + self.query * self.unknown
        )

    def __str__(self) -> str:
        words = f"{self.way}-way {self.shot}-shot{' (uneven)' * self.uneven}, {self.query} queries per class"
        if self.unlabelled:
            words += f", {self.unlabelled} unlabelled" + (f" (and of {self.distractors} further classes)" if self.distractors else "")
        if self.clean:
            words += f", {self.clean} clean"
        if self.unknown:
            words += f", and of {self.unknown} unknown classes"
        if self.corrupt != "none":
            words += f", corrupt={self.corrupt} at rate {self.rate:g}"
        return words
