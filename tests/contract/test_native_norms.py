"""Why the nets bring a normalisation of their own: torch's affine batch norm gives wrong second derivatives under vmap of torch.func.grad.
When torch is mended the first test fails, and says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import relative_error
from torch import Tensor
from torch.func import functional_call

from metarun.inner import gradient
from metarun.nets.norm import Norm

CHANNELS, TASKS, STEP = 3, 2, 0.3
Normalise = Callable[[Tensor, Tensor, Tensor], Tensor]


def native(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, weight, bias, training=True)


def own(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional_call(NORM, {"weight": weight, "bias": bias}, (x,))


NORM = Norm(CHANNELS, "batch")


def example() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    support, query = torch.randn(2, TASKS, 4, CHANNELS, 3, 3, generator=generator, dtype=torch.float64)
    weight = 1 + 0.3 * torch.randn(CHANNELS, generator=generator, dtype=torch.float64)
    bias = 0.3 * torch.randn(CHANNELS, generator=generator, dtype=torch.float64)
    mix = torch.randn(CHANNELS, CHANNELS, 1, 1, generator=generator, dtype=torch.float64)
    return support, query, torch.stack([weight, bias]), mix


def torchs(loss: Callable[..., Tensor], affine: Tensor, support: Tensor) -> Tensor:
    return torch.func.grad(loss)(affine, support)


def meta_loss(affine: Tensor, normalise: Normalise, mapped: Callable[..., Tensor], slope: Callable[..., Tensor] = gradient) -> Tensor:
    """Mean query loss of one norm between two convolutions, after one inner step on its scale and shift."""
    support, query, _, mix = example()

    def loss(affine: Tensor, x: Tensor) -> Tensor:
        hidden = torch.tanh(normalise(F.conv2d(x, mix), affine[0], affine[1]))
        return torch.tanh(normalise(F.conv2d(hidden, mix), affine[1], affine[0])).pow(3).mean()

    def task(support: Tensor, query: Tensor) -> Tensor:
        return loss(affine - STEP * slope(loss, affine, support), query)

    return mapped(task)(support, query).mean()


def loop(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *stacked: torch.stack([function(*one) for one in zip(*stacked)])


def meta_gradient(normalise: Normalise, mapped: Callable[..., Tensor], slope: Callable[..., Tensor] = gradient) -> Tensor:
    affine = example()[2].requires_grad_()
    return torch.autograd.grad(meta_loss(affine, normalise, mapped, slope), affine)[0]


def finite_differences(normalise: Normalise) -> Tensor:
    affine, step = example()[2], 1e-5
    result = torch.zeros_like(affine)
    for i in range(affine.numel()):
        nudge = torch.zeros(affine.numel(), dtype=affine.dtype).index_fill(0, torch.tensor([i]), step).view_as(affine)
        up, down = (meta_loss(affine + sign * nudge, normalise, loop) for sign in (1, -1))
        result.view(-1)[i] = (up - down) / (2 * step)
    return result


def test_native_batch_norm_is_still_wrong_under_vmap() -> None:
    assert relative_error(meta_gradient(native, loop), finite_differences(native)) < 1e-7  # the loop over tasks is right
    error = relative_error(meta_gradient(native, torch.vmap, torchs), meta_gradient(native, loop, torchs))
    assert error > 1e-3, "torch is mended: native norms may be used"


@pytest.mark.parametrize("mapped", [loop, torch.vmap])
def test_our_norm_is_right(mapped: Callable[..., Tensor]) -> None:
    assert relative_error(meta_gradient(own, mapped), finite_differences(own)) < 1e-7
    assert relative_error(meta_gradient(own, mapped), meta_gradient(native, loop)) < 1e-9
