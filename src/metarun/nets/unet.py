"""A U-Net along one axis: convolutions that halve the length, level after level, and others that double it again beside what was there.
Ronneberger, Fischer, Brox 2015, arXiv:1505.04597; of one dimension as in Gordon et al. 2020, arXiv:1910.13556, appendix."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL = 5


class UNet1d(nn.Module):
    """From ``channels`` numbers of every place to twice as many, which know of places up to about 2^levels * 4 away.

    Shifting the input by a multiple of 2^levels places shifts the output, away from the ends, where it is padded with zeros.

    Args:
        channels: of the input; every second level has twice as many as the one above, so that all levels cost about the same.
        levels: how often the length is halved.
    """

    def __init__(self, *, channels: int, levels: int) -> None:
        super().__init__()
        sizes = [channels * 2 ** (i // 2) for i in range(levels + 1)]
        pairs = [*pairwise(sizes)]
        self.down = nn.ModuleList(nn.Conv1d(a, b, KERNEL, stride=2, padding=KERNEL // 2) for a, b in pairs)
        # Back up, every level but the lowest also sees what was there on the way down.
        self.up = nn.ModuleList(
            nn.ConvTranspose1d(b if i == 0 else 2 * b, a, KERNEL, stride=2, padding=KERNEL // 2, output_padding=1)
            for i, (a, b) in enumerate(reversed(pairs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """[n, 2 * channels, length] of x [n, channels, length], whose length is a multiple of 2^levels."""
        before = []
        for layer in self.down:
            before.append(x)
            x = F.relu(layer(x))
        for layer in self.up:
            x = torch.cat([F.relu(layer(x)), before.pop()], 1)
        return x
