"""The inner-loop mathematics against closed forms, finite differences and statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import random, relative_error
from torch import Tensor
from torch.utils._pytree import tree_leaves

from metarun import inner

F64 = torch.float64
KEYS = torch.arange(64) * 7919


def positive_definite(n: int, seed: int) -> Tensor:
    root = random(n, n, seed=seed)
    return root @ root.T / n + 0.5 * torch.eye(n, dtype=F64)


def tanh_net(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    return torch.tanh(x @ weights["a"]) @ weights["b"]


def net_loss(fast: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(tanh_net(fast, x), y)


def meta_loss(theta: dict[str, Tensor], steps: int, mode: inner.Mode, lr: float = 0.5) -> Tensor:
    """Query loss of a tanh net after ``steps`` inner steps."""
    x, y = random(6, 3, seed=1), torch.tensor([0, 1, 2, 0, 1, 2])
    query = random(6, 3, seed=2)
    for _ in range(steps):
        theta = inner.sgd(theta, inner.gradient(net_loss, theta, x, y, mode=mode), lr)
    return net_loss(theta, query, y)


def theta() -> dict[str, Tensor]:
    return {"a": random(3, 5, seed=3).requires_grad_(), "b": random(5, 3, seed=4).requires_grad_()}


def vector(tree: Any) -> Tensor:
    return torch.cat([leaf.flatten() for leaf in tree_leaves(tree)])


def finite_differences(function: Callable[[dict[str, Tensor]], Tensor], at: dict[str, Tensor], step: float = 1e-5) -> Tensor:
    result = []
    for name, weight in at.items():
        for i in range(weight.numel()):
            values = []
            for sign in (1, -1):
                moved = weight.detach().clone()
                moved.view(-1)[i] += sign * step
                values.append(float(function({**at, name: moved}).detach()))
            result.append((values[0] - values[1]) / (2 * step))
    return torch.tensor(result, dtype=F64)


@pytest.mark.parametrize("mode", ["unroll", "mixed"])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_meta_gradient_of_a_quadratic_is_the_closed_form(mode: inner.Mode, steps: int) -> None:
    a, b, c, d, lr = positive_definite(4, 1), positive_definite(4, 2), random(4, seed=3), random(4, seed=4), 0.3
    start = random(4, seed=5).requires_grad_()
    phi = start
    for _ in range(steps):
        phi = inner.sgd(phi, inner.gradient(lambda w, a, c: 0.5 * (w - c) @ a @ (w - c), phi, a, c, mode=mode), lr)
    actual = torch.autograd.grad(0.5 * (phi - d) @ b @ (phi - d), start)[0]
    query_gradient = b @ (phi.detach() - d)
    expected = torch.linalg.matrix_power(torch.eye(4, dtype=F64) - lr * a, steps) @ query_gradient
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["unroll", "mixed"])
def test_the_meta_gradient_of_a_net_equals_finite_differences(mode: inner.Mode) -> None:
    weights = theta()
    actual = torch.autograd.grad(meta_loss(weights, 3, mode), list(weights.values()))
    assert relative_error(vector(actual), finite_differences(lambda w: meta_loss(w, 3, mode), weights)) < 1e-8


def test_first_order_is_the_query_gradient_at_the_adapted_weights() -> None:
    weights = theta()
    actual = torch.autograd.grad(meta_loss(weights, 3, "none"), list(weights.values()))
    x, y = random(6, 3, seed=1), torch.tensor([0, 1, 2, 0, 1, 2])
    adapted = weights
    for _ in range(3):
        adapted = inner.sgd(adapted, inner.gradient(net_loss, adapted, x, y, mode="none"), 0.5)
    leaves = {name: weight.detach().requires_grad_() for name, weight in adapted.items()}
    expected = torch.autograd.grad(net_loss(leaves, random(6, 3, seed=2), y), list(leaves.values()))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    second_order = torch.autograd.grad(meta_loss(weights, 3, "unroll"), list(weights.values()))
    assert relative_error(vector(actual), vector(second_order)) > 1e-2


@pytest.mark.parametrize("mode", ["unroll", "mixed"])
@pytest.mark.parametrize("mapped", ["vmap", "loop"])
def test_gradients_reach_the_other_arguments(mode: inner.Mode, mapped: str) -> None:
    """The inner loss depends on shared weights and on a learned input; both get their meta-gradient."""
    fast, shared, x = random(3, 2, seed=1), random(4, 3, seed=2), random(2, 5, 4, seed=3)

    def inner_loss(fast: Tensor, shared: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(torch.tanh(x @ shared) @ fast).pow(2).sum()

    def outer(fast: Tensor, shared: Tensor, x: Tensor) -> Tensor:
        def task(x: Tensor) -> Tensor:
            phi = fast - 0.1 * inner.gradient(inner_loss, fast, shared, x, mode=mode)
            return (phi * phi.sin()).sum()

        return torch.vmap(task)(x).sum() if mapped == "vmap" else sum(task(one) for one in x)

    inputs = {"fast": fast.requires_grad_(), "shared": shared.requires_grad_(), "x": x.requires_grad_()}
    actual = torch.autograd.grad(outer(**inputs), list(inputs.values()))
    assert relative_error(vector(actual), finite_differences(lambda values: outer(**values), inputs)) < 1e-7


def saved_bytes(result: Tensor) -> int:
    """Bytes of all tensors that the graph behind ``result`` keeps for the way back, each storage counted once."""
    seen, storages, queue = set(), {}, [result.grad_fn]
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        queue += [parent for parent, _ in node.next_functions]
        kept = [getattr(node, name) for name in dir(node) if name.startswith("_saved_") or name == "saved_tensors"]
        for leaf in tree_leaves(kept):
            if isinstance(leaf, Tensor):
                storages[leaf.untyped_storage().data_ptr()] = leaf.untyped_storage().nbytes()
    return sum(storages.values())


def test_mixed_mode_keeps_less_than_unrolling_over_many_steps() -> None:
    unroll, mixed = (saved_bytes(meta_loss(theta(), 20, mode)) for mode in ("unroll", "mixed"))
    assert 0 < mixed < unroll / 2


def test_no_mode_builds_a_graph_without_need() -> None:
    weights = theta()
    with torch.no_grad():
        results = [inner.gradient(net_loss, weights, random(6, 3), torch.tensor([0, 1, 2] * 2), mode=mode) for mode in ("unroll", "mixed")]
    results.append(inner.gradient(net_loss, weights, random(6, 3), torch.tensor([0, 1, 2] * 2), mode="none"))
    assert not any(leaf.requires_grad for leaf in tree_leaves(results))


def curved(fast: Tensor, shared: Tensor, c: Tensor) -> Tensor:
    return (fast.square() * shared * c).sum()


@pytest.mark.parametrize("mode", ["unroll", "mixed", "none"])
def test_weights_that_are_another_argument_too_count_once(mode: inner.Mode) -> None:
    w, c = random(4).requires_grad_(), random(3, 4, seed=1)
    found = torch.vmap(lambda c: inner.gradient(curved, w, w, c, mode=mode))(c)
    torch.testing.assert_close(found, 2 * w.square() * c)
    assert found.requires_grad == (mode != "none")
    if mode != "none":
        torch.testing.assert_close(torch.autograd.grad(found.sum(), w)[0], 4 * w.detach() * c.sum(0))


@pytest.mark.parametrize("of_each", [False, True])
def test_a_loss_may_close_over_what_is_a_tasks_own(of_each: bool) -> None:
    w, c = random(4).requires_grad_(), random(3, 4, seed=1).requires_grad_()

    def slope(c: Tensor) -> Tensor:
        return inner.gradient(lambda fast: curved(fast, fast, c), w * c if of_each else w)

    found = torch.vmap(slope)(c)
    torch.testing.assert_close(found, 3 * (w * c if of_each else w).square() * c)
    expected = torch.stack([slope(one) for one in c])
    for mine, theirs in zip(torch.autograd.grad(found.pow(2).sum(), (w, c)), torch.autograd.grad(expected.pow(2).sum(), (w, c))):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("steps", [1, 3])
def test_mixed_mode_reaches_complex_weights(steps: int) -> None:
    start = torch.complex(random(4), random(4, seed=1))

    def slope(mode: inner.Mode) -> Tensor:
        w = start.clone().requires_grad_()
        fast = {"w": w}
        for _ in range(steps):
            fast = inner.sgd(fast, inner.gradient(lambda fast: (fast["w"].abs() ** 3).sum(), fast, mode=mode), 0.05)
        return torch.autograd.grad(fast["w"].abs().square().sum(), w)[0]

    torch.testing.assert_close(slope("mixed"), slope("unroll"))


def test_other_transforms_may_lie_around() -> None:
    w, c = random(4), random(2, 3, 4, seed=1)

    def slope(w: Tensor, c: Tensor) -> Tensor:
        return inner.gradient(curved, w, w.detach(), c)

    each = torch.vmap(slope, (None, 0))
    torch.testing.assert_close(torch.vmap(each, (None, 0))(w, c), 2 * w.square() * c)
    torch.testing.assert_close(torch.func.jacrev(each)(w, c[0]), torch.diag_embed(2 * w * c[0]))
    torch.testing.assert_close(torch.func.jacfwd(each)(w, c[0]), torch.diag_embed(2 * w * c[0]))


def test_a_gradient_step_takes_one_rate_or_a_tree_of_rates() -> None:
    fast, grads = {"a": random(2), "b": (random(3),)}, {"a": random(2, seed=1), "b": (random(3, seed=2),)}
    rates = {"a": torch.tensor([0.1, 0.2], dtype=F64), "b": (torch.tensor(0.3, dtype=F64),)}
    stepped = inner.sgd(fast, grads, rates)
    torch.testing.assert_close(stepped["a"], fast["a"] - torch.tensor([0.1, 0.2], dtype=F64) * grads["a"])
    torch.testing.assert_close(stepped["b"][0], fast["b"][0] - 0.3 * grads["b"][0])
    for rate in (0.3, torch.tensor(0.3, dtype=F64)):
        torch.testing.assert_close(inner.sgd(fast, grads, rate)["b"], stepped["b"])


def test_upcast_raises_half_precision_and_leaves_the_rest_alone() -> None:
    kinds = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.float32: torch.float32, F64: F64}
    for given, wanted in kinds.items():
        assert inner.upcast(torch.zeros(1, dtype=given)).dtype == wanted


def test_class_means_are_means_by_class_whatever_the_order() -> None:
    features, y = random(7, 3), torch.tensor([2, 0, 1, 1, 2, 0, 0])
    expected = torch.stack([features[y == c].mean(0) for c in range(3)])
    torch.testing.assert_close(inner.class_means(features, y, 3), expected)


def test_one_hot_rows_are_those_of_torch_and_can_be_mapped() -> None:
    y = torch.tensor([[2, 0, 1, 1], [0, 0, 2, 2]])
    assert torch.vmap(lambda y: inner.one_hot(y, 3))(y).equal(F.one_hot(y, 3).bool())


@pytest.mark.parametrize("shape", [(4, 9), (6, 6), (9, 4)])
def test_ridge_solves_the_normal_equations_on_either_side_of_the_woodbury_identity(shape: tuple[int, int]) -> None:
    x, y, noise = random(*shape), random(shape[0], 3, seed=1), random(shape[0], seed=2).square() + 0.1
    for each in (noise, noise[0]):
        weight = inner.ridge(x, y, each)
        slope = x.T @ ((x @ weight - y) / each.expand(shape[0])[:, None]) + weight  # half the gradient of what is minimised
        torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-10)
        by_precision = torch.linalg.inv(inner.precision_matrix(x, each)) @ (x.T / each) @ y
        torch.testing.assert_close(weight, by_precision, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(inner.ridge(x, y[:, 0], each), weight[:, 0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_ridge_can_be_differentiated_and_mapped(shape: tuple[int, int]) -> None:
    x, y, noise = random(2, *shape), random(2, shape[0], 2, seed=1), random(2, shape[0], seed=2).square() + 0.5
    assert torch.autograd.gradcheck(torch.vmap(inner.ridge), tuple(tensor.requires_grad_() for tensor in (x, y, noise)))
    one_by_one = torch.stack([inner.ridge(*one) for one in zip(x, y, noise)])
    torch.testing.assert_close(torch.vmap(inner.ridge)(x, y, noise), one_by_one, rtol=1e-12, atol=1e-12)


def test_without_penalty_ridge_is_least_squares() -> None:
    x, y = random(9, 4), random(9, 2, seed=1)
    torch.testing.assert_close(inner.ridge(x, y, torch.tensor(1e-12, dtype=F64)), torch.linalg.lstsq(x, y).solution)


def test_squared_distances_equal_cdist_and_have_a_second_derivative() -> None:
    a, b = random(4, 3), random(5, 3, seed=1)
    torch.testing.assert_close(inner.squared_distances(a, b), torch.cdist(a, b) ** 2)
    assert torch.autograd.gradgradcheck(inner.squared_distances, (a.requires_grad_(), b.requires_grad_()))


def kolmogorov_smirnov(sample: Tensor, cdf: Callable[[Tensor], Tensor]) -> float:
    """√n times the largest gap between the empirical and the true distribution; above 1.95 once in a thousand."""
    theory, n = cdf(sample.double().sort().values), sample.numel()
    steps = torch.arange(n + 1, dtype=F64) / n
    return float(torch.maximum((steps[1:] - theory).max(), (theory - steps[:-1]).max()) * n**0.5)


def normal_cdf(x: Tensor) -> Tensor:
    return torch.special.ndtr(x)


@pytest.mark.parametrize(("draw", "cdf"), [(inner.uniform, lambda x: x), (inner.normal, normal_cdf)])
def test_draws_have_their_distribution_along_counters_keys_and_streams(
    draw: Callable[..., Tensor], cdf: Callable[[Tensor], Tensor]
) -> None:
    along_counters = draw(torch.tensor(5), (20_000,))
    along_keys = torch.cat([draw(key, (1,)) for key in torch.arange(2000)])
    along_streams = torch.cat([draw(torch.tensor(5), (1,), stream) for stream in range(2000)])
    for sample in (along_counters, along_keys, along_streams):
        assert kolmogorov_smirnov(sample, cdf) < 1.95


def test_normal_draws_have_the_moments_of_the_normal_distribution() -> None:
    sample = inner.normal(torch.tensor(5), (500_000,)).double()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((sample**power).mean()) - moment) < 5 * (variance / 500_000) ** 0.5


@pytest.mark.parametrize("draw", [inner.uniform, inner.normal])
def test_neighbouring_draws_are_uncorrelated(draw: Callable[..., Tensor]) -> None:
    rows = torch.stack([draw(torch.tensor(k), (4000,), s) for k in (0, 1) for s in (0, 1)] + [draw(torch.tensor(0), (4001,))[1:]])
    correlations = torch.corrcoef(rows) - torch.eye(len(rows))
    assert correlations.abs().max() < 4 / 4000**0.5


@pytest.mark.parametrize("draw", [inner.uniform, inner.normal])
def test_vmap_does_not_change_a_draw(draw: Callable[..., Tensor]) -> None:
    one_by_one = torch.stack([draw(key, (3, 2), 1) for key in KEYS])
    torch.testing.assert_close(torch.vmap(lambda key: draw(key, (3, 2), 1))(KEYS), one_by_one, rtol=0, atol=0)
    assert one_by_one.unique().numel() > 0.99 * one_by_one.numel()


def test_uniform_draws_stay_inside_the_open_interval() -> None:
    extremes = torch.stack([inner.uniform(key, (50_000,)) for key in KEYS[:8]])
    assert extremes.min() > 0
    assert extremes.max() < 1


def test_scores_by_class_keep_their_place_and_are_minus_infinity_elsewhere() -> None:
    scores, y = random(4, 5), torch.tensor([2, 0, 2, 1, 0])
    sorted_scores = inner.by_class(scores, inner.one_hot(y, 3))
    assert sorted_scores.shape == (4, 3, 5)
    for c in range(3):
        assert torch.equal(sorted_scores[:, c, y == c], scores[:, y == c])
        assert bool((sorted_scores[:, c, y != c] == -torch.inf).all())


def test_a_class_without_examples_comes_last_and_is_not_impossible() -> None:
    scores, y = random(4, 5), torch.tensor([2, 0, 2, 3, 0])
    sorted_scores = inner.by_class(scores, inner.one_hot(y, 4))
    for of_classes in (sorted_scores.amax(-1), sorted_scores.logsumexp(-1)):
        assert bool(of_classes.isfinite().all())
        assert bool((of_classes[:, 1] < scores.amin(1)).all())
    assert torch.equal(sorted_scores[:, [0, 2, 3]], inner.by_class(scores, inner.one_hot(y, 4)[:, [0, 2, 3]]))
