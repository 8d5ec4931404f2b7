"""ResNet-12, the deeper few-shot backbone (Lee et al. 2019, MetaOptNet, arXiv:1904.03758, section 4.1).
Four residual blocks of three 3x3 convolutions, leaky ReLU 0.1, each ending in a 2x2 max-pool."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Annotated

import torch.nn.functional as F
from annotated_types import Ge, MinLen
from torch import Tensor, nn

from metarun.kernels.ops.max_pool import max_pool
from metarun.nets.base import Net, image_shape
from metarun.nets.conv import Conv
from metarun.nets.fusion import conv_norm
from metarun.nets.norm import Norm, NormKind


class ResidualBlock(nn.Module):
    """[conv, norm, LReLU] x 2, conv, norm, plus a 1x1-projected skip; LReLU; max-pool 2x2 (rounding up, so small images survive)."""

    def __init__(self, channels_in: int, channels_out: int, norm: NormKind) -> None:
        super().__init__()
        widths = [channels_in, channels_out, channels_out, channels_out]
        bias = norm == "none"
        self.convs = nn.ModuleList(Conv(a, b, 3, bias=bias) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(Norm(channels_out, norm) for _ in self.convs)
        self.skip = Conv(channels_in, channels_out, 1, bias=bias)
        self.skip_norm = Norm(channels_out, norm)

    def forward(self, x: Tensor, n_support: int | None) -> Tensor:
        """[n, channels_in, h, w] -> [n, channels_out, ceil(h/2), ceil(w/2)]."""
        out = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            out = conv_norm(conv, norm, out, n_support)  # type: ignore[arg-type]  # a ModuleList does not say of what
            if i < 2:
                out = F.leaky_relu(out, 0.1)
        out = F.leaky_relu(out + conv_norm(self.skip, self.skip_norm, x, n_support), 0.1)
        return max_pool(out, ceil=True)


class ResNet12(Net):
    """ResNet-12.

    Deviations: (1) no DropBlock and no dropout: an inner loop must see the same net twice. (2) The mean over space is an
    option; the paper flattens.

    Args:
        input_shape: (channels, height, width).
        widths: filters of the blocks (64-160-320-640 in the paper).
        flatten: features are the flattened last map; false: its mean over space.
        norm: see ``Norm``.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        *,
        widths: Annotated[list[Annotated[int, Ge(1)]], MinLen(1)],
        flatten: bool,
        norm: NormKind,
    ) -> None:
        super().__init__()
        channels, *sides = image_shape(input_shape, "resnet12")
        self.norm, self.flatten, self.modulated = norm, flatten, f"blocks.{max(0, len(widths) - 2)}.norms.2"
        self.blocks = nn.ModuleList(ResidualBlock(a, b, norm) for a, b in pairwise([channels, *widths]))
        for _ in self.blocks:
            sides = [(side + 1) // 2 for side in sides]
        self.map_shape = (widths[-1], sides[0], sides[1]) if flatten else (widths[-1], 1, 1)
        self.features = prod(self.map_shape)

    def layers(self, x: Tensor, n_support: int | None) -> Tensor:
        for block in self.blocks:
            x = block(x, n_support)
        return x.flatten(1) if self.flatten else x.mean((2, 3))
