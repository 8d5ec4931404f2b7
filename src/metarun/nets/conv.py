"""The convolution of all nets."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metarun.kernels import select
from metarun.kernels.form import Form
from metarun.kernels.ops.conv import by_taps, convolve, linear, matrix


class Conv(nn.Module):
    """A square convolution [n, channels_in, h, w] -> [n, channels_out, h', w'], which keeps the size at stride 1 if ``kernel`` is odd.

    Weights begin as those of ``torch.nn.Conv2d`` do.

    Attributes:
        narrow: whether a place of the input has so few values that a linear map of patches is the faster way.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, bias: bool = True) -> None:
        super().__init__()
        like = nn.Conv2d(channels_in, channels_out, kernel, bias=bias)
        self.bias = like.bias
        # In memory as patches and gradients are, so that ``matrix`` copies nothing.
        self.weight = nn.Parameter(like.weight.detach().to(memory_format=torch.channels_last))
        self.kernel, self.stride, self.padding = kernel, stride, kernel // 2
        self.narrow = channels_in * kernel**2 <= 32

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels_in, h, w] -> [n, channels_out, h', w']."""
        if self.narrow and select.has("folding"):
            return linear(self.patches(x), matrix(self.weight), self.bias)
        y = convolve(x, self.weight, self.stride, self.padding)
        return y if self.bias is None else y + self.bias.view(-1, 1, 1).to(y.dtype)

    def patches(self, x: Tensor, common: Tensor | None = None) -> Tensor:
        """im2col of x [n, channels_in, h, w], less ``common`` [channels_in]: [n, h', w', kernel² * channels_in]."""
        return by_taps(x, Form(self.kernel, self.stride, self.padding, (x.shape[-2], x.shape[-1])), common)
