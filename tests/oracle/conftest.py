"""Libraries that are not ours, where they are installed; learn2learn 0.2.0 builds on Python >= 3.11 once its C files are made anew."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

import pytest
import torch


@pytest.fixture(scope="module")
def learn2learn() -> ModuleType:
    if importlib.util.find_spec("learn2learn") is None:
        pytest.skip("learn2learn is not installed")
    if importlib.util.find_spec("torchvision") and not hasattr(torch.ops.torchvision, "nms"):
        schemas = torch.library.Library("torchvision", "DEF")  # a torchvision built for CUDA beside a CPU torch lacks them
        for name in ("nms", "qnms"):
            schemas.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("learn2learn")
