"""Actions by chance: what everything that acts is to be compared with.
As the random rows of Duan et al. 2016, arXiv:1611.02779."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from metarun.algos.control import _policies
from metarun.algos.control._lives import Living
from metarun.nets.base import Net
from metarun.nets.pixels import Pixels
from metarun.problem import Past, Problem


class Random(Living):
    """Every choice as likely as another, or actions of standard normal numbers; nothing is learned, neither before nor while acting.

    Args:
        net, problem: the backbone, which is left aside, and the data's shape.
    """

    def __init__(self, net: Net, problem: Problem) -> None:
        super().__init__(Pixels(problem.input_shape), problem)

    def blank(self, like: Tensor) -> Any:
        return ()

    def noise(self, keys: Tensor) -> Tensor:
        return _policies.noise(self.problem, keys)

    def act(self, past: Past, observation: Tensor, time: Tensor, noise: Tensor) -> tuple[Tensor, Any]:
        return noise.argmax(-1) if self.problem.choices else noise.to(past.reward.dtype), ()
