"""Conv4-64 and ResNet-12 and their heads in torch's own layers, as other libraries' users write them, with metarun's names for weights."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class Conv4(nn.Module):
    """Four blocks of [3x3 convolution, batch norm, ReLU, pool or stride 2]; features are flattened, or a mean over space.

    Convolutions have no bias, which a batch norm would take away again, and no running statistics are kept: the least work.
    """

    def __init__(self, hidden: int, down: str, flatten: bool, outputs: int | None) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for channels in (1, hidden, hidden, hidden):
            blocks += [nn.Conv2d(channels, hidden, 3, padding=1, stride=2 if down == "stride" else 1, bias=False)]
            blocks += [nn.BatchNorm2d(hidden, track_running_stats=False), nn.ReLU()]
            blocks += [nn.MaxPool2d(2)] if down == "pool" else []
        self.blocks, self.flatten = nn.Sequential(*blocks), flatten
        self.head = nn.Linear(hidden, outputs) if outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return self.head(x.flatten(1) if self.flatten else x.mean((2, 3)))


class ResidualBlock(nn.Module):
    """[conv, norm, LReLU] x 2, conv, norm, plus a projected skip; LReLU; max-pool."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        widths = [channels_in, channels_out, channels_out, channels_out]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels_out, track_running_stats=False) for _ in self.convs)
        self.skip = nn.Conv2d(channels_in, channels_out, 1, bias=False)
        self.skip_norm = nn.BatchNorm2d(channels_out, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for conv, norm in zip(self.convs[:2], self.norms[:2]):
            out = F.leaky_relu(norm(conv(out)), 0.1)
        out = F.leaky_relu(self.norms[2](self.convs[2](out)) + self.skip_norm(self.skip(x)), 0.1)
        return F.max_pool2d(out, 2, ceil_mode=True)


class ResNet12(nn.Module):
    """Four residual blocks; features are a mean over space."""

    def __init__(self, channels: int, widths: list[int], outputs: int | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(ResidualBlock(a, b) for a, b in pairwise([channels, *widths])))
        self.head = nn.Linear(widths[-1], outputs) if outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean((2, 3)))


def names(model: nn.Module) -> list[str]:
    """metarun's names of the parameters, in order."""
    if isinstance(model, ResNet12):
        return [name if name.startswith("head.") else f"net.{name}" for name, _ in model.named_parameters()]
    body = [f"net.blocks.{i}.{name}" for i in range(4) for name in ("conv.weight", "norm.weight", "norm.bias")]
    return [*body, "head.weight", "head.bias"][: len(list(model.parameters()))]


def learner(work: dict[str, Any], weights: dict[str, Tensor]) -> nn.Module:
    """The net of a piece of work, with these weights."""
    outputs = work["way"] if work["algo"] == "maml" else None
    if work["net"] == "resnet12":
        skips = [weight for name, weight in weights.items() if name.endswith(".skip.weight")]
        model: nn.Module = ResNet12(skips[0].shape[1], [len(skip) for skip in skips], outputs)
    else:
        model = Conv4(len(weights["net.blocks.0.conv.weight"]), work["down"], work["flatten"], outputs)
    for parameter, name in zip(model.parameters(), names(model), strict=True):
        parameter.data = weights[name].clone()
    return model
