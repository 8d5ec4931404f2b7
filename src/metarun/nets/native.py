"""Torch's own layers made fit for tasks: affine norms, and embeddings with padding, become ours, as torch's have wrong derivatives when
weights are adapted per task under ``torch.vmap``. Those of timm and torchvision that derive from torch's are known, too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from metarun.errors import UserError
from metarun.nets.norm import Norm

BatchKind = Literal["batch", "running", "stored"]  # what becomes of a batch norm
OF_TORCH = "torch.nn."  # how the modules of torch's own classes begin
KNOWN = ("timm.", "torchvision.")  # and those of classes that derive from them and do what their names say


class LayerNorm(nn.Module):
    """``nn.LayerNorm`` in elementary operations, with the parameters of the one it replaces.

    Args:
        native: the one it replaces.
        channels_first: it normalises each place of [n, channels, height, width] over its channels.
    """

    def __init__(self, native: nn.LayerNorm, channels_first: bool = False) -> None:
        super().__init__()
        self.over, self.eps = tuple(range(-len(native.normalized_shape), 0)), native.eps
        self.channels_first = channels_first
        self.weight, self.bias = native.weight, native.bias

    def forward(self, x: Tensor) -> Tensor:
        """x [..., *normalized_shape], normalised over these last axes; or [n, channels, height, width]."""
        if self.channels_first:
            x = x.movedim(1, -1)
        centred = x - x.mean(self.over, keepdim=True)
        x = centred * torch.rsqrt((centred * centred).mean(self.over, keepdim=True) + self.eps) * self.weight
        x = x if self.bias is None else x + self.bias
        return x.movedim(-1, 1) if self.channels_first else x


class Embedding(nn.Module):
    """``nn.Embedding`` whose row ``padding_idx`` learns nothing, with the weights of the one it replaces."""

    def __init__(self, native: nn.Embedding) -> None:
        super().__init__()
        self.weight, self.padding_idx = native.weight, native.padding_idx

    def forward(self, rows: Tensor) -> Tensor:
        """[..., size] of rows [...] int64."""
        weight = self.weight
        if self.padding_idx is not None:
            padding = torch.arange(len(weight), device=weight.device) == self.padding_idx
            weight = torch.where(padding[:, None], weight.detach(), weight)
        return F.embedding(rows, weight)


class NormAct(Norm):
    """A ``Norm`` with the activation that timm builds into its own."""

    def __init__(self, act: nn.Module, channels: int, kind: BatchKind | Literal["group"], groups: int = 8, eps: float = 1e-5) -> None:
        super().__init__(channels, kind, groups, eps)
        self.act = act

    def forward(self, x: Tensor, n_support: int | None = None) -> Tensor:
        return self.act(super().forward(x, n_support))


def with_our_layers(module: nn.Module, batch: BatchKind, what: str) -> nn.Module:
    """The module with its affine norms and padded embeddings replaced, itself where it is one; their weights, and statistics that are
    kept, are taken over, and a layer that is there twice stays one.

    Args:
        batch: the kind that a batch norm becomes; the others stay what they are.
        what: the module, for an error.

    Raises:
        UserError: a norm that has no counterpart here, or a layer that is replaced and that something else holds, too.
    """
    made: dict[nn.Module, nn.Module] = {}
    ours = _replaced(module, batch, what, made)
    for part in ours.modules():
        for held in _held(vars(part)):
            if made.get(held, held) is not held:
                raise UserError(
                    f"{what} holds its {type(held).__name__} in a list or dictionary of its own, where it cannot be replaced: use "
                    "nn.ModuleList or nn.ModuleDict"
                )
    return ours


def _held(attributes: dict[str, Any]) -> Iterator[nn.Module]:
    """The modules in lists, tuples and dictionaries that are no parts of a module."""
    todo, seen = [value for name, value in attributes.items() if not name.startswith("_")], set[int]()
    while todo:
        value = todo.pop()
        if isinstance(value, nn.Module):
            yield value
        elif isinstance(value, (list, tuple, dict)) and id(value) not in seen:  # which may hold itself
            seen.add(id(value))
            todo.extend(value.values() if isinstance(value, dict) else value)


def _replaced(module: nn.Module, batch: BatchKind, what: str, made: dict[nn.Module, nn.Module]) -> nn.Module:
    """``made``: what has become of modules that were met before."""
    if module not in made:
        for name, child in module._modules.items():
            if child is not None:
                setattr(module, name, _replaced(child, batch, what, made))
        made[module] = _ours(module, batch, what)
    return made[module]


def _ours(module: nn.Module, batch: BatchKind, what: str) -> nn.Module:
    kind, act = type(module).__name__, getattr(module, "act", None)
    own = type(module).__module__.startswith(OF_TORCH)
    known = type(module).__module__.startswith(KNOWN)  # of any other, nobody knows what it does beside
    if isinstance(module, nn.SyncBatchNorm) or (isinstance(module, _BatchNorm | _InstanceNorm) and _odd(module)):
        raise UserError(f"{what} has a {kind} that has no counterpart here: make it affine, without running statistics")
    if isinstance(module, _BatchNorm) and (own or (known and kind.startswith("BatchNormAct"))):
        settings = (module.num_features, batch)
        return _taking(NormAct(act, *settings, eps=module.eps) if act else Norm(*settings, eps=module.eps), module)
    if isinstance(module, nn.GroupNorm) and module.affine and (own or (known and kind.startswith("GroupNorm"))):
        sizes = (module.num_channels, "group", module.num_groups, module.eps)
        return _taking(NormAct(act, *sizes) if act else Norm(*sizes), module)  # type: ignore[arg-type]
    if isinstance(module, _InstanceNorm) and module.affine and own:
        return _taking(Norm(module.num_features, "instance", eps=module.eps), module)
    if isinstance(module, nn.LayerNorm) and module.elementwise_affine and (own or (known and kind in ("LayerNorm", "LayerNorm2d"))):
        return LayerNorm(module, channels_first=kind == "LayerNorm2d")
    if own and isinstance(module, nn.Embedding) and module.padding_idx is not None and module.max_norm is None:
        return Embedding(module)
    return module


def _odd(norm: _BatchNorm | _InstanceNorm) -> bool:
    """A batch norm without weights, or an instance norm with running statistics."""
    return not norm.affine if isinstance(norm, _BatchNorm) else norm.track_running_stats


def _taking(norm: Norm, native: nn.Module) -> Norm:
    """``norm`` with the weights of the one it replaces, and with its statistics if it keeps some."""
    kept = {"weight": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    theirs = native.state_dict()
    norm.load_state_dict({name: theirs[kept[name]] for name in norm.state_dict() if kept.get(name) in theirs}, strict=False)
    return norm
