"""bf16 must really compute in bfloat16 under vmap, and must leave weights, gradients and losses in fp32."""

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from helpers import LEARNING_CLASSIFIERS, by_family, classification, meta_gradient

from metarun import inner
from metarun.inner import Mode, upcast
from metarun.kernels import bfloat16
from metarun.kernels.bfloat16 import BFloat16
from metarun.nets.conv import Conv
from metarun.nets.fusion import conv_norm
from metarun.nets.norm import Norm
from metarun.protocols.episodes import EVERY
from metarun.run import Run


def convolve(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, weight, padding=1)


@pytest.fixture
def tasks() -> tuple[torch.Tensor, torch.Tensor]:
    """Images and weights such that outputs have unit variance: a saturated tanh would magnify rounding."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 2, 4, 6, 6, generator=generator), torch.randn(3, 5, 4, 3, 3, generator=generator) / 6


def test_torch_autocast_still_does_nothing_under_vmap(tasks):
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        dtype = torch.vmap(convolve)(*tasks).dtype
    assert dtype == torch.float32, "torch is mended: autocast works under vmap, metarun.kernels.bfloat16 may go"


def test_convolutions_and_linear_layers_compute_in_bfloat16_under_vmap(tasks):
    x, weight = tasks
    with BFloat16():
        assert torch.vmap(convolve)(x, weight).dtype == torch.bfloat16
        assert F.linear(x, torch.eye(6)).dtype == torch.bfloat16
        assert (x @ x).dtype == torch.float32
    assert torch.vmap(convolve)(x, weight).dtype == torch.float32


@pytest.mark.parametrize("channels", [1, 8])
def test_a_nets_convolutions_compute_in_bfloat16_under_vmap(channels):
    conv, norm = Conv(channels, 4, 3, bias=False), Norm(4, "batch")
    assert conv.narrow == (channels == 1)
    images = torch.randn(2, 3, channels, 6, 6)

    def dtypes() -> set[torch.dtype]:
        return {torch.vmap(layer)(images).dtype for layer in (conv, lambda x: conv_norm(conv, norm, x, None))}

    with BFloat16():
        assert dtypes() == {torch.bfloat16}
    assert dtypes() == {torch.float32}


@pytest.mark.parametrize("mode", get_args(Mode))
def test_the_inner_loop_computes_in_bfloat16_under_vmap(mode):
    weight, seen = torch.ones(5, 6, requires_grad=True), []

    def loss(weight, x):
        y = F.linear(x, weight)
        seen.append(y.dtype)
        return upcast(y).square().mean()

    with BFloat16():
        gradients = torch.vmap(lambda x: inner.gradient(loss, weight, x, mode=mode))(torch.randn(3, 4, 6))
    assert set(seen) == {torch.bfloat16}
    assert gradients.dtype == torch.float32


@pytest.mark.parametrize("algo", by_family(LEARNING_CLASSIFIERS))
@pytest.mark.slow
def test_every_method_computes_in_bfloat16(algo):
    run = Run(classification(algo, "precision=bf16"))
    tasks = run.episodes("train").batch(range(2))
    assert torch.isfinite(meta_gradient(run.algorithm, tasks, run.engine)).all()
    assert torch.isfinite(run.engine.evaluate(run.algorithm.eval(), tasks, EVERY)["loss"]).all()


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.8])
def test_a_machine_that_is_slower_in_bfloat16_says_so_in_one_line(factor, monkeypatch, caplog):
    seconds = {torch.float32: 1.0, torch.bfloat16: factor}
    monkeypatch.setattr(bfloat16, "product_seconds", lambda dtype, device: seconds[dtype])
    Run(classification("protonet", "precision=fp32"))
    assert not caplog.messages
    Run(classification("protonet", "precision=bf16"))
    line = "a matrix product takes 1.8 times as long in bf16 as in fp32 on this machine: precision=fp32 is faster"
    assert caplog.messages == ([line] if factor > 1 else [])


def test_a_product_is_timed_in_both_types():
    assert all(0 < bfloat16.product_seconds(dtype, torch.device("cpu")) < 60 for dtype in (torch.float32, torch.bfloat16))


@pytest.mark.parametrize("order", ["first", "second"])
def test_gradients_are_fp32_and_near_those_of_fp32(tasks, order):
    x, start = tasks

    def loss(weight, x):
        return convolve(x, weight).float().tanh().square().mean()

    def adapted_loss(weight, x):
        return loss(weight - torch.func.grad(loss)(weight, x), x)

    def meta_gradient() -> torch.Tensor:
        weight = start.clone().requires_grad_()
        torch.vmap(loss if order == "first" else adapted_loss)(weight, x).sum().backward()
        return weight.grad

    exact = meta_gradient()
    with BFloat16():
        rounded = meta_gradient()
    assert rounded.dtype == torch.float32
    error = (rounded - exact).norm() / exact.norm()
    assert 1e-6 < error < 2e-2, "bfloat16 rounds at 2^-9: neither exact nor far off"
