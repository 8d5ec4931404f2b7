"""How features spread over a graph: averages of a node and its neighbours."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Hop(NamedTuple):
    """Â = D^(-½) (A + I) D^(-½), where D are the degrees of A + I (Kipf & Welling 2017, arXiv:1609.02907, equation 2).

    It is not written down: of all that depends on A, and is differentiated by it, the matrix itself is the only one of its size.
    """

    linked: Tensor  # A [nodes, nodes]: 0, 1, or between for derivatives
    scale: Tensor  # the diagonal of D^(-½) [nodes]

    @classmethod
    def along(cls, linked: Tensor) -> Hop:
        return cls(linked, (linked.sum(1) + 1).rsqrt())

    def spread(self, h: Tensor) -> Tensor:
        """Âh [nodes, n] of h [nodes, n]."""
        h = self.scale[:, None] * h
        return self.scale[:, None] * (self.linked @ h + h)

    def to(self, x: Tensor, h: Tensor) -> Tensor:
        """The rows of Âh of the nodes x [m] int64, [m, n]."""
        h = self.scale[:, None] * h
        return self.scale[x][:, None] * (self.linked[x] @ h + h[x])

    def columns(self, x: Tensor) -> Tensor:
        """Those of Â of the nodes x [m] int64, [nodes, m]."""
        own = torch.arange(self.scale.shape[0], device=x.device)[:, None] == x
        return self.scale[:, None] * (self.linked[:, x] + own) * self.scale[x]
