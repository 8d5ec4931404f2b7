"""A multilayer perceptron: flattened inputs through hidden layers with a chosen activation.
The sinusoid's net (40-40 ReLU, arXiv:1703.03400 section 5.1) and the no-convolution baseline for images."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import prod
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from metarun.nets.base import Net
from metarun.nets.norm import Norm, NormKind

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {"relu": F.relu, "tanh": torch.tanh, "elu": F.elu, "gelu": F.gelu}


class MLP(Net):
    """A multilayer perceptron.

    Args:
        input_shape: any shape; examples are flattened.
        sizes: width of every hidden layer; none: features are the flattened example.
        activation: after every hidden layer (and after its norm).
        norm: see ``Norm``; ``none`` has neither statistics nor scale and shift here.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        *,
        sizes: list[Annotated[int, Ge(1)]],
        activation: Literal["relu", "tanh", "elu", "gelu"],
        norm: NormKind,
    ) -> None:
        super().__init__()
        self.norm, self.modulated = norm, "" if not sizes else "linears.0" if norm == "none" else "norms.0"
        self.activation: Activation = ACTIVATIONS[activation]
        widths = [prod(input_shape), *sizes]
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        norms = [Norm(width, norm) for width in sizes if norm != "none"]
        if any(layer.groups == width for layer, width in zip(norms, sizes)):
            raise ValueError(
                f"net=mlp with norm={norm} has groups of one number, which it would turn to 0; choose another net.norm or wider net.sizes"
            )
        self.norms = nn.ModuleList(norms)
        self.features, self.map_shape = widths[-1], (widths[-1], 1, 1)

    def layers(self, x: Tensor, n_support: int | None) -> Tensor:
        x = x.flatten(1)
        for i, linear in enumerate(self.linears):
            x = linear(x)
            if self.norms:
                x = self.norms[i](x, n_support)
            x = self.activation(x)
        return x
