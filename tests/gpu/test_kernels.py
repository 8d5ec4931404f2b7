"""On a GPU a block's operations are Triton kernels: outcomes, first, second and forward-mode derivatives are those of a CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers import random, rectified
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.kernels import select
from metarun.kernels.form import Form
from metarun.kernels.ops import conv
from metarun.kernels.ops import linear_pool_relu as linear
from metarun.kernels.ops import norm_pool_relu as fused
from metarun.nets.conv import Conv
from metarun.nets.norm import Norm

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
GPU = "cuda"
EPS = 1e-5
WINDOWS = pytest.mark.parametrize("window", [1, 2])
# Sums that are made at once, in parts, in parts of parts.
SIZES = pytest.mark.parametrize(
    ("tasks", "n", "side", "channels"), [(3, 5, (7, 5), 3), (4, 5, (14, 13), 64), (2, 100, (15, 14), 70), (1, 150, (28, 28), 64)], ids=str
)
Map = Callable[..., Any]


@pytest.fixture(autouse=True)
def by_triton() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    assert select.loops(torch.device(GPU, 0)) is not None


def normed(window: int, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return fused.norm_pool_relu(x, weight, bias, EPS, window)[0]


def lifted(window: int, patches: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return linear.linear_pool_relu(patches, weight, bias, window)


def outcomes(function: Map, fixed: tuple[Tensor, ...], at: tuple[Tensor, ...], g: Tensor, tangents: tuple[Tensor, ...]) -> list[Tensor]:
    """Values, gradients, gradients of those, and both forward-mode derivatives, of tasks on the first axis."""

    def each(g: Tensor, *all_of: Tensor) -> Any:
        constants, at, along = all_of[: len(fixed)], all_of[len(fixed) : len(fixed) + len(tangents)], all_of[len(fixed) + len(tangents) :]
        of = partial(function, *constants)

        def first(g: Tensor, *at: Tensor) -> Any:
            return torch.func.vjp(of, *at)[1](g)

        values, forwards = torch.func.jvp(of, at, along)
        gradients, over = torch.func.jvp(partial(first, g), at, along)
        seconds = torch.func.vjp(first, g, *at)[1](along)
        return values, forwards, *gradients, *over, *(t for t in seconds if t is not None)

    return list(torch.vmap(each)(g, *fixed, *at, *tangents))


def compare(function: Map, fixed: tuple[Tensor, ...], at: tuple[Tensor, ...], dtype: torch.dtype, tolerance: float) -> None:
    sample = torch.vmap(function)(*fixed, *at)
    g, tangents = random(*sample.shape, seed=8), tuple(0.3 * random(*t.shape, seed=20 + i) for i, t in enumerate(at))
    everything = (fixed, at, g, tangents)
    expected = outcomes(function, *everything)
    there = tree_map(lambda t: t.to(GPU, dtype), everything)
    for one, other in zip(outcomes(function, *there), expected):
        assert one.device.type == GPU
        error = float((one.cpu().double() - other).norm() / other.norm().clamp_min(1e-30))
        assert error < tolerance or float(one.abs().max()) == float(other.abs().max()) == 0


@WINDOWS
@SIZES
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-2)], ids=str)
def test_norms(window: int, tasks: int, n: int, side: tuple[int, int], channels: int, dtype: torch.dtype, tolerance: float) -> None:
    # Numbers that float32 has, so that the same places are the largest.
    x = random(tasks, n, channels, *side, seed=1).float().double()
    weight, bias = 1 + 0.3 * random(tasks, channels, seed=2), 0.3 * random(tasks, channels, seed=3)
    compare(partial(normed, window), (), (x, weight, bias), dtype, tolerance)


@WINDOWS
@pytest.mark.parametrize("inputs", [9, 27])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-2)], ids=str)
def test_first_layers(window: int, inputs: int, dtype: torch.dtype, tolerance: float) -> None:
    patches, weight, bias = random(3, 40, 15, 14, inputs, seed=1), random(3, 64, inputs, seed=2), random(3, 64, seed=3)
    compare(partial(lifted, window), (patches,), (weight, bias), dtype, tolerance)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (1, 2, 0), (3, 1, 0)])
@pytest.mark.parametrize("channels", [3, 64])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)], ids=str)
def test_im2col_and_col2im(kernel: int, stride: int, padding: int, channels: int, dtype: torch.dtype, tolerance: float) -> None:
    form = Form(kernel, stride, padding, (14, 11))
    x, patches = random(2, 9, channels, 14, 11, seed=1).to(dtype), random(2, 9, *form.places, kernel**2 * channels, seed=2).to(dtype)
    assert torch.equal(conv.im2col(x.to(GPU), form).cpu(), conv.im2col(x, form))
    found, expected = conv.col2im(patches.to(GPU), form), conv.col2im(patches, form)
    torch.testing.assert_close(found.cpu(), expected, rtol=tolerance, atol=4 * tolerance)


@WINDOWS
def test_bfloat16_is_computed_with_in_float32(window: int) -> None:
    x, weight, bias = random(6, 64, 15, 14, seed=1).to(GPU, torch.bfloat16), torch.ones(64, device=GPU), torch.zeros(64, device=GPU)
    narrow = normed(window, x, weight, bias)
    torch.testing.assert_close(narrow, normed(window, x.float(), weight, bias).bfloat16(), rtol=1e-2, atol=1e-3)


def test_equal_calls_give_equal_numbers() -> None:
    x, weight = (
        random(2, 300, 64, 14, 14, seed=1).to(GPU, torch.float32).requires_grad_(),
        torch.ones(2, 64, device=GPU, requires_grad=True),
    )

    def gradients() -> tuple[Tensor, ...]:
        y = torch.vmap(partial(normed, 2))(x, weight, torch.zeros_like(weight))
        return torch.autograd.grad(y.pow(2).sum(), (x, weight))

    assert all(torch.equal(one, other) for one, other in zip(gradients(), gradients()))


@pytest.mark.parametrize("kind", ["batch", "support"])
def test_moments_of_a_first_layer_are_those_of_a_cpu(kind: Any) -> None:
    torch.manual_seed(0)
    norm, layer, x = Norm(8, kind).double(), Conv(1, 8, 3).double(), random(6, 1, 9, 8, seed=1)
    expected = rectified(norm, layer, x, 4, True)
    torch.testing.assert_close(rectified(norm.to(GPU), layer.to(GPU), x.to(GPU), 4, True).cpu(), expected, rtol=0, atol=1e-12)
