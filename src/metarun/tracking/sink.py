"""What every service is to a run: somewhere to send numbers and pictures. One file for each that is an option."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

ITERATION, INNER = "iteration", "inner_step"  # what numbers are drawn over
Scalars = Mapping[str, float]


class Sink(ABC):
    """Where the numbers of one run go; made by ``sinks.open_sinks``. Every method may raise whatever the library does."""

    id: str  # by which the service knows the run

    @abstractmethod
    def scalars(self, axis: str, step: int, values: Scalars) -> None:
        """Named numbers at a step of ``ITERATION`` or ``INNER``."""

    @abstractmethod
    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """A picture [height, width, 3] uint8."""

    @abstractmethod
    def results(self, values: Scalars) -> None:
        """The final numbers, by which a service lists runs."""

    @abstractmethod
    def close(self, failed: bool) -> None:
        """The run is over."""
