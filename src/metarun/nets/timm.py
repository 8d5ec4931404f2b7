"""``net=timm``: any image model of PyTorch Image Models as a backbone, DINOv2, CLIP and ConvNeXt among them (Wightman 2019,
doi:10.5281/zenodo.4414861). An extra: imported when chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from metarun.errors import UserError, nearest
from metarun.nets.pretrained import Filter, Pretrained, Recipe, imported


class Timm(Pretrained):
    """A model of timm without its classifier; the features are those that its classifier would be given."""

    library = "timm"

    @classmethod
    def example(cls) -> str:
        return "resnet18"

    def recipe(self) -> Recipe:
        timm = _timm()
        assert self.model is not None
        if not timm.is_model(self.model):
            names = timm.list_models()
            raise UserError(f"net.model={self.model} is no model of timm{nearest(self.model, names)} (timm.list_models() has {len(names)})")
        sized: dict[str, Any] = {}
        if self.chosen_size != "auto":
            config = timm.get_pretrained_cfg(self.model)
            # Models with positions are built for one size; the others take what they are given.
            sized = {"img_size": self.chosen_size} if config is not None and config.fixed_input_size else {}
        module = _told(self, lambda: timm.create_model(self.model, pretrained=False, num_classes=0, **sized))
        config = timm.data.resolve_data_config({}, model=module)
        size = config["input_size"][-1] if self.chosen_size == "auto" else self.chosen_size
        resample: Filter = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
        return Recipe(module, size, tuple(config["mean"]), tuple(config["std"]), config["crop_pct"], resample)

    def default(self) -> Mapping[str, Tensor]:
        timm = _timm()
        config = timm.get_pretrained_cfg(self.model)
        if config is None or not config.has_weights:
            raise UserError(f"timm has no weights of {self.model}: give net.weights=FILE, or another net.model (timm.list_pretrained())")
        sized = {"img_size": self.chosen_size} if self.chosen_size != "auto" and config.fixed_input_size else {}
        try:
            return timm.create_model(self.model, pretrained=True, num_classes=0, **sized).state_dict()
        except Exception as error:  # each library below it has errors of its own
            where = f"model.safetensors of {config.hf_hub_id}, from the Hugging Face hub," if config.hf_hub_id else f"{config.url}"
            raise UserError(
                f"the weights of {self.title} cannot be downloaded ({type(error).__name__}): get {where} on a machine with a network, put "
                "the file anywhere here, and give net.weights=FILE"
            ) from None


def _timm() -> Any:
    return imported("timm", "timm.data")


def _told(net: Timm, make: Any) -> Any:
    """What ``make`` makes; what timm objects to is one line."""
    try:
        return make()
    except Exception as error:
        text = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{net.title} net.size={net.chosen_size} cannot be built: {text[:160]}") from None
