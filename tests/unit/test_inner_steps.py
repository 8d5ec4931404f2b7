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
