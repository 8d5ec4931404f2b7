"""Normalisation with an explicit answer to "whose statistics?", written in elementary operations.
torch's own affine norms give wrong second derivatives under vmap when their weights are adapted per task (tests/contract shows it)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from metarun.inner import upcast

NormKind = Literal["batch", "support", "running", "group", "instance", "layer", "none"]
AnyNorm = Literal[NormKind, "stored"]


class Norm(nn.Module):
    """Normalises [n, channels, *space] and applies a learned scale and shift per channel.

    Kinds:
        batch: statistics of the very batch it sees, at test too; queries see each other (transductive).
        support: statistics of the support set, for the queries too (inductive).
        running: batch statistics while training; for evaluation, population statistics that ``Net.calibrate`` collected
            over training episodes ("precise batch norm", Wu & Johnson 2021, arXiv:2105.07576, section 3) (inductive).
        stored: population statistics that came with the weights, in training too, for a backbone trained by others (inductive).
        group, instance, layer: statistics of each example alone (inductive).
        none: scale and shift only.
    """

    def __init__(self, channels: int, kind: AnyNorm, groups: int = 8, eps: float = 1e-5) -> None:
        super().__init__()
        if kind == "group" and channels % groups:
            raise ValueError(f"{channels} channels do not fall into {groups} groups")
        self.kind, self.eps = kind, eps
        self.groups = {"group": groups, "instance": channels, "layer": 1}.get(kind, 0)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.mean: Tensor
        self.var: Tensor
        if kind in ("running", "stored"):
            self.register_buffer("mean", torch.zeros(channels))
            self.register_buffer("var", torch.ones(channels))
        self.tally: list[tuple[Tensor, Tensor]] | None = None  # batch moments, while Net.calibrate collects them

    def forward(self, x: Tensor, n_support: int | None = None) -> Tensor:
        """Normalise x [n, channels, *space]; ``n_support``: that many leading rows are the support (kind ``support`` only)."""
        dtype, x = x.dtype, x.movedim(1, -1)  # as it lies in memory, so that what is spread over it will lie there alike
        if self.kind == "none":
            return (x * self.weight.to(dtype) + self.bias.to(dtype)).movedim(-1, 1)
        centred, scale = self._by_example(upcast(x)) if self.groups else self._by_channel(upcast(x), n_support)
        # Both scales in one pass over x: each pass is paid again by the first and by the second derivative.
        return (centred * (scale * self.weight) + self.bias).to(dtype).movedim(-1, 1)

    def _by_example(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [n, *space, channels] less its mean and 1 / standard deviation, over the groups of channels of each example alone."""
        parts = x.unflatten(-1, (self.groups, -1))
        over = [*range(1, x.dim() - 1), -1]
        centred = parts - parts.mean(over, keepdim=True)
        scale = torch.rsqrt((centred * centred).mean(over, keepdim=True) + self.eps)
        return centred.flatten(-2), scale.expand(*scale.shape[:-1], parts.shape[-1]).flatten(-2)

    def _by_channel(self, x: Tensor, n_support: int | None) -> tuple[Tensor, Tensor]:
        """x [n, *space, channels] less the mean and 1 / standard deviation of every channel, over the examples that the kind names."""
        if self.kind == "stored" or (self.kind == "running" and not self.training):
            return x - self.mean, torch.rsqrt(self.var + self.eps)
        over = list(range(x.dim() - 1))
        mean = (x[:n_support] if self.kind == "support" else x).mean(over)
        centred = x - mean
        spread = centred[:n_support] if self.kind == "support" else centred
        var = (spread * spread).mean(over)
        if self.tally is not None:
            self.tally.append((mean, var))
        return centred, torch.rsqrt(var + self.eps)
