"""What is asked of a net that is not metarun's own, before anything is trained: each answer missing is one line.
Layers of torch that go wrong when tasks are mapped by ``torch.vmap`` are refused by name."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from metarun.errors import UserError
from metarun.extensions.targets import said
from metarun.nets.base import Net

NORMS: tuple[type[nn.Module], ...] = (
    _BatchNorm,
    _InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else []),
)
ROWS = 2  # examples of a trial, and tasks


def refuse_layers(module: nn.Module, what: str) -> None:
    """Refuse layers of torch that give wrong numbers, or none, when tasks are mapped.

    Raises:
        UserError: an affine norm, whose second derivatives are wrong under ``torch.vmap``, an embedding with ``padding_idx``, whose first
            ones are; batch norm, which writes into its buffers;
            dropout, which draws from torch's global generator, so that chunks would change a result.
    """
    for name, layer in module.named_modules():
        kind = type(layer).__name__
        if isinstance(layer, NORMS) and (isinstance(layer, _BatchNorm) or layer._parameters.get("weight") is not None):
            raise UserError(
                f"{what} has torch's {kind} ({name or 'itself'}), whose second derivatives are wrong when weights are adapted per task: "
                "use metarun.nets.norm.Norm in its place"
            )
        if isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
            raise UserError(
                f"{what} has torch's {kind} ({name or 'itself'}) with padding_idx, whose derivatives are wrong when weights are adapted "
                "per task: use metarun.nets.native.Embedding in its place"
            )
        if isinstance(layer, _DropoutNd) and layer.p > 0:
            raise UserError(
                f"{what} has {kind} ({name or 'itself'}), which draws from torch's global generator, so that chunks would change a result: "
                "take it out, or set its p to 0"
            )


@torch.no_grad()
def features(forward: nn.Module, input_shape: tuple[int, ...], what: str, home: Path) -> int:
    """How many features ``forward`` makes of each of some examples [n, *input_shape], of which the net sees zeros here.

    Raises:
        UserError: it fails on them, its answer is not [n, features], or it changes a buffer or draws random numbers.
    """
    shown = ", ".join(map(str, ("n", *input_shape)))
    before = {name: (buffer, buffer._version) for name, buffer in forward.named_buffers()}
    with torch.random.fork_rng(devices=[]):
        drawn = torch.get_rng_state()
        try:
            answer = forward(torch.zeros(ROWS, *input_shape))
        except Exception as error:
            raise UserError(f"{what} fails on examples [{shown}]: {said(error, home)}") from error
        if not torch.equal(drawn, torch.get_rng_state()):
            raise UserError(
                f"{what} draws from torch's global generator, as dropout does, so that chunks would change a result: take it out"
            )
    for name, buffer in forward.named_buffers():
        kept, version = before.get(name, (None, 0))
        if buffer is not kept or buffer._version != version:
            raise UserError(
                f"{what} writes into its buffer {name} when it is asked, so that chunks would change a result: leave it as it is"
            )
    if not isinstance(answer, Tensor) or answer.dim() != 2 or answer.shape[0] != ROWS:
        shape = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise UserError(f"{what} answers {ROWS} examples [{shown}] with {shape}: it should return features, [n, features]")
    return int(answer.shape[1])


def check_net(net: Net, input_shape: tuple[int, ...], home: Path) -> None:
    """Refuse a user's ``Net`` that lacks something; ``home``: the folder of its file.

    Raises:
        UserError: see ``refuse_layers`` and ``features``.
        ValueError: it does not say what every net says of itself.
    """
    what = f"the net {type(net).__name__}"
    for name in ("features", "map_shape", "norm"):
        getattr(net, name)
    refuse_layers(net, what)
    found = features(net, input_shape, what, home)
    if found != net.features:
        raise UserError(f"{what} says features={net.features}, but layers() returns {found} of an example: set self.features to that")


@torch.no_grad()
def check_mapped(net: Net, input_shape: tuple[int, ...], home: Path) -> None:
    """Refuse a net that ``torch.vmap`` cannot map over tasks.

    Raises:
        UserError: it cannot, as where tensors are changed in place or their values read.
    """
    try:
        # Without a trace in torch's random numbers, and with the attention that the engine has.
        with torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH):
            torch.vmap(net)(torch.zeros(ROWS, ROWS, *input_shape))
    except Exception as error:
        raise UserError(
            f"the net cannot be mapped over tasks ({said(error, home)}): change no tensor in place and read no value of one "
            "(.item(), if), or set engine.map=loop"
        ) from error
