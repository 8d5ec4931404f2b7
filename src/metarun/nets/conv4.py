"""Conv-4, the field's common backbone: four blocks of [3x3 conv, norm, ReLU, down-sampling].
Max-pooling as in prototypical networks (arXiv:1703.05175), stride 2 as in MAML's Omniglot net (arXiv:1703.03400)."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Annotated, Literal

import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

from metarun.kernels.ops.max_pool import max_pool
from metarun.nets.base import Net, as_buffers, image_shape, of_both_sides
from metarun.nets.conv import Conv
from metarun.nets.fusion import conv_norm, conv_norm_relu_pool
from metarun.nets.norm import AnyNorm, Norm, NormKind


class Block(nn.Module):
    """[3x3 conv, norm, ReLU, 2x2 max-pool], or the same with stride 2 and no pool, or neither, for ``down`` none."""

    def __init__(self, channels_in: int, channels_out: int, down: str, norm: AnyNorm) -> None:
        super().__init__()
        self.down = down
        # A norm subtracts the channel's mean, so the convolution's own bias would do nothing.
        self.conv = Conv(channels_in, channels_out, 3, stride=2 if down == "stride" else 1, bias=norm == "none")
        self.norm = Norm(channels_out, norm)

    def forward(self, x: Tensor, n_support: int | None) -> Tensor:
        """[n, channels_in, h, w] -> [n, channels_out, h/2, w/2]."""
        pool = self.down == "pool"
        fused = conv_norm_relu_pool(self.conv, self.norm, x, n_support, pool)
        if fused is not None:
            return fused
        x = F.relu(conv_norm(self.conv, self.norm, x, n_support))
        return max_pool(x) if pool else x


class Conv4(Net):
    """Conv-4.

    Args:
        input_shape: (channels, height, width); pooling needs at least 16 pixels a side.
        hidden: filters of every block.
        down: ``pool`` (max-pool 2x2, odd borders cut) or ``stride`` (stride 2, odd borders kept).
        downs: how many blocks do so, the first ones; the others keep the size of their maps, for methods that compare maps.
        flatten: features are the flattened last map; false: its mean over space.
        norm: see ``Norm``.
        mirror: in evaluation, features are the mean of those of an image and of its mirror image: for what is the same from left and
            right, as faces. Training sees images as they come.
        frozen: nothing of it is learned: the weights, and the statistics of ``running``, are those that ``init_from`` brings.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        *,
        hidden: Annotated[int, Ge(1)],
        down: Literal["pool", "stride"],
        flatten: bool,
        norm: NormKind,
        downs: Annotated[int, Ge(0), Le(4)] = 4,
        mirror: bool = False,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        channels, *sides = image_shape(input_shape, "conv4")
        if frozen and norm in ("batch", "support"):
            raise ValueError(
                f"net.frozen=true asks for features of an image by itself, and net.norm={norm} looks at others: running is one"
            )
        self.norm = "stored" if frozen and norm == "running" else norm
        self.flatten, self.mirror, self.frozen, self.modulated = flatten, mirror, frozen, "blocks.2.norm"
        widths = [channels, hidden, hidden, hidden, hidden]
        self.blocks = nn.ModuleList(Block(a, b, down if i < downs else "none", self.norm) for i, (a, b) in enumerate(pairwise(widths)))
        if frozen:
            as_buffers(self)
        for _ in range(downs):
            sides = [side // 2 if down == "pool" else (side + 1) // 2 for side in sides]
        if not all(sides):
            least = 2**downs
            raise ValueError(
                f"net=conv4 with down=pool needs images of at least {least}x{least} pixels, these are {input_shape[1]}x{input_shape[2]}"
            )
        self.map_shape = (hidden, sides[0], sides[1]) if flatten else (hidden, 1, 1)
        self.features = prod(self.map_shape)

    def layers(self, x: Tensor, n_support: int | None) -> Tensor:
        if self.frozen and x.dim() == 2:
            return x  # features that were computed before
        return of_both_sides(lambda x: self.one_side(x, n_support), x) if self.mirror and not self.training else self.one_side(x, n_support)

    def train(self, mode: bool = True) -> Conv4:
        """As ``nn.Module.train``, but what is frozen stays in evaluation mode."""
        super().train(mode and not self.frozen)
        return self

    def one_side(self, x: Tensor, n_support: int | None) -> Tensor:
        """As ``layers``, of images as they are."""
        for block in self.blocks:
            x = block(x, n_support)
        return x.flatten(1) if self.flatten else x.mean((2, 3))
