"""The kernels of a GPU against those of a CPU, in Triton's interpreter: TRITON_INTERPRET=1 python -m pytest tests/unit/test_gpu_kernels.py
It cannot tell whether a GPU's compiler takes them; tests/gpu does."""

from __future__ import annotations

import os
from itertools import product
from typing import Any

import pytest
import torch
from helpers import random
from torch import Tensor

from metarun.kernels import select
from metarun.kernels.form import Form
from metarun.kernels.ops import conv
from metarun.kernels.ops import linear_pool_relu as linear
from metarun.kernels.ops import norm_pool_relu as fused

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("only where TRITON_INTERPRET=1 tells Triton to do without a GPU", allow_module_level=True)
pytest.importorskip("triton", reason="Triton is not installed")
from metarun.kernels import triton_launch as gpu

pytestmark = pytest.mark.filterwarnings(
    "ignore:Conversion of an array:DeprecationWarning"
)  # Triton's interpreter itself, from NumPy 2.4 on an error
EPS = 1e-5
CPU = select.loops(torch.device("cpu"))
WINDOWS = pytest.mark.parametrize("window", [1, 2])
# Places and tasks as many as it takes to come to every way of summing: at once, in parts, in parts of parts.
SIZES = pytest.mark.parametrize(
    ("tasks", "n", "side", "channels"), [(2, 3, (5, 7), 3), (1, 2, (4, 4), 20), (2, 7, (13, 11), 3), (1, 2, (13, 11), 70)], ids=str
)
TYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)], ids=str
)


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter takes its time, so small tensors are shared out as large ones would be."""
    monkeypatch.setattr(gpu, "PROGRAMS", 40)
    monkeypatch.setattr(gpu, "FEW", 1)
    monkeypatch.setattr(gpu, "MANY", 4)


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """To this tolerance of the largest number."""
    for one, other in zip(found, expected):
        if one.dtype == torch.uint8:
            assert torch.equal(one, other)
        else:
            torch.testing.assert_close(one.double(), other, rtol=tolerance, atol=tolerance * max(1.0, float(other.abs().max())))


def on_both(name: str, of: str, shape: tuple[int, ...], inputs: list[Any], outputs: list[Tensor], tolerance: float) -> list[Tensor]:
    """Outputs of a kernel of a GPU, compared with those that Numba finds in float64 from the same numbers."""
    found, expected = [t.clone() for t in outputs], [t.double().clone() if t.is_floating_point() else t.clone() for t in outputs]
    getattr(getattr(gpu.GPU, of)(*shape), name)(*inputs, *found)
    exact = [t.double() if isinstance(t, Tensor) and t.is_floating_point() else t for t in inputs]
    arrays = [t.numpy() if isinstance(t, Tensor) else t for t in [*exact, *expected]]
    getattr(getattr(CPU, of)(*shape), name)(*arrays)
    close(found, expected, tolerance)
    return expected


@WINDOWS
@SIZES
@TYPES
def test_norms(window: int, tasks: int, n: int, side: tuple[int, int], channels: int, dtype: torch.dtype, tolerance: float) -> None:
    x, v = (random(tasks, n, *side, channels, seed=i).to(dtype) for i in (1, 2))
    weight, bias, a, b = (shift + 0.3 * random(tasks, channels, seed=3 + i).to(wide(dtype)) for i, shift in enumerate((1, 0, 0, 0)))
    g = random(tasks, n, side[0] // window, side[1] // window, channels, seed=7).to(dtype)
    small, places = [torch.full_like(weight, torch.nan) for _ in range(3)], torch.zeros_like(g, dtype=torch.uint8)
    shape = (channels, window)
    _, argmax, mean, var = on_both(
        "forward", "norm_pool_relu", shape, [x, weight, bias, EPS], [torch.full_like(g, torch.nan), places, *small[:2]], tolerance
    )
    mean, var = mean.to(weight.dtype), var.to(weight.dtype)
    nothing, none = torch.full_like(x, torch.nan), torch.full_like(g, torch.nan)
    on_both("backward", "norm_pool_relu", shape, [g, x, weight, argmax, mean, var, EPS], [nothing, *small[:2]], tolerance)
    on_both(
        "double_backward", "norm_pool_relu", shape, [v, a, b, g, x, weight, argmax, mean, var, EPS], [none, nothing, small[0]], tolerance
    )


@WINDOWS
@pytest.mark.parametrize(("tasks", "n", "side", "channels", "inputs"), [(2, 3, (5, 7), 3, 9), (1, 1, (14, 15), 20, 27)], ids=str)
@TYPES
def test_first_layers(
    window: int, tasks: int, n: int, side: tuple[int, int], channels: int, inputs: int, dtype: torch.dtype, tolerance: float
) -> None:
    patches = random(tasks, n, *side, inputs, seed=1).to(dtype)
    weight, bias = random(tasks, inputs, channels, seed=2).to(wide(dtype)), random(tasks, channels, seed=3).to(wide(dtype))
    g = random(tasks, n, side[0] // window, side[1] // window, channels, seed=4).to(dtype)
    none, shape = torch.full_like(g, torch.nan), (inputs, channels, window)
    _, argmax = on_both(
        "forward", "linear_pool_relu", shape, [patches, weight, bias], [none, torch.zeros_like(g, dtype=torch.uint8)], tolerance
    )
    on_both("at_argmax", "linear_pool_relu", shape, [patches, weight, bias, argmax], [none], tolerance)
    on_both(
        "backward",
        "linear_pool_relu",
        shape,
        [patches, g, argmax],
        [torch.full_like(weight, torch.nan), torch.full_like(bias, torch.nan)],
        tolerance,
    )


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "channels"), [(3, 1, 1, 3), (3, 2, 1, 70), (1, 2, 0, 4), (2, 3, 0, 4), (3, 1, 0, 4)]
)
@TYPES
def test_im2col_and_col2im(kernel: int, stride: int, padding: int, channels: int, dtype: torch.dtype, tolerance: float) -> None:
    side = 9, 6
    x = random(5, *side, channels, seed=1).to(dtype)
    places = Form(kernel, stride, padding, side).places
    patches = random(5, *places, kernel**2 * channels, seed=2).to(dtype)
    shape, how = (channels, kernel), [stride, padding]
    on_both("im2col", "im2col", shape, [x, *how], [torch.full_like(patches, torch.nan)], 0)
    on_both("col2im", "im2col", shape, [patches, *how, torch.zeros(channels).double()], [torch.full_like(x, torch.nan)], tolerance)


def test_moments_far_from_zero() -> None:
    x = (random(2, 40, 3, 9, 2, seed=1) + 1e3).float()
    ones, mean, var = torch.ones(2, 2), torch.empty(2, 2), torch.empty(2, 2)
    y = torch.empty_like(x)
    gpu.GPU.norm_pool_relu(2, 1).forward(x, ones, ones, EPS, y, torch.empty_like(y, dtype=torch.uint8), mean, var)
    torch.testing.assert_close(mean.double(), x.double().mean((1, 2, 3)), rtol=1e-7, atol=0)
    torch.testing.assert_close(var.double(), x.double().var((1, 2, 3), unbiased=False), rtol=1e-6, atol=0)


@WINDOWS
def test_what_is_no_number_stays_none(window: int) -> None:
    x = random(1, 6, 5, 7, 3, seed=1)
    x[0, 2, 1, 1, 0] = torch.nan
    weight, mean, var = torch.ones(1, 3).double(), torch.empty(1, 3).double(), torch.empty(1, 3).double()
    y = torch.empty(1, 6, 5 // window, 7 // window, 3).double()
    gpu.GPU.norm_pool_relu(3, window).forward(x, weight, weight, EPS, y, torch.empty_like(y, dtype=torch.uint8), mean, var)
    assert y[..., 0].isnan().all()
    assert not y[..., 1:].isnan().any()


@WINDOWS
def test_derivatives_of_every_order_go_by_these_kernels(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = random(2, 6, 3, 5, 7, seed=1), 1 + 0.3 * random(2, 3, seed=2), random(2, 3, seed=3)
    patches, lifting = random(2, 6, 5, 7, 4, seed=4), random(2, 3, 4, seed=5)

    def normed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return fused.norm_pool_relu(x, weight, bias, EPS, window)[0]

    def lifted(patches: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear.linear_pool_relu(patches, weight, bias, window)

    def everything() -> list[Any]:
        made: list[Any] = []
        for function, at, over in ((normed, (x, weight, bias), (0, 1, 2)), (lifted, (patches, lifting, bias), (1, 2))):

            def slopes(*at: Tensor, function: Any = function, over: Any = over) -> Any:
                return torch.func.grad(lambda *at: function(*at).pow(3).sum(), argnums=over)(*at)

            def curves(*at: Tensor, slopes: Any = slopes, over: Any = over) -> Any:
                return torch.func.grad(lambda *at: sum((slope.pow(2) * 1e-3).sum() for slope in slopes(*at)), argnums=over)(*at)

            made += [torch.vmap(f)(*at) for f in (function, slopes, curves)]
            tangents = tuple(0.1 * t for t in at) if function is normed else (torch.zeros_like(at[0]), *(0.1 * t for t in at[1:]))
            if function is normed:
                made += [torch.func.jvp(torch.vmap(f), at, tangents)[1] for f in (function, slopes)]
            else:
                one = lambda w, b: torch.vmap(lifted)(patches, w, b)  # noqa: E731
                made.append(torch.func.jvp(one, at[1:], tangents[1:])[1])
        return made

    expected = everything()
    taken = []
    monkeypatch.setattr(select, "loops", lambda device: taken.append(device) or gpu.GPU)
    torch.testing.assert_close(everything(), expected, rtol=1e-10, atol=1e-10)
    assert taken


@pytest.mark.parametrize(("stride", "padding"), [*product([1, 2], [0, 1])])
def test_convolutions_go_by_these_kernels(stride: int, padding: int, monkeypatch: pytest.MonkeyPatch) -> None:
    form = Form(3, stride, padding, (7, 6))
    x, patches = random(2, 3, 4, 7, 6, seed=1), random(2, 3, *form.places, 36, seed=2)
    expected = conv.im2col(x, form), conv.col2im(patches, form)
    monkeypatch.setattr(select, "loops", lambda device: gpu.GPU)
    torch.testing.assert_close((conv.im2col(x, form), conv.col2im(patches, form)), expected, rtol=0, atol=1e-12)


def test_a_device_without_kernels_has_none() -> None:
    assert select.loops(torch.device("meta")) is None


def test_kernels_are_found_within_transforms() -> None:
    found = []
    torch.func.grad(torch.func.grad(lambda x: found.append(select._on_gpu(torch.device("cpu"))) or x**2))(torch.tensor(1.0))
    assert found == [gpu.GPU]
