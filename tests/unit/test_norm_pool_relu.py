"""Norm, max-pooling and ReLU as one operation: torch's operators as oracle, for values and for derivatives of every order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import random, rectified
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

from metarun.kernels.bfloat16 import BFloat16
from metarun.kernels.ops import linear_pool_relu as linear
from metarun.kernels.ops import norm_pool_relu as fused
from metarun.kernels.ops.max_pool import max_pool
from metarun.nets.conv import Conv
from metarun.nets.fusion import conv_norm
from metarun.nets.norm import Norm

EPS = 1e-5
WINDOWS = pytest.mark.parametrize("window", [1, 2])
Map = Callable[..., Any]


def operands(*lead: int, channels: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Images with sides that two does not divide, weights and biases."""
    x = random(*lead, 6, channels, 5, 7, seed=1)
    return x, 1 + 0.3 * random(channels, seed=2), 0.3 * random(channels, seed=3)


def normed(window: int, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return fused.norm_pool_relu(x, weight, bias, EPS, window)[0]


def by_torch(window: int, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same by torch's own batch norm, max-pooling and ReLU, whose derivatives outside of vmap are right."""
    y = F.batch_norm(x, None, None, weight, bias, training=True, eps=EPS)
    return F.relu(F.max_pool2d(y, 2) if window == 2 else y)


def first(f: Map, g: Tensor, *at: Tensor) -> Any:
    return vjp(f, *at)[1](g)


def second(f: Map, cotangents: Any, g: Tensor, *at: Tensor) -> Any:
    return vjp(partial(first, f), g, *at)[1](cotangents)


def like(tensors: Any) -> Any:
    return tuple(random(*t.shape, seed=10 + i) for i, t in enumerate(tensors))


@WINDOWS
def test_values_and_derivatives_up_to_the_third_are_torchs(window: int) -> None:
    ours, theirs, at = partial(normed, window), partial(by_torch, window), operands()
    torch.testing.assert_close(ours(*at), theirs(*at), rtol=0, atol=1e-12)
    g = random(*ours(*at).shape, seed=4)
    gradients = first(theirs, g, *at)
    torch.testing.assert_close(first(ours, g, *at), gradients, rtol=0, atol=1e-12)
    cotangents = like(gradients)
    seconds = second(theirs, cotangents, g, *at)
    assert all(float(t.abs().max()) > 1e-2 for t in seconds[:3])
    torch.testing.assert_close(second(ours, cotangents, g, *at), seconds, rtol=0, atol=1e-12)
    thirds = [vjp(partial(second, f), cotangents, g, *at)[1](like(seconds)) for f in (ours, partial(fused.in_torch, EPS, window))]
    torch.testing.assert_close(*thirds, rtol=0, atol=1e-12)


@WINDOWS
def test_forward_mode_agrees_with_reverse_mode(window: int) -> None:
    ours, theirs, at = partial(normed, window), partial(by_torch, window), operands()
    along = like(at)
    slope = jvp(ours, at, along)[1]
    g = random(*slope.shape, seed=4)
    backward = first(theirs, g, *at)
    torch.testing.assert_close((slope * g).sum(), sum((d * t).sum() for d, t in zip(backward, along)))
    over = jvp(partial(first, ours, g), at, along)[1]  # forward over reverse is the Hessian's product, as is reverse over reverse
    torch.testing.assert_close(over, second(theirs, along, g, *at)[1:], rtol=0, atol=1e-12)


@WINDOWS
@pytest.mark.parametrize("own", [False, True], ids=["shared weights", "own weights"])
def test_many_tasks_equal_one_after_the_other(window: int, own: bool) -> None:
    x, weight, bias = operands(4)
    if own:
        weight, bias = (t * (1 + 0.1 * random(4, 1, seed=5)) for t in (weight, bias))
    dims = (0, 0, 0) if own else (0, None, None)

    def stiffness(f: Map, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """A gradient of what a gradient makes, as an inner loop is differentiated."""
        slope = grad(lambda w: f(x, w, bias).pow(2).sum())
        return grad(lambda x, w: (f(x, w - 0.1 * slope(w), bias) ** 2).sum(), argnums=(0, 1))(x, weight)

    together = vmap(partial(stiffness, partial(normed, window)), dims)(x, weight, bias)
    apart = [stiffness(partial(by_torch, window), *(t[i] if d == 0 else t for t, d in zip((x, weight, bias), dims))) for i in range(4)]
    torch.testing.assert_close(together, tuple(torch.stack(t) for t in zip(*apart)), rtol=1e-12, atol=1e-10)


@WINDOWS
def test_a_linear_map_of_few_inputs_has_the_derivatives_of_torchs(window: int) -> None:
    seen, weight, bias = random(6, 5, 7, 4, seed=1), random(3, 4, seed=2), 0.3 * random(3, seed=3)

    def by_torch(weight: Tensor, bias: Tensor) -> Tensor:
        y = F.linear(seen, weight, bias).movedim(-1, 1)
        return F.relu(F.max_pool2d(y, 2) if window == 2 else y)

    def ours(weight: Tensor, bias: Tensor) -> Tensor:
        return linear.linear_pool_relu(seen, weight, bias, window)

    torch.testing.assert_close(ours(weight, bias), by_torch(weight, bias))
    g = random(*ours(weight, bias).shape, seed=4)
    gradients = first(by_torch, g, weight, bias)
    torch.testing.assert_close(first(ours, g, weight, bias), gradients)
    along = like(gradients)
    torch.testing.assert_close(second(ours, along, g, weight, bias), second(by_torch, along, g, weight, bias))
    torch.testing.assert_close(jvp(ours, (weight, bias), along)[1], jvp(by_torch, (weight, bias), along)[1])
    torch.testing.assert_close(jvp(partial(first, ours, g), (weight, bias), along)[1], tuple(torch.zeros_like(t) for t in along))
    shifted = torch.stack([weight, 2 * weight])
    torch.testing.assert_close(vmap(ours, (0, None))(shifted, bias), torch.stack([by_torch(w, bias) for w in shifted]))


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_moments_stay_exact_far_from_zero(offset: float) -> None:
    x = (random(40, 3, 9, 9, seed=1).float() + offset).double()  # numbers that float32 has
    _, mean, var = fused.norm_pool_relu(x.float(), torch.ones(3), torch.zeros(3), EPS, 1)
    torch.testing.assert_close(mean.double(), x.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var.double(), x.var((0, 2, 3), unbiased=False), rtol=1e-5, atol=0)


@WINDOWS
def test_what_is_no_number_stays_none(window: int) -> None:
    x, weight, bias = operands()
    x[0, 0, 0, 0] = torch.nan
    y = normed(window, x, weight, bias)
    assert y[:, 0].isnan().all()
    assert not y[:, 1:].isnan().any()
    y = linear.linear_pool_relu(
        random(2, 4, 4, 3), torch.tensor([[1.0, 1.0, torch.nan], [1.0, 1.0, 1.0]]).double(), torch.zeros(2).double(), window
    )
    assert y[:, 0].isnan().all()
    assert not y[:, 1].isnan().any()


@WINDOWS
@pytest.mark.slow
def test_bfloat16_is_computed_with_in_float32_and_rounded_to_the_nearest(window: int) -> None:
    x, weight, bias = (t.float() for t in operands())
    narrow = x.bfloat16()
    g = random(*normed(window, x, weight, bias).shape, seed=4).bfloat16()
    cotangents = (random(*x.shape, seed=5).bfloat16(), *like((weight, bias)))
    cotangents = tuple(t if t.dtype == torch.bfloat16 else t.float() for t in cotangents)
    ours = second(partial(normed, window), cotangents, g, narrow, weight, bias)[:3]
    wide = second(partial(normed, window), tuple(t.float() for t in cotangents), g.float(), narrow.float(), weight, bias)[:3]
    assert [t.dtype for t in ours] == [torch.bfloat16, torch.bfloat16, torch.float32]
    torch.testing.assert_close(ours, tuple(w.to(o.dtype) for o, w in zip(ours, wide)), rtol=0, atol=0)
    assert torch.equal(normed(window, narrow, weight, bias), normed(window, narrow.float(), weight, bias).bfloat16())


@pytest.mark.parametrize("kind", ["batch", "support", "running", "group", "none"])
@pytest.mark.parametrize("channels", [1, 4], ids=["few inputs", "many inputs"])
@pytest.mark.parametrize("pool", [False, True], ids=["strides", "pooling"])
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_a_block_is_what_its_parts_are(kind: Any, channels: int, pool: bool, training: bool) -> None:
    torch.manual_seed(0)
    norm, conv = Norm(8, kind).double().train(training), Conv(channels, 8, 3, bias=False).double()
    x = random(6, channels, 8, 8, seed=1)
    parts = F.relu(max_pool(conv_norm(conv, norm, x, 4)) if pool else conv_norm(conv, norm, x, 4))
    weights = [*norm.parameters(), *conv.parameters()]
    whole = rectified(norm, conv, x, 4, pool)
    torch.testing.assert_close(whole, parts)
    g = random(*parts.shape, seed=2)
    torch.testing.assert_close(*[torch.autograd.grad(y, weights, g) for y in (whole, parts)])


def test_images_may_want_a_gradient_and_a_norm_a_hook() -> None:
    norm, conv = Norm(8, "batch").double(), Conv(1, 8, 3, bias=False).double()
    x = random(6, 1, 8, 8, seed=1).requires_grad_()
    g = random(6, 8, 8, 8, seed=2)
    torch.testing.assert_close(
        torch.autograd.grad(rectified(norm, conv, x, None, False), x, g), torch.autograd.grad(F.relu(conv_norm(conv, norm, x, None)), x, g)
    )
    seen: list[Tensor] = []
    norm.register_forward_hook(lambda _m, _i, out: seen.append(out))
    rectified(norm, conv, x, None, False)
    assert float(seen[0].detach().min()) < 0  # the norm alone, before its ReLU
    norm = Norm(8, "batch").double()
    norm.register_forward_pre_hook(lambda *_: seen.append(x))
    rectified(norm, conv, x, None, False)
    assert len(seen) == 2


@pytest.mark.parametrize("kind", ["batch", "running"])
def test_forward_mode_by_images_is_refused_by_a_first_layer(kind: Any) -> None:
    norm, conv, x = Norm(8, kind).eval(), Conv(1, 8, 3, bias=False), torch.rand(6, 1, 8, 8)
    with pytest.raises(NotImplementedError, match="reverse mode"):
        torch.func.jvp(lambda x: rectified(norm, conv, x, None, True), (x,), (x,))


@pytest.mark.parametrize("kind", ["batch", "support", "running", "group", "none"])
@pytest.mark.parametrize("channels", [1, 4], ids=["few inputs", "many inputs"])
def test_of_no_images_comes_nothing(kind: Any, channels: int) -> None:
    norm, conv = Norm(8, kind), Conv(channels, 8, 3, bias=False)
    assert rectified(norm, conv, torch.rand(0, channels, 8, 8), 0, True).shape == (0, 8, 4, 4)


def test_bfloat16_reaches_the_first_block() -> None:
    norm, conv = Norm(8, "batch"), Conv(1, 8, 3, bias=False)
    with BFloat16():
        assert rectified(norm, conv, torch.rand(6, 1, 8, 8), None, True).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 128, 1500])
def test_the_covariance_of_rows_is_that_in_float64(n: int, dtype: torch.dtype) -> None:
    rows = (random(3, n, 9) + 0.5).to(dtype)
    means, covariances = vmap(linear.Covariance.apply)(rows)
    for these, mean, covariance in zip(rows.double(), means, covariances):
        torch.testing.assert_close(mean, these.mean(0), rtol=0, atol=1e-14)
        torch.testing.assert_close(covariance, these.mT.cov(correction=0).reshape(9, 9), rtol=0, atol=1e-14)
