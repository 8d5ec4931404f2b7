"""Backbones: the features they promise, what they refuse, and population statistics of running norms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import NETS, NETS_WITH_NORMS, small

from metarun.config.schema import target_of, without_meta
from metarun.nets.base import Net
from metarun.nets.norm import Norm
from metarun.run import Run

SHAPES = [(1, 16, 16), (3, 28, 28), (2, 17, 31)]


def build(net: str, shape: tuple[int, ...], **changes: Any) -> Net:
    values = small(f"net={net}")
    return target_of(values, "net")(shape, **{**without_meta(values["net"]), **changes})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("net", NETS)
def test_features_have_the_promised_length(net: str, shape: tuple[int, ...]) -> None:
    backbone = build(net, shape)
    assert backbone(torch.rand(3, *shape)).shape == (3, backbone.features)


@pytest.mark.parametrize("flatten", [True, False])
@pytest.mark.parametrize("net", [net for net in NETS if "flatten" in small(f"net={net}")["net"]])
def test_features_are_a_flat_map_or_its_mean(net: str, flatten: bool) -> None:
    backbone = build(net, (1, 48, 48), flatten=flatten)
    assert backbone(torch.rand(2, 1, 48, 48)).shape == (2, backbone.features)
    assert (backbone.features == backbone.map_shape[0]) == (not flatten)


@pytest.mark.parametrize(("flatten", "map_shape"), [(True, (24, 7, 7)), (False, (24, 1, 1))])
def test_features_unflatten_to_the_map_they_come_from(flatten: bool, map_shape: tuple[int, ...]) -> None:
    backbone, x = build("conv4", (1, 28, 28), downs=2, flatten=flatten), torch.rand(2, 1, 28, 28)
    last: list[torch.Tensor] = []
    backbone.blocks[-1].register_forward_hook(lambda *args: last.append(args[2]))
    features = backbone(x)
    assert last[0].shape == (2, 24, 7, 7)
    assert backbone.map_shape == map_shape
    expected = last[0] if flatten else last[0].mean((2, 3), keepdim=True)
    torch.testing.assert_close(features.unflatten(1, map_shape), expected)


def test_the_conv4_of_the_literature_has_its_published_size() -> None:
    published = build("conv4", (1, 28, 28), hidden=64, down="pool", flatten=True, norm="batch")
    assert published.features == 64
    convolutions = 9 * 64 + 3 * 9 * 64 * 64
    assert sum(p.numel() for p in published.parameters()) == convolutions + 4 * 2 * 64
    assert build("conv4", (3, 84, 84), hidden=64, down="pool", flatten=True, norm="batch").features == 1600


def test_striding_keeps_odd_borders_and_pooling_cuts_them() -> None:
    assert build("conv4", (1, 28, 28), down="stride", flatten=True).features == 24 * 2 * 2
    assert build("conv4", (1, 28, 28), down="pool", flatten=True).features == 24


def test_with_mirror_left_and_right_are_one_in_evaluation() -> None:
    x = torch.rand(4, 3, 16, 16)
    plain, both = build("conv4", (3, 16, 16), norm="none"), build("conv4", (3, 16, 16), norm="none", mirror=True)
    both.load_state_dict(plain.state_dict())
    torch.testing.assert_close(both(x), plain(x))
    both.eval()
    torch.testing.assert_close(both(x), (plain(x) + plain(x.flip(-1))) / 2)
    torch.testing.assert_close(both(x.flip(-1)), both(x))


def test_images_too_small_to_pool_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 16x16 pixels, these are 15x16"):
        build("conv4", (1, 15, 16), down="pool")
    assert build("conv4", (1, 15, 16), down="pool", downs=3).features == 24 * 1 * 2


@pytest.mark.parametrize("net", ["conv4", "resnet12"])
def test_nets_for_images_refuse_anything_else(net: str) -> None:
    with pytest.raises(ValueError, match=rf"net={net} needs images, these examples have shape \[1\]; use net=mlp"):
        build(net, (1,))


@pytest.mark.parametrize(("norm", "sizes"), [("instance", [24]), ("group", [8]), ("layer", [1])])
def test_a_norm_that_would_erase_its_input_is_refused(norm: str, sizes: list[int]) -> None:
    with pytest.raises(ValueError, match=f"net=mlp with norm={norm} has groups of one number"):
        build("mlp", (4,), norm=norm, sizes=sizes)


@pytest.mark.parametrize("activation", ["relu", "tanh", "elu", "gelu"])
def test_the_mlp_is_linear_layers_and_its_activation(activation: str) -> None:
    net = build("mlp", (2, 3), sizes=[4, 5], activation=activation, norm="none")
    x = torch.rand(7, 2, 3)
    apply = getattr(torch, activation, None) or getattr(torch.nn.functional, activation)
    first, second = net.linears
    torch.testing.assert_close(net(x), apply(second(apply(first(x.flatten(1))))))


@pytest.mark.parametrize(("net", "norm"), NETS_WITH_NORMS)
def test_support_statistics_are_used_when_and_only_when_asked_for(net: str, norm: str) -> None:
    backbone = build(net, (1, 16, 16), norm=norm).eval()
    x, support = torch.rand(3, 1, 16, 16), 3 * torch.rand(4, 1, 16, 16)
    assert torch.allclose(backbone(x, support), backbone(x), atol=1e-5) == (norm != "support")


def test_calibration_gives_the_exact_statistics_of_the_population() -> None:
    """Law of total variance: the mean of variances plus the variance of means, whatever the batches."""
    net = build("mlp", (6,), sizes=[5, 4], norm="running").double()
    batches = [torch.randn(8, 6, dtype=torch.float64) * (i + 1) + i for i in range(5)]
    net.train()
    net.calibrate(iter(batches))
    population = net.linears[0](torch.cat(batches))
    torch.testing.assert_close(net.norms[0].mean, population.mean(0))
    torch.testing.assert_close(net.norms[0].var, population.var(0, unbiased=False))
    assert net.training
    assert net.norms[0].tally is None


def test_calibration_leaves_other_nets_and_the_mode_alone() -> None:
    net = build("mlp", (6,), norm="batch").eval()
    net.calibrate(batch for batch in [pytest.fail] if batch())  # asks for no batch at all
    running = build("mlp", (6,), norm="running").eval()
    running.calibrate([torch.randn(8, 6)])
    assert not running.training


def test_a_calibrated_net_answers_every_query_alone_in_evaluation() -> None:
    values = small("algo=protonet", "net.norm=running")
    algorithm = Run(values).algorithm
    algorithm.net.calibrate([torch.rand(8, 2, 16, 16) for _ in range(3)])
    algorithm.eval()
    x = torch.rand(4, 2, 16, 16)
    torch.testing.assert_close(algorithm.net(x)[:1], algorithm.net(x[:1]))


@pytest.mark.parametrize(("net", "norm"), NETS_WITH_NORMS)
def test_no_native_norm_hides_in_a_net(net: str, norm: str) -> None:
    """Native affine norms give wrong meta-gradients under vmap: see tests/contract/test_native_norms.py."""
    native = (torch.nn.modules.batchnorm._NormBase, torch.nn.LayerNorm, torch.nn.GroupNorm)
    modules = list(build(net, (1, 16, 16), norm=norm).modules())
    assert not any(isinstance(module, native) for module in modules)
    assert norm == "none" or any(isinstance(module, Norm) for module in modules)
