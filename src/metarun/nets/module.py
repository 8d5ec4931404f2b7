"""An ordinary ``nn.Module`` of the user as a backbone: ``net=module net.module=mynets.Tiny``.
Its norms become ours, as torch's have wrong second derivatives when weights are adapted per task; its features are counted by a trial."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from metarun.errors import UserError
from metarun.extensions import targets
from metarun.nets import foreign
from metarun.nets.base import Net
from metarun.nets.norm import Norm


class LayerNorm(nn.Module):
    """``nn.LayerNorm`` in elementary operations, with the parameters of the one it replaces."""

    def __init__(self, native: nn.LayerNorm) -> None:
        super().__init__()
        self.over, self.eps = tuple(range(-len(native.normalized_shape), 0)), native.eps
        self.weight, self.bias = native.weight, native.bias

    def forward(self, x: Tensor) -> Tensor:
        """x [..., *normalized_shape], normalised over these last axes."""
        centred = x - x.mean(self.over, keepdim=True)
        x = centred * torch.rsqrt((centred * centred).mean(self.over, keepdim=True) + self.eps) * self.weight
        return x if self.bias is None else x + self.bias


class Module(Net):
    """A net made of any module that maps examples [n, *input_shape] to features [n, features].

    Affine batch, group, instance and layer norms of torch become ``Norm`` of the same kind (or an elementary ``LayerNorm``), with their
    weights; a batch norm's kind is ``norm``. Other affine norms, and dropout, are refused.

    Args:
        input_shape: one example's shape, without the batch axis.
        module: the class, as PACKAGE.MODULE.CLASS, in a folder of ``--with`` or an installed package (see ``extensions``).
        arguments: keyword arguments of its constructor; None: none.
        features: length of a feature vector; ``auto``: as a trial shows.
        norm: whose statistics a batch norm uses, ``batch`` (transductive) or ``running``; ``none`` where there is no batch norm.

    Raises:
        UserError: no such class, or one that cannot be built, run or mapped over tasks.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        *,
        module: str | None,
        arguments: dict[str, Any] | None,
        features: Annotated[int, Ge(1)] | Literal["auto"],
        norm: Literal["batch", "running"],
    ) -> None:
        super().__init__()
        if module is None:
            raise UserError("net=module needs net.module=PACKAGE.MODULE.CLASS, a torch.nn.Module in a folder named by --with FOLDER")
        what, target = f"net.module={module}", targets.load("net.module", module, nn.Module, "")
        with targets.told(f"{what} cannot be built with net.arguments={arguments or {}}", target):
            self.module = _with_our_norms(target(**arguments or {}), norm, what)
        foreign.refuse_layers(self.module, what)
        kinds = [layer.kind for layer in self.modules() if isinstance(layer, Norm)]
        self.norm = norm if norm in kinds else kinds[0] if kinds else "none"
        found = foreign.features(self.module, input_shape, what, Path(inspect.getfile(target)).parent)
        if features not in ("auto", found):
            raise UserError(f"net.features={features} is not what {what} returns: it makes {found} of an example; choose net.features=auto")
        self.features, self.map_shape = found, (found, 1, 1)

    def layers(self, x: Tensor, n_support: int | None) -> Tensor:
        return self.module(x)


def _with_our_norms(module: nn.Module, batch: Literal["batch", "running"], what: str) -> nn.Module:
    """The module with its affine norms replaced, itself where it is one.

    Raises:
        UserError: a norm that has no counterpart here.
    """
    for name, child in module.named_children():
        setattr(module, name, _with_our_norms(child, batch, what))
    if isinstance(module, nn.SyncBatchNorm) or (isinstance(module, _BatchNorm | _InstanceNorm) and _odd(module)):
        raise UserError(f"{what} has a {type(module).__name__} that has no counterpart here: make it affine, without running statistics")
    if isinstance(module, _BatchNorm):
        return _taking(Norm(module.num_features, batch, eps=module.eps), module)
    if isinstance(module, nn.GroupNorm) and module.affine:
        return _taking(Norm(module.num_channels, "group", module.num_groups, module.eps), module)
    if isinstance(module, _InstanceNorm) and module.affine:
        return _taking(Norm(module.num_features, "instance", eps=module.eps), module)
    if isinstance(module, nn.LayerNorm) and module.elementwise_affine:
        return LayerNorm(module)
    return module


def _odd(norm: _BatchNorm | _InstanceNorm) -> bool:
    """A batch norm without weights, or an instance norm with running statistics."""
    return not norm.affine if isinstance(norm, _BatchNorm) else norm.track_running_stats


def _taking(norm: Norm, native: nn.Module) -> Norm:
    """``norm`` with the weights of the one it replaces."""
    norm.load_state_dict({name: native.get_parameter(name) for name in ("weight", "bias")}, strict=False)
    return norm
