"""Backbones that come with weights of somebody's training: what ``net=timm``, ``net=torchvision`` and ``net=package`` share.
They take images of any size as their library would, and may be frozen, whole or in part: what is frozen is no parameter but a buffer."""

from __future__ import annotations

import zipfile
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from metarun.errors import MissingLibrary, UserError, install
from metarun.nets import foreign
from metarun.nets.base import Net, as_buffers, image_shape, of_both_sides
from metarun.nets.native import BatchKind, with_our_layers
from metarun.nets.norm import Norm
from metarun.runtime import torchvision

Freeze = Literal["all", "none"] | Annotated[int, Ge(1)]
Size = Literal["auto"] | Annotated[int, Ge(16), Le(2048)]
Filter = Literal["bilinear", "bicubic"]
RANDOM = ("DropPath", "StochasticDepth", "DropBlock2d")  # layers of timm and torchvision that draw from torch's global generator
SHOWN = 2  # names in a line


class Recipe(NamedTuple):
    """A model as its library makes it, without weights, and what pictures it was trained on."""

    module: nn.Module  # [n, 3, size, size] to features [n, features]
    size: int  # height and width of a picture, pixels
    mean: tuple[float, ...]  # of each channel of pictures in 0..1, taken away
    std: tuple[float, ...]  # that the rest is divided by
    crop: float = 1.0  # the middle of a picture that is shown, as a share of its shorter side
    resample: Filter = "bicubic"


class Pretrained(Net):
    """A backbone with weights of somebody's training.

    Images [n, 1 or 3, height, width] in 0..1 are resized as a whole to the library's input size, antialiased, and normalised as the library
    says; a grey one has its channel three times. Pictures from files are cropped as the library crops them, see ``Recipe``.

    Where nothing is trained (``freeze: all``) torch's own layers stay, in evaluation mode. Otherwise the layers from the first one on that
    is trained get norms that are right under ``torch.vmap``, and neither dropout nor stochastic depth.

    Args:
        input_shape: one image's shape; None: as the model was trained, or ``size`` says.
        model: its name in the library.
        weights: ``default``, the library's own, which may be downloaded, when a run begins and never from a stored configuration; or a
            FILE, .safetensors or of ``torch.save``, read without running anything in it.
        freeze: ``all``: nothing is trained, every method adapts and learns what comes after it; ``none``; or the first N parts (see
            ``parts``) stay as they are.
        norm: statistics of the batch norms that are trained: ``stored``, which came with the weights; ``running``; or ``batch``.
        size: height and width of what the model is shown, pixels; ``auto``: as it was trained.
        mirror: in evaluation, and always where all is frozen, features are the mean of those of an image and of its mirror image.

    Raises:
        UserError: no such model or file, or weights that are not to be had; MissingLibrary: the library is not installed.
        ValueError: the examples are no images.
    """

    library: str  # its option of ``net``
    downloads: bool = True  # the library's own weights

    def __init__(
        self,
        input_shape: tuple[int, ...] | None,
        *,
        model: str | None,
        weights: str,
        freeze: Freeze,
        norm: BatchKind,
        size: Size,
        mirror: bool = False,
    ) -> None:
        super().__init__()
        if model is None:
            raise UserError(f"net={self.library} needs net.model=NAME, such as net.model={self.example()}")
        self.model, self.weights, self.freeze, self.batch_kind, self.chosen_size = model, weights, freeze, norm, size
        self.frozen, self.mirror = freeze == "all", mirror
        recipe = self.recipe()
        self.size, self.crop, self.resample = recipe.size, recipe.crop, recipe.resample
        shape = (3, self.size, self.size) if input_shape is None else input_shape
        channels, height, width = image_shape(shape, self.library)
        if channels not in (1, 3):
            raise ValueError(f"net={self.library} takes images of 1 or 3 channels, these have {channels}")
        self.module = self._prepared(recipe.module)
        self.norm = self._norm()
        self.mean: Tensor
        self.std: Tensor
        self.rows: Tensor
        self.columns: Tensor
        for name, value in {"mean": recipe.mean, "std": recipe.std}.items():
            self.register_buffer(name, torch.tensor(value).view(-1, 1, 1), persistent=False)
        for name, side in {"rows": height, "columns": width}.items():
            self.register_buffer(name, resizing(side, self.size, self.resample), persistent=False)
        self.features = foreign.features(self.eval(), shape, self.title, Path())
        self.map_shape = (self.features, 1, 1)
        self.train()

    @classmethod
    @abstractmethod
    def example(cls) -> str:
        """The name of a model, for an error."""

    @abstractmethod
    def recipe(self) -> Recipe:
        """The model of this name and size, without weights.

        Raises:
            UserError: there is none, or not of that size; MissingLibrary: the library is not installed.
        """

    @abstractmethod
    def default(self) -> Mapping[str, Tensor]:
        """The library's own weights of the model by name; more than the module has are fine.

        Raises:
            UserError: they are not to be had; the line says which file to put where.
        """

    @property
    def title(self) -> str:
        """The net in an error or a report."""
        return f"net={self.library} net.model={self.model}"

    @property
    def picture(self) -> tuple[int, int]:
        """What a picture's shorter side is resized to, and the side of the middle that is shown, pixels."""
        return max(self.size, round(self.size / self.crop)), self.size

    def layers(self, x: Tensor, n_support: int | None) -> Tensor:
        if self.frozen and x.dim() == 2:
            return x  # features that were computed before
        shown = (self._resized(x) - self.mean) / self.std
        return of_both_sides(self.module, shown) if self.mirror and not self.training else self.module(shown)

    def train(self, mode: bool = True) -> Pretrained:
        """As ``nn.Module.train``, but what is frozen stays in evaluation mode."""
        super().train(mode and not self.frozen)
        for part in self._held(self.module):
            part.eval()
        return self

    def fetch(self, stored: bool) -> None:
        if self.weights != "default":
            state = read(Path(self.weights).expanduser())
        elif stored and self.downloads:
            raise UserError(
                f"the weights of {self.title} would be downloaded, which a stored configuration never does, and there is no checkpoint "
                "yet: start the run again"
            )
        else:
            state = self.default()
        native = self.recipe().module
        load(native, state, self.title, f"net.weights={self.weights}")
        self.module.load_state_dict(self._prepared(native).state_dict())

    def _resized(self, x: Tensor) -> Tensor:
        """[n, channels, height, width] to [n, 3, size, size], both in 0..1."""
        if x.shape[-2:] != (self.size, self.size):
            x = (self.rows.to(x.dtype) @ x @ self.columns.to(x.dtype).mT).clamp(0, 1)  # bicubic goes beyond
        return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x

    def _held(self, module: nn.Module) -> list[nn.Module]:
        """The parts of the module that are frozen, where not all of it is."""
        return [part for _, _, part in parts(module)[: self.freeze]] if isinstance(self.freeze, int) else []

    def _prepared(self, module: nn.Module) -> nn.Module:
        """The library's module, what is to be frozen frozen, the rest fit to be trained.

        Raises:
            UserError: it has fewer parts than are to be frozen, or a layer to be trained that goes wrong when tasks are mapped.
        """
        if self.frozen:
            as_buffers(module)
            return module
        there, held = parts(module), self._held(module)
        if isinstance(self.freeze, int) and self.freeze >= len(there):
            raise UserError(
                f"net.freeze={self.freeze} is out of range: {self.title} has {len(there)} parts; use net.freeze=all for all of it"
            )
        for part in held:
            as_buffers(part)
        if held:
            as_buffers(module, recurse=False)  # tokens and positions come before the first part
        _calm(module)
        for parent, name, part in there[len(held) :]:
            setattr(parent, name, ours := with_our_layers(part, self.batch_kind, self.title))
            foreign.refuse_layers(ours, self.title)
        return module

    def _norm(self) -> Any:
        ours = [layer.kind for layer in self.modules() if isinstance(layer, Norm)]
        if ours:
            return self.batch_kind if self.batch_kind in ours else ours[0]
        return "stored" if any(isinstance(layer, _BatchNorm) for layer in self.modules()) else "none"


def parts(module: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """The parts of a model that have weights, in the order in which it lists them, each behind what holds it and its name there.

    A container counts by its members.
    """
    found: list[tuple[nn.Module, str, nn.Module]] = []
    for name, child in module.named_children():
        if isinstance(child, (nn.Sequential, nn.ModuleList)):
            found += [(child, inside, part) for inside, part in child.named_children()]
        else:
            found.append((module, name, child))
    return [each for each in found if each[2].state_dict()]


def resizing(side: int, size: int, resample: Filter) -> Tensor:
    """The matrix [size, side] that resizes one axis, antialiased: a product of matrices, which every transform of torch can map."""
    eye = torch.eye(side)[None, None]
    return F.interpolate(eye, size=(size, side), mode=resample, align_corners=False, antialias=True)[0, 0]


def imported(library: str, *modules: str) -> Any:
    """The library of this name, which is an extra of the same name and needs torchvision, with some of its modules.

    Raises:
        MissingLibrary: it is not installed.
    """
    try:
        torchvision.prepare()
        for module in modules:
            import_module(module)
        return import_module(library)
    except ImportError:
        raise MissingLibrary(f"net={library} needs an extra: {install(library)}") from None


def _calm(module: nn.Module) -> nn.Module:
    """The module without what draws random numbers, changes tensors in place, or has no second derivative."""
    for layer in module.modules():
        still: dict[str, Any] = {"inplace": False, "fused_attn": False}
        if isinstance(layer, _DropoutNd) or type(layer).__name__ in RANDOM:
            still |= {"p": 0.0, "drop_prob": 0.0}
        for name, value in still.items():
            if isinstance(getattr(layer, name, None), (bool, float)):
                setattr(layer, name, value)
    return module


def read(path: Path) -> Mapping[str, Tensor]:
    """The weights in a file by name; nothing in it is run.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise UserError(f"net.weights={path} {'is not a file' if path.exists() else 'does not exist'}: give default, or a file of weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is not None:  # compares every checksum, which torch does not
                    raise ValueError("a checksum differs")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise MissingLibrary(f"net.weights={path} needs the package safetensors: pip install safetensors") from None
    except Exception as error:  # whatever damaged bytes make the readers raise
        text = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"net.weights={path} cannot be read as weights: {text[:120]}") from None
    return dict(_innermost(state)) if isinstance(state, dict) else {}


def _innermost(state: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors; of a training's checkpoint those of its model, without the prefixes that wrappers give all names."""
    inside = next((state[key] for key in ("state_dict", "model_ema", "model", "teacher") if isinstance(state.get(key), dict)), state)
    named = {name: value for name, value in inside.items() if isinstance(value, Tensor)}
    for prefix in ("module.", "model.", "backbone."):
        if named and all(name.startswith(prefix) for name in named):
            named = {name.removeprefix(prefix): value for name, value in named.items()}
    yield from named.items()


def load(module: nn.Module, state: Mapping[str, Tensor], title: str, source: str) -> None:
    """Put weights into a module, all that it has; ``title`` and ``source`` say in an error what it is and where they come from.

    Raises:
        UserError: some are not there, or have another shape.
    """
    own = module.state_dict()
    absent = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    other = [name for name in own if name in state and state[name].shape != own[name].shape]
    if absent or other:
        names = ", ".join((absent or other)[:SHOWN])
        what = f"lacks {len(absent)} of the {len(own)} weights" if absent else f"has {len(other)} weights of another shape than those"
        raise UserError(f"{source} {what} of {title}, such as {names}: give the file of this very model")
    module.load_state_dict({name: state[name] for name in own if name in state}, strict=False)
