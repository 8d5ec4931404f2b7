"""What acts, and in what: the past that an actor brings along, its policy, the environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Past(NamedTuple):
    """What an actor brings along from its last action, and from one episode to the next."""

    memory: Any  # its own, nested tensors [n, …]
    action: Tensor  # [n, size] or [n], the last one; ``Control.none`` before the first
    reward: Tensor  # [n], what came of it


# Of n actors at once: past, observations [n, *observation], time [] int64 = 0, 1, … and this time's noise [n, …] to actions and memory.
Policy = Callable[[Past, Tensor, Tensor, Any], tuple[Tensor, Any]]


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
