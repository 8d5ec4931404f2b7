"""The convolution's three partial derivatives against torch's convolution and finite differences, for one task and for many."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import random
from torch import Tensor

from metarun.nets import conv
from metarun.nets.conv import Conv, convolve, matrix

F64 = torch.float64
SHAPES = pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 1), (5, 3)])
WAYS = pytest.mark.parametrize("few", [0, 10**6], ids=["one by one", "products"])  # of many tasks with weights of their own


@SHAPES
def test_one_task_equals_torch_and_finite_differences(kernel: int, stride: int) -> None:
    x, w = random(2, 3, 7, 6, seed=1).requires_grad_(), random(4, 3, kernel, kernel, seed=2).requires_grad_()

    def function(x: Tensor, w: Tensor) -> Tensor:
        return convolve(x, w, stride, kernel // 2)

    torch.testing.assert_close(function(x, w), F.conv2d(x, w, stride=stride, padding=kernel // 2))
    assert torch.autograd.gradcheck(function, (x, w), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, (x, w))


@SHAPES
@WAYS
def test_many_tasks_equal_one_after_the_other(kernel: int, stride: int, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv, "FEW", (few, few, few))
    w = random(3, 3, kernel, kernel, seed=2).requires_grad_()
    xs, qs = random(5, 2, 3, 7, 6, seed=1), random(5, 4, 3, 7, 6, seed=3)

    def objective(x: Tensor, q: Tensor) -> Tensor:
        """With shared weights, adapted weights, and their second derivative."""

        def loss(w: Tensor) -> Tensor:
            hidden = convolve(x, w, stride, kernel // 2).tanh()
            return convolve(hidden, w, 1, kernel // 2).square().mean()

        fast = w - torch.func.grad(loss)(w)
        fast = fast - torch.func.grad(loss)(fast)
        return convolve(q, fast, stride, kernel // 2).sin().sum()

    together = torch.vmap(objective)(xs, qs)
    apart = torch.stack([objective(x, q) for x, q in zip(xs, qs)])
    torch.testing.assert_close(together, apart)
    torch.testing.assert_close(*(torch.autograd.grad(values.sum(), w)[0] for values in (together, apart)))


@WAYS
def test_forward_mode_over_reverse_mode_works_for_many_tasks(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv, "FEW", (few, few, few))
    xs, ws, along = random(5, 2, 3, 6, 6, seed=1), random(5, 4, 3, 3, 3, seed=2), random(5, 4, 3, 3, 3, seed=3)

    def product(convolution: object, x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        gradient = torch.func.grad(lambda w: convolution(x, w).tanh().square().sum())  # type: ignore[operator]
        return torch.func.jvp(gradient, (w,), (v,))[1]

    ours = torch.vmap(lambda x, w, v: product(lambda x, w: convolve(x, w, 2, 1), x, w, v))(xs, ws, along)
    theirs = [product(lambda x, w: F.conv2d(x, w, stride=2, padding=1), x, w, v) for x, w, v in zip(xs, ws, along)]
    torch.testing.assert_close(ours, torch.stack(theirs))


def test_results_have_their_channels_last_in_memory() -> None:
    x, w = torch.randn(6, 8, 12, 12).to(memory_format=torch.channels_last), torch.randn(8, 8, 3, 3)
    assert convolve(x, w, 2, 1).is_contiguous(memory_format=torch.channels_last)
    many = torch.vmap(lambda x, w: convolve(x, w, 2, 1))(*(torch.cat([t, t]).unflatten(0, (2, -1)) for t in (x, w)))
    assert many.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)


def test_weights_and_their_gradients_lie_as_patches_do_so_that_nothing_is_copied() -> None:
    module = Conv(8, 6, 3, stride=2)
    x, w = torch.randn(4, 2, 8, 6, 6), module.weight[None].expand(4, *module.weight.shape)
    assert matrix(module.weight).data_ptr() == module.weight.data_ptr()
    gradients = torch.vmap(torch.func.grad(lambda w, x: convolve(x, w, 2, 1).square().sum()))(w, x)
    assert all(gradient.is_contiguous(memory_format=torch.channels_last) for gradient in gradients)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_module_equals_torchs_with_the_same_weights(channels: int, bias: bool) -> None:
    torch.manual_seed(0)
    ours = Conv(channels, 5, 3, stride=2, bias=bias)
    torch.manual_seed(0)
    theirs = torch.nn.Conv2d(channels, 5, 3, stride=2, padding=1, bias=bias)
    assert ours.narrow == (channels < 4)
    assert {name: value.tolist() for name, value in ours.state_dict().items()} == {n: v.tolist() for n, v in theirs.state_dict().items()}
    x = torch.randn(2, channels, 9, 9)
    torch.testing.assert_close(ours(x), theirs(x))
