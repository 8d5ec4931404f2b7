"""torchvision beside a torch that it was not compiled for: its models and transforms need none of its compiled operators."""

from __future__ import annotations

import importlib
from functools import cache

import torch

_described: list[torch.library.Library] = []  # descriptions last as long as this does


@cache
def prepare() -> None:
    """Import torchvision, so that whatever needs it can import it, too.

    Raises:
        ImportError: it is not installed.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError:  # built for GPUs, beside a torch for CPUs it lacks two operators that it goes on to describe
        schemas = torch.library.Library("torchvision", "DEF")
        _described.append(schemas)
        for name in ("nms", "qnms"):
            schemas.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")
