"""Steps and solvers that methods share, against torch's own and against what they promise."""

from __future__ import annotations

import pytest
import torch

from metarun import inner

F64 = torch.float64


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_adam_is_torchs_adam(beta1: float) -> None:
    generator = torch.Generator().manual_seed(0)
    start = {"a": torch.randn(3, 2, generator=generator, dtype=F64), "b": torch.randn(4, generator=generator, dtype=F64)}
    theirs = [value.clone().requires_grad_() for value in start.values()]
    optimizer = torch.optim.Adam(theirs, lr=0.05, betas=(beta1, 0.999))
    ours, moments = start, inner.no_moments(start)
    for k in range(4):
        grads = {name: torch.randn(value.shape, generator=generator, dtype=F64) for name, value in start.items()}
        for parameter, grad in zip(theirs, grads.values()):
            parameter.grad = grad
        optimizer.step()
        ours, moments = inner.adam(ours, grads, moments, k, 0.05, beta1)
        for parameter, weight in zip(theirs, ours.values()):
            torch.testing.assert_close(weight, parameter.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("n", "size"), [(6, 2), (6, 4), (5, 5), (7, 3)])
def test_minibatches_use_up_every_shuffle_before_the_next(n: int, size: int) -> None:
    batches = [inner.minibatch(torch.tensor(3), n, size, k) for k in range(2 * n)]
    assert all(batch.shape == (size,) for batch in batches)
    drawn = torch.cat(batches)
    shuffles = drawn[: len(drawn) // n * n].view(-1, n)
    assert (shuffles.sort(1).values == torch.arange(n)).all()
    assert not (shuffles == shuffles[0]).all()


def test_minibatches_depend_on_the_key() -> None:
    draws = {tuple(inner.minibatch(torch.tensor(key), 8, 4, 0).tolist()) for key in range(20)}
    assert len(draws) > 15


def test_conjugate_gradient_solves_in_as_many_steps_as_dimensions() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(5, 5, generator=generator, dtype=F64)
    matrix, target = root @ root.T + torch.eye(5, dtype=F64), torch.randn(5, generator=generator, dtype=F64)

    def operator(tree: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        image = matrix @ torch.cat([tree["a"], tree["b"]])
        return {"a": image[:2], "b": image[2:]}

    split = {"a": target[:2], "b": target[2:]}
    errors = []
    for steps in (1, 3, 5, 9):
        solution = inner.conjugate_gradient(operator, split, steps)
        errors.append(float((torch.cat([solution["a"], solution["b"]]) - torch.linalg.solve(matrix, target)).norm()))
    assert errors[0] > errors[1] > 1e-6
    assert max(errors[2:]) < 1e-10  # solved, and more steps do no harm


def test_conjugate_gradient_ends_where_the_operator_proves_indefinite() -> None:
    diagonal = torch.tensor([-1.0, 2.0, 3.0], dtype=F64)
    at_once, later, never = torch.tensor([[1.0, 0.1, 0.1], [0.1, 1.0, 1.0], [0.0, 1.0, 1.0]], dtype=F64)

    def solve(target: torch.Tensor, steps: int) -> torch.Tensor:
        return inner.conjugate_gradient(lambda v: diagonal * v, target, steps)

    assert torch.equal(solve(at_once, 4), at_once)
    assert not torch.equal(solve(later, 1), solve(later, 2))
    assert torch.equal(solve(later, 2), solve(later, 5))  # its third direction has negative curvature
    torch.testing.assert_close(solve(never, 5), never / diagonal)
    together = torch.vmap(lambda target: solve(target, 5))(torch.stack([at_once, later, never]))
    torch.testing.assert_close(together, torch.stack([solve(target, 5) for target in (at_once, later, never)]))


def test_conjugate_gradient_of_nothing_is_nothing() -> None:
    assert torch.equal(inner.conjugate_gradient(lambda x: 2 * x, torch.zeros(3), 4), torch.zeros(3))


def test_the_hessian_product_is_the_hessian_times_the_direction() -> None:
    def loss(w: torch.Tensor, scale: float) -> torch.Tensor:
        return scale * (w**3).sum() + w[0] * w[1] ** 2

    w, v = torch.tensor([0.5, -1.0, 2.0], dtype=F64), torch.tensor([1.0, 2.0, -1.0], dtype=F64)
    expected = torch.autograd.functional.hessian(lambda weights: loss(weights, 0.7), w) @ v
    torch.testing.assert_close(inner.hessian(loss, w, 0.7)(v), expected)


def test_mode_products_multiply_along_their_axis_and_commute() -> None:
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(2, 3, 4, generator=generator, dtype=F64)
    a, b = torch.randn(5, 3, generator=generator, dtype=F64), torch.randn(4, 4, generator=generator, dtype=F64)
    torch.testing.assert_close(inner.mode_product(tensor, a, 1), torch.einsum("mj,ijk->imk", a, tensor))
    one_way = inner.mode_product(inner.mode_product(tensor, a, 1), b, 2)
    torch.testing.assert_close(one_way, inner.mode_product(inner.mode_product(tensor, b, 2), a, 1))
