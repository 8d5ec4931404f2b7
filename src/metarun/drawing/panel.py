"""What pictures of episodes are made of."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from metarun.task import Batch


class Panel(NamedTuple):
    """Examples of the same classes, to be drawn side by side, or one after the other."""

    title: str
    colour: str
    batch: Batch
    guesses: Tensor | None = None  # [n] int64, the labels that a learner gave them
