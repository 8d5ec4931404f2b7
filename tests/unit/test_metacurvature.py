"""Meta-Curvature: identities are MAML, bias factors are Meta-SGD on biases, and the factors act along the axes that are meant."""

from __future__ import annotations

import pytest
import torch
from helpers import classification, engine, in_float64, meta_gradient, random, relative_error, small

from metarun.algos.gradient.metacurvature import identities, transformed

F64 = torch.float64
WORDS = ["net=mlp", "net.activation=tanh", "algo.inner_lr=0.25"]


@pytest.mark.parametrize("mode", ["unroll", "mixed", "none"])
def test_identities_are_maml(mode: str) -> None:
    algorithm, tasks = in_float64(small("algo=metacurvature", *WORDS, f"algo.mode={mode}"))
    maml, _ = in_float64(small("algo=maml", *WORDS, f"algo.mode={mode}"))
    expected = meta_gradient(maml, tasks, engine())
    assert relative_error(meta_gradient(algorithm, tasks, engine())[: len(expected)], expected) < 1e-12


def test_the_factors_of_biases_are_meta_sgd_on_biases() -> None:
    algorithm, tasks = in_float64(small("algo=metacurvature", *WORDS))
    rated, _ = in_float64(small("algo=metasgd", *WORDS))
    for i, (rate, factors) in enumerate(zip(rated.rates, algorithm.curvature)):
        if rate.dim() == 1:
            factors[0].data.add_(random(*rate.shape, seed=i), alpha=0.3)
            rate.data.copy_(0.25 * factors[0].data)
    meta_gradient(algorithm, tasks, engine())
    meta_gradient(rated, tasks, engine())
    for name, _ in rated.learner().items():
        torch.testing.assert_close(algorithm.get_parameter(name).grad, rated.get_parameter(name).grad, rtol=1e-9, atol=1e-12)
    biases = [(rate, factors[0]) for rate, factors in zip(rated.rates, algorithm.curvature) if rate.dim() == 1]
    assert len(biases) == 3
    for rate, factor in biases:
        torch.testing.assert_close(factor.grad, 0.25 * rate.grad, rtol=1e-9, atol=1e-12)


def test_a_convolution_is_transformed_along_output_input_and_filter() -> None:
    grad = random(5, 4, 3, 3, seed=0)
    out, into, places = random(5, 5, seed=1), random(4, 4, seed=2), random(9, 9, seed=3)
    kronecker = torch.kron(torch.kron(out, into), places) @ grad.flatten()
    torch.testing.assert_close(transformed(grad, [out, into, places]), kronecker.view(5, 4, 3, 3))


def test_a_matrix_is_multiplied_from_both_sides_and_a_vector_by_elements() -> None:
    grad, out, into = random(5, 4, seed=0), random(5, 5, seed=1), random(4, 4, seed=2)
    torch.testing.assert_close(transformed(grad, [out, into]), out @ grad @ into.T)
    torch.testing.assert_close(transformed(grad[0], [into[1]]), grad[0] * into[1])


def test_a_factor_per_axis() -> None:
    sizes = [[tuple(factor.shape) for factor in identities(torch.zeros(shape))] for shape in [(8, 2, 3, 3), (5, 7), (6,)]]
    assert sizes == [[(8, 8), (2, 2), (9, 9)], [(5, 5), (7, 7)], [(6,)]]


def test_the_meta_gradient_of_the_factors_agrees_with_finite_differences() -> None:
    algorithm, tasks = in_float64(classification("metacurvature", "net.down=stride", "net.norm=layer"), tasks=1)
    meta_gradient(algorithm, tasks, engine())
    factor = algorithm.curvature[-1][0]
    slope, way = factor.grad.clone(), random(*factor.shape, seed=5)
    losses = []
    for sign in (1, -2):
        factor.data.add_(way, alpha=sign * 1e-5)
        losses.append(engine().meta_gradient(algorithm, tasks, 0.0)["loss"])
    assert float((slope * way).sum()) == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-5)
