"""``net=torchvision``: a classification model of torchvision as a backbone. An extra: imported when chosen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metarun.errors import UserError, nearest
from metarun.nets.pretrained import Filter, Pretrained, Recipe, imported


class Torchvision(Pretrained):
    """A model of torchvision without its last linear layer, the one over ImageNet's classes; its ``DEFAULT`` weights."""

    library = "torchvision"

    @classmethod
    def example(cls) -> str:
        return "resnet18"

    def recipe(self) -> Recipe:
        models = _models()
        names = models.list_models(module=models)
        if self.model not in names:
            raise UserError(f"net.model={self.model} is no classification model of torchvision{nearest(str(self.model), names)}")
        sized: dict[str, Any] = {}
        preset, classes = self._weights().transforms(), len(self._weights().meta["categories"])
        size = preset.crop_size[0] if self.chosen_size == "auto" else self.chosen_size
        if str(self.model).startswith("vit_"):
            sized = {"image_size": size}
        with torch.random.fork_rng(devices=[]):  # its weights will be replaced
            module = models.get_model(self.model, weights=None, **sized)
        heads = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear) and layer.out_features == classes]
        if not heads:
            raise UserError(f"{self.title} does not end with a linear layer over {classes} classes: choose another model, such as resnet18")
        for head in heads:  # inception has one more, for training
            parent, _, name = head.rpartition(".")
            setattr(module.get_submodule(parent), name, nn.Identity())
        resample: Filter = "bilinear" if "bilinear" in str(preset.interpolation).lower() else "bicubic"
        crop = preset.crop_size[0] / preset.resize_size[0]
        return Recipe(module, size, tuple(preset.mean), tuple(preset.std), min(1.0, crop), resample)

    def default(self) -> Mapping[str, Tensor]:
        weights = self._weights()
        try:
            return weights.get_state_dict(progress=False, check_hash=True)
        except Exception as error:
            name, folder = Path(weights.url).name, Path(torch.hub.get_dir()) / "checkpoints"
            raise UserError(
                f"the weights of {self.title} cannot be downloaded ({type(error).__name__}): get {weights.url} on a machine with a "
                f"network, and put it into {folder}, or anywhere with net.weights={name}"
            ) from None

    def _weights(self) -> Any:
        return _models().get_model_weights(self.model).DEFAULT


def _models() -> Any:
    return imported("torchvision", "torchvision.models").models
