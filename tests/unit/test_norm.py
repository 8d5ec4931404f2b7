"""Each kind of normalisation against torch's own, with first and second derivatives, and whose statistics it uses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import random, rectified
from torch import Tensor

from metarun.kernels.bfloat16 import BFloat16
from metarun.nets.conv import Conv
from metarun.nets.fusion import conv_norm
from metarun.nets.norm import Norm, NormKind

F64 = torch.float64
CHANNELS = 16


def norm(kind: NormKind) -> Norm:
    """A norm with scale and shift of its own."""
    layer = Norm(CHANNELS, kind).double()
    with torch.no_grad():
        layer.weight.add_(0.3 * random(CHANNELS, seed=1))
        layer.bias.add_(0.3 * random(CHANNELS, seed=2))
    return layer


def scaled(x: Tensor, layer: Norm) -> Tensor:
    shape = (1, -1, *[1] * (x.dim() - 2))
    return x * layer.weight.view(shape) + layer.bias.view(shape)


REFERENCES: dict[NormKind, Callable[[Tensor, Norm], Tensor]] = {
    "batch": lambda x, layer: F.batch_norm(x, None, None, layer.weight, layer.bias, training=True),
    "support": lambda x, layer: F.batch_norm(x, None, None, layer.weight, layer.bias, training=True),
    "running": lambda x, layer: F.batch_norm(x, None, None, layer.weight, layer.bias, training=True),
    "group": lambda x, layer: F.group_norm(x, 8, layer.weight, layer.bias),
    "instance": lambda x, layer: F.instance_norm(x, None, None, layer.weight, layer.bias),
    "layer": lambda x, layer: scaled(F.layer_norm(x, x.shape[1:]), layer),
    "none": scaled,
}


@pytest.mark.parametrize("shape", [(5, CHANNELS, 3, 4), (5, CHANNELS)])
@pytest.mark.parametrize("kind", REFERENCES)
def test_values_and_two_derivatives_equal_torch(kind: NormKind, shape: tuple[int, ...]) -> None:
    if kind == "instance" and len(shape) == 2:
        return  # an instance without space has no statistics
    layer, x, towards, again = norm(kind), random(*shape, seed=3), random(*shape, seed=4), random(*shape, seed=5)

    def derivatives(function: Callable[[Tensor, Norm], Tensor]) -> list[Tensor]:
        at = x.clone().requires_grad_()
        inputs = [at, layer.weight, layer.bias]
        value = function(at, layer)
        first = torch.autograd.grad((value * towards).sum(), inputs, create_graph=True)
        second = torch.autograd.grad((first[0] * again).sum() + first[1].sin().sum(), inputs[:2], allow_unused=True)
        return [value, *first, *(torch.zeros(()) if grad is None else grad for grad in second)]

    for actual, expected in zip(derivatives(lambda at, layer: layer(at)), derivatives(REFERENCES[kind])):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9, check_dtype=False)


def test_support_statistics_come_from_the_support_alone() -> None:
    layer, support, queries = norm("support"), random(4, CHANNELS, 3, 3), random(6, CHANNELS, 3, 3, seed=1) * 5
    mean, var = support.mean((0, 2, 3)), support.var((0, 2, 3), unbiased=False)
    expected = F.batch_norm(torch.cat([support, queries]), mean, var, layer.weight, layer.bias, training=False)
    torch.testing.assert_close(layer(torch.cat([support, queries]), 4), expected)


def test_running_switches_from_batch_to_population_statistics() -> None:
    layer, x = norm("running"), random(6, CHANNELS)
    layer.mean.copy_(random(CHANNELS, seed=1))
    layer.var.copy_(random(CHANNELS, seed=2).exp())
    torch.testing.assert_close(layer(x), F.batch_norm(x, None, None, layer.weight, layer.bias, training=True))
    layer.eval()
    torch.testing.assert_close(layer(x), F.batch_norm(x, layer.mean, layer.var, layer.weight, layer.bias, training=False))


def test_only_running_keeps_statistics() -> None:
    assert set(norm("running").state_dict()) == {"weight", "bias", "mean", "var"}
    for kind in set(REFERENCES) - {"running"}:
        assert set(norm(kind).state_dict()) == {"weight", "bias"}


def test_half_precision_is_normalised_in_full_precision() -> None:
    x = (1000 + random(64, CHANNELS)).to(torch.bfloat16)
    layer = Norm(CHANNELS, "batch")
    assert layer(x).dtype == torch.bfloat16
    torch.testing.assert_close(layer(x), layer(x.float()).to(torch.bfloat16))


def test_channels_that_do_not_fall_into_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="12 channels do not fall into 8 groups"):
        Norm(12, "group")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["batch", "support", "running", "layer", "none"])
def test_a_norm_of_a_narrow_convolution_is_the_norm_of_its_output(kind: NormKind, training: bool) -> None:
    conv, layer = Conv(2, CHANNELS, 3, stride=2, bias=False).double(), norm(kind).train(training)
    if kind == "running":
        layer.mean.copy_(random(CHANNELS, seed=6))
        layer.var.copy_(random(CHANNELS, seed=7).square())
    x, towards = random(5, 2, 7, 6, seed=3), random(5, CHANNELS, 4, 3, seed=4)
    weights = [conv.weight, layer.weight, layer.bias]

    def derivatives(value: Tensor) -> list[Tensor]:
        first = torch.autograd.grad((value * towards).sum(), weights, create_graph=True)
        return [
            value,
            *first,
            *torch.autograd.grad(sum(grad.sin().sum() for grad in first), weights, allow_unused=True, materialize_grads=True),
        ]

    assert conv.narrow
    for ours, separate in zip(derivatives(conv_norm(conv, layer, x, 3)), derivatives(layer(conv(x), 3)), strict=True):
        torch.testing.assert_close(ours, separate)


@pytest.mark.parametrize("pool", [True, False])
def test_gradients_reach_the_input_of_a_narrow_convolution_through_vmap(pool: bool) -> None:
    conv, layer = Conv(2, 4, 3, bias=False).double(), Norm(4, "batch").double()
    x = random(3, 5, 2, 6, 6, seed=1).requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return rectified(layer, conv, x, None, pool).square().sum()

    together, apart = (torch.autograd.grad(values.sum(), x)[0] for values in (torch.vmap(loss)(x), torch.stack([*map(loss, x)])))
    torch.testing.assert_close(together, apart)


def test_the_variance_behind_a_filter_of_differences_keeps_its_digits() -> None:
    conv, layer = Conv(1, 1, 3, bias=False), Norm(1, "batch", eps=0.0)
    smooth = (random(8, 1, 1, 1, seed=1) + torch.linspace(0, 1, 64).outer(torch.linspace(0, 1, 64))).float()
    conv.weight.data = torch.tensor([[[[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]]])
    folded = conv_norm(conv, layer, smooth[..., 1:-1, 1:-1], None)
    exact = Norm(1, "batch", eps=0.0).double()(conv.double()(smooth[..., 1:-1, 1:-1].double()))
    torch.testing.assert_close(folded.double(), exact, atol=3e-5, rtol=0)


def test_bfloat16_sees_low_contrast_behind_a_narrow_convolution() -> None:
    """Rounded to bfloat16 as it is, a difference of 0.01 between pixels of 0.9 would be wrong by a tenth."""
    conv, layer = Conv(1, CHANNELS, 3, bias=False), Norm(CHANNELS, "batch").requires_grad_(False)
    conv.requires_grad_(False)
    x = (0.9 + 0.01 * random(8, 1, 20, 20)).float()
    exact = conv_norm(conv, layer, x, None)
    with BFloat16():
        rounded = conv_norm(conv, layer, x, None)
    assert rounded.dtype == torch.bfloat16
    # Without the border, where the padding is a contrast of 0.9.
    exact, error = (image[..., 1:-1, 1:-1] - image[..., 1:-1, 1:-1].mean((0, 2, 3), keepdim=True) for image in (exact, rounded - exact))
    assert error.norm() < 0.03 * exact.norm()
