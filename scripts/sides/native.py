"""Conv4-64 and its head in torch's own layers, as users of other libraries write it, with metarun's names for its weights."""

from __future__ import annotations

from typing import Any

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


def names(model: nn.Module) -> list[str]:
    """metarun's names of the parameters, in order."""
    body = [f"net.blocks.{i}.{name}" for i in range(4) for name in ("conv.weight", "norm.weight", "norm.bias")]
    return [*body, "head.weight", "head.bias"][: len(list(model.parameters()))]


def learner(work: dict[str, Any], weights: dict[str, Tensor]) -> nn.Module:
    """The net of a piece of work, with these weights."""
    model = Conv4(len(weights["net.blocks.0.conv.weight"]), work["down"], work["flatten"], work["way"] if work["algo"] == "maml" else None)
    for parameter, name in zip(model.parameters(), names(model), strict=True):
        parameter.data = weights[name].clone()
    return model
