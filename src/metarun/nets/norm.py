"""Normalisation with an explicit answer to "whose statistics?", written in elementary operations.
torch's own affine norms give wrong second derivatives under vmap when their weights are adapted per task (tests/contract shows it)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.inner import widen
from metarun.nets import fused
from metarun.nets.conv import Conv, linear, matrix
from metarun.nets.pool import max_pool

NormKind = Literal["batch", "support", "running", "group", "instance", "layer", "none"]


class Norm(nn.Module):
    """Normalises [n, channels, *space] and applies a learned scale and shift per channel.

    Kinds:
        batch: statistics of the very batch it sees, at test too; queries see each other (transductive).
        support: statistics of the support set, for the queries too (inductive).
        running: batch statistics while training; for evaluation, population statistics that ``Net.calibrate`` collected
            over training episodes ("precise batch norm", Wu & Johnson 2021, arXiv:2105.07576, section 3) (inductive).
        group, instance, layer: statistics of each example alone (inductive).
        none: scale and shift only.
    """

    def __init__(self, channels: int, kind: NormKind, groups: int = 8, eps: float = 1e-5) -> None:
        super().__init__()
        if kind == "group" and channels % groups:
            raise ValueError(f"{channels} channels do not fall into {groups} groups")
        self.kind, self.eps = kind, eps
        self.groups = {"group": groups, "instance": channels, "layer": 1}.get(kind, 0)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.mean: Tensor
        self.var: Tensor
        if kind == "running":
            self.register_buffer("mean", torch.zeros(channels))
            self.register_buffer("var", torch.ones(channels))
        self.tally: list[tuple[Tensor, Tensor]] | None = None  # batch moments, while Net.calibrate collects them

    def forward(self, x: Tensor, n_support: int | None = None, conv: Conv | None = None) -> Tensor:
        """Normalise x [n, channels, *space], or what ``conv`` makes of x; a narrow one is not called if both are one linear map.

        ``n_support``: that many leading rows are the support (kind ``support`` only).
        """
        if conv is not None:
            if self._folds(conv):
                return linear(*self._folded(x, conv, n_support))
            x = conv(x)
        dtype, x = x.dtype, x.movedim(1, -1)  # as it lies in memory, so that what is spread over it will lie there alike
        if self.kind == "none":
            return (x * self.weight.to(dtype) + self.bias.to(dtype)).movedim(-1, 1)
        centred, scale = self._by_example(widen(x)) if self.groups else self._by_channel(widen(x), n_support)
        # Both scales in one pass over x: each pass is paid again by the first and by the second derivative.
        return (centred * (scale * self.weight) + self.bias).to(dtype).movedim(-1, 1)

    def rectified(self, x: Tensor, n_support: int | None, conv: Conv, pool: bool) -> Tensor:
        """ReLU, behind 2x2 max-pooling where ``pool`` says so, of ``forward``."""
        if fused.here(x) and not (self._forward_hooks or self._forward_pre_hooks):  # which want to see the norm alone
            window = 2 if pool else 1
            if self._folds(conv):
                if not fused.derived(x):
                    return fused.lifted(*self._folded(x, conv, n_support), window)
            elif self.kind == "batch" or (self.kind == "running" and self.training):
                y, *moments = fused.normed(conv(x), self.weight, self.bias, self.eps, window)
                if self.tally is not None:
                    self.tally.append((moments[0], moments[1]))
                return y
        x = self(x, n_support, conv)
        # The largest before the positive part is the same as after it, on a quarter of the values.
        return F.relu(max_pool(x) if pool else x)

    def _folds(self, conv: Conv) -> bool:
        return conv.narrow and self.kind in ("batch", "support", "running")

    def _folded(self, x: Tensor, conv: Conv, n_support: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Norm and convolution as one linear map of patches p: the moments of w·p are w·mean(p) and wᵀ cov(p) w.

        Returns patches [n, h, w, k], weight [channels, k] and bias [channels].

        The moments of few input channels cost next to nothing, while a first layer's output is the largest thing a net passes over.
        """
        weight = matrix(conv.weight)
        if self.kind == "running" and not self.training:
            seen, mean, var = conv.patches(x), self.mean, self.var
        else:
            # Less what neighbours in an image agree in: the variance behind a filter of differences would be a difference of large
            # numbers, as would the outcome, which bfloat16 could not tell. For the variance even then in float64.
            common = (x[:n_support] if self.kind == "support" else x).mean((0, 2, 3))
            seen = conv.patches(x, common)
            source, rows = (seen[:n_support] if self.kind == "support" else seen).flatten(0, -2), weight.double()
            if x.device.type == "cpu" and fused.here(x) and not fused.derived(x):
                centre, covariance = fused.Covariance.apply(source)
            else:
                source = source.double()
                centre = source.mean(0)
                # By images: a single product of so few rows and so many columns would keep little of a GPU busy.
                images = source.unflatten(0, (-1, seen.shape[1] * seen.shape[2]))
                covariance = (images.mT @ images).sum(0) / source.shape[0] - centre[:, None] * centre
            mean = (rows @ centre).to(weight.dtype)
            var = ((rows @ covariance) * rows).sum(1).to(weight.dtype)
            if self.tally is not None:
                self.tally.append((mean + weight @ common.repeat(conv.kernel**2), var))
        scale = torch.rsqrt(var + self.eps) * self.weight
        return seen, scale[:, None] * weight, self.bias - scale * mean

    def _by_example(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [n, *space, channels] less its mean and 1 / standard deviation, over the groups of channels of each example alone."""
        parts = x.unflatten(-1, (self.groups, -1))
        over = [*range(1, x.dim() - 1), -1]
        centred = parts - parts.mean(over, keepdim=True)
        scale = torch.rsqrt((centred * centred).mean(over, keepdim=True) + self.eps)
        return centred.flatten(-2), scale.expand(*scale.shape[:-1], parts.shape[-1]).flatten(-2)

    def _by_channel(self, x: Tensor, n_support: int | None) -> tuple[Tensor, Tensor]:
        """x [n, *space, channels] less the mean and 1 / standard deviation of every channel, over the examples that the kind names."""
        if self.kind == "running" and not self.training:
            return x - self.mean, torch.rsqrt(self.var + self.eps)
        over = list(range(x.dim() - 1))
        mean = (x[:n_support] if self.kind == "support" else x).mean(over)
        centred = x - mean
        spread = centred[:n_support] if self.kind == "support" else centred
        var = (spread * spread).mean(over)
        if self.tally is not None:
            self.tally.append((mean, var))
        return centred, torch.rsqrt(var + self.eps)
