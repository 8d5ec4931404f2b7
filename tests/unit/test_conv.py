"""The convolution's three partial derivatives against torch's convolution and finite differences, for one task and for many, by torch's
operators and by the kernels for channels in multiples of 16."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from helpers import random, relative_error
from torch import Tensor

from metarun.kernels import numba_conv as direct
from metarun.kernels.form import Form
from metarun.kernels.ops import conv
from metarun.kernels.ops.conv import W, X, Y, convolution, convolve, matrix
from metarun.nets.conv import Conv

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
@pytest.mark.parametrize(("channels", "dtype"), [(3, F64), (16, torch.float32)], ids=str)
@pytest.mark.parametrize("shared", [True, False], ids=["by all tasks", "by none"])
def test_a_method_may_map_over_weights_within_a_task(
    few: int, channels: int, dtype: torch.dtype, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conv, "FEW", (few, few, few))
    xs = random(2, 4, channels, 6, 5, seed=1).to(dtype)
    ws = random(*([] if shared else [2]), 3, channels, channels, 3, 3, seed=2).to(dtype) / 3

    def adapted(function: Callable[..., Tensor]) -> Tensor:
        def one(x: Tensor, w: Tensor) -> Tensor:
            return w - torch.func.grad(lambda w: function(x, w, None, 2, 1).tanh().square().sum())(w)

        def derived(x: Tensor, w: Tensor) -> Tensor:  # through the step, by the weights before it
            return torch.func.grad(lambda w: function(x, one(x, w), None, 2, 1).sin().sum())(w)

        return torch.vmap(lambda x, ws: torch.vmap(lambda w: derived(x, w))(ws), in_dims=(0, None if shared else 0))(xs, ws)

    ours = adapted(lambda x, w, _bias, stride, padding: convolve(x, w, stride, padding))
    assert relative_error(ours, adapted(F.conv2d)) < (1e-4 if dtype == torch.float32 else 1e-11)


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


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """A precision that this machine has kernels for, which are not for one task where torch has more threads for it."""
    if not direct.lanes(request.param):
        pytest.skip("no kernels on this machine")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield request.param
    torch.set_num_threads(threads)


def operands(dtype: torch.dtype, form: Form, n: int, channels: tuple[int, int], tasks: tuple[int, ...]) -> dict[int, tuple[Tensor, Tensor]]:
    """Those of every slot."""
    torch.manual_seed(0)
    inputs, outputs = channels
    shapes = (*tasks, n, *form.size, inputs), (*tasks, outputs, form.kernel, form.kernel, inputs), (*tasks, n, *form.places, outputs)
    x, w, y = (torch.randn(shape).to(dtype).movedim(-1, -3) for shape in shapes)
    return {Y: (x, w), X: (w, y), W: (y, x)}


def check(slot: int, form: Form, a: Tensor, b: Tensor) -> None:
    """The kernels against torch's convolution of one task after the other in float64."""
    assert direct.covers(slot, form, a, b)
    ours = direct.partial(slot, form, a, b)
    if a.dim() == 4:
        theirs = convolution(slot, form, a.double(), b.double())
    else:
        theirs = torch.stack([convolution(slot, form, *pair) for pair in zip(a.double(), b.double())])
    assert ours.dtype == a.dtype
    assert ours.shape == theirs.shape
    assert ours.movedim(-3, -1).is_contiguous()
    # Sums of products of bfloat16 are rounded once, at the end.
    assert (ours - theirs).norm() <= (2e-6 if a.dtype == torch.float32 else 3e-3) * theirs.norm()


@pytest.mark.parametrize("tasks", [(), (3,)], ids=["one task", "many tasks"])
@pytest.mark.parametrize("n", [1, 5, 14])
@pytest.mark.parametrize("side", [(2, 2), (5, 8), (7, 7)])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (3, 3), (5, 1), (5, 2)])
def test_kernels_equal_torch_for_all_shapes(
    dtype: torch.dtype, kernel: int, stride: int, side: tuple[int, int], n: int, tasks: tuple[int, ...]
) -> None:
    form = Form(kernel, stride, kernel // 2, side)
    for slot, pair in operands(dtype, form, n, (64, 64), tasks).items():
        check(slot, form, *pair)


@pytest.mark.parametrize("channels", [(16, 128), (32, 48), (48, 16), (80, 32), (128, 80)])
def test_kernels_equal_torch_for_all_channels(dtype: torch.dtype, channels: tuple[int, int]) -> None:
    form = Form(3, 2, 1, (7, 6))
    for slot, pair in operands(dtype, form, 3, channels, (2,)).items():
        check(slot, form, *pair)


@pytest.mark.parametrize("side", [20, 28])
def test_kernels_equal_torch_for_more_images_than_a_cache_holds(dtype: torch.dtype, side: int) -> None:
    form = Form(3, 1, 1, (side, side))
    for slot, pair in operands(dtype, form, 5, (64, 64), ()).items():
        check(slot, form, *pair)


def test_kernels_for_short_vectors_equal_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    if not direct.lanes(torch.float32):
        pytest.skip("no kernels on this machine")
    monkeypatch.setattr(direct, "lanes", lambda dtype: 8)
    form = Form(3, 2, 1, (7, 6))
    for channels in [(32, 48), (16, 32)]:
        for slot, pair in operands(torch.float32, form, 7, channels, (2,)).items():
            check(slot, form, *pair)


def test_kernels_pass_on_what_is_no_number(dtype: torch.dtype) -> None:
    form = Form(3, 2, 1, (5, 5))
    for slot, (a, b) in operands(dtype, form, 3, (64, 64), ()).items():
        a[-1, -1, 0, 0] = torch.inf
        ours, theirs = direct.partial(slot, form, a, b), convolution(slot, form, a.float(), b.float())
        assert torch.equal(ours.isfinite(), theirs.isfinite())


def test_kernels_take_operands_that_lie_in_any_order_and_anywhere(dtype: torch.dtype) -> None:
    form = Form(3, 1, 1, (4, 4))
    for slot, (a, b) in operands(dtype, form, 3, (32, 32), (2,)).items():
        elsewhere = torch.cat([a.new_zeros(1), a.movedim(-3, -1).flatten()])[1:].view(a.movedim(-3, -1).shape).movedim(-1, -3)
        torch.testing.assert_close(direct.partial(slot, form, elsewhere, b.contiguous()), direct.partial(slot, form, a, b), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(5, 24, 6, 6), (0, 32, 6, 6)], ids=["channels", "no images"])
def test_what_kernels_do_not_cover_is_torchs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, w = torch.randn(shape, dtype=dtype), torch.randn(32, shape[1], 3, 3, dtype=dtype)
    assert not direct.covers(Y, Form(3, 1, 1, (6, 6)), x, w)
    assert not direct.covers(Y, Form(3, 1, 1, (6, 6)), x.double(), w.double())
    torch.testing.assert_close(convolve(x, w, 1, 1), F.conv2d(x, w, padding=1))


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
