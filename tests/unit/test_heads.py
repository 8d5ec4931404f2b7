"""Heads on frozen features: against slow, plain implementations, each example left out by really fitting without it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.predict import heads
from metarun.predict.classifier import directions, learn
from metarun.predict.heads import HEADS, Head
from metarun.protocols.belonging import belonging

WAY = 3


def examples(shots: tuple[int, ...] = (4, 3, 2), features: int = 6, seed: int = 0, apart: float = 0.7) -> tuple[Tensor, np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    y = np.repeat(np.arange(len(shots)), shots)
    centres = apart * torch.randn(len(shots), features, generator=generator, dtype=torch.float64)
    return F.normalize(centres[y] + torch.randn(len(y), features, generator=generator, dtype=torch.float64), dim=-1), y


def means(x: Tensor, y: Tensor, asked: Tensor, way: int, _: float) -> Tensor:
    centres = torch.stack([x[y == c].mean(0) for c in range(way)])
    return -(asked[:, None] - centres).square().sum(-1)


def ridge(x: Tensor, y: Tensor, asked: Tensor, way: int, strength: float) -> Tensor:
    z, a = (torch.cat([part, torch.ones(len(part), 1, dtype=part.dtype)], 1) for part in (x, asked))
    return a @ torch.linalg.solve(z.T @ z + strength * torch.eye(z.shape[1], dtype=z.dtype), z.T @ F.one_hot(y, way).to(z.dtype))


def logistic(x: Tensor, y: Tensor, asked: Tensor, way: int, strength: float) -> Tensor:
    z, a = (torch.cat([part, torch.ones(len(part), 1, dtype=part.dtype)], 1) for part in (x, asked))
    w = torch.zeros(z.shape[1], way, dtype=z.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(z @ w, y, reduction="sum") + strength / 2 * w.square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    return (a @ w).detach()


PLAIN: dict[str, Callable[[Tensor, Tensor, Tensor, int, float], Tensor]] = {"means": means, "ridge": ridge, "logistic": logistic}


def fitted(head: Head, x: Tensor, y: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Logits of all examples by a head that really was fitted to ``rows`` alone."""
    return PLAIN[head.kind](x[rows], torch.from_numpy(y)[rows], x, WAY, head.strength).numpy()


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
def test_leaving_out_is_fitting_without(head: Head) -> None:
    x, y = examples()
    masks = torch.ones(len(y) + 1, len(y), dtype=torch.bool)
    masks[:-1].fill_diagonal_(False)
    found = heads.left_out(head, x @ x.T, torch.from_numpy(y), WAY, masks)
    for logits, mask in zip(found, masks):
        np.testing.assert_allclose(logits, fitted(head, x, y, mask.numpy().nonzero()[0]), atol=1e-4 if head.kind == "logistic" else 1e-9)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
def test_masks_at_a_time_change_nothing(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = examples()
    masks = ~torch.eye(len(y), dtype=torch.bool)
    whole = heads.left_out(head, x @ x.T, torch.from_numpy(y), WAY, masks)
    monkeypatch.setattr(heads, "BYTES", 1)
    assert torch.allclose(heads.left_out(head, x @ x.T, torch.from_numpy(y), WAY, masks), whole, atol=1e-9)


def test_a_class_without_examples_is_the_least_likely() -> None:
    x, y = examples()
    kept = torch.from_numpy(y != 1)[None]
    for head in HEADS:
        logits = heads.left_out(head, x @ x.T, torch.from_numpy(y), WAY, kept)[0]
        assert torch.equal(logits[:, 1], logits.amin(-1))
        assert logits.isfinite().all()


def test_the_nested_answers_are_those_of_two_plain_loops() -> None:
    x, y = examples((3, 3, 3), seed=4)
    some = (Head("means"), Head("ridge", 1.0), Head("ridge", 0.1))
    rows, tried = np.arange(len(y)), heads.tried(x @ x.T, y, WAY, some)
    for fold in range(3):
        kept = rows[tried.folds != fold]
        losses = []
        for head in some:
            inner = np.stack([fitted(head, x, y, kept[tried.folds[kept] != tried.folds[j]])[j] for j in kept])
            inner = inner / heads.temperature(inner, y[kept])
            losses.append(F.cross_entropy(torch.from_numpy(inner), torch.from_numpy(y[kept])).item())
        best = some[int(np.argmin(losses))]
        for i in rows[tried.folds == fold]:
            np.testing.assert_allclose(tried.nested()[fold, i], fitted(best, x, y, kept)[i], atol=1e-9)
            for other in {0, 1, 2} - {fold}:
                fewer = kept[tried.folds[kept] != other]
                np.testing.assert_allclose(tried.nested()[other, i], fitted(best, x, y, fewer)[i], atol=1e-9)


def test_an_example_alone_in_its_class_is_judged_by_nobody() -> None:
    x, y = examples((3, 2, 1))
    tried = heads.tried(x @ x.T, y, WAY)
    assert tried.once.tolist() == [True] * 5 + [False]
    x, y = examples((1, 1, 1))
    assert not heads.tried(x @ x.T, y, WAY).once.any()
    assert heads.tried(x @ x.T, y, WAY).best() == 0


def test_folds_have_as_many_of_every_class() -> None:
    y = np.repeat([0, 1, 2], [70, 41, 20])
    counts = np.stack([np.bincount(heads.folds_of(y)[y == c], minlength=10) for c in range(3)])
    assert counts.shape == (3, 10)
    assert (np.ptp(counts, 1) <= 1).all()
    assert np.ptp(counts.sum(0)) <= 1


def test_of_few_examples_one_of_each_class_is_left_out() -> None:
    """So that none of the others is favoured: left out by itself, an example leaves its class the smallest."""
    y = np.repeat([0, 1, 2], 4)
    assert all(sorted(y[heads.folds_of(y) == fold]) == [0, 1, 2] for fold in range(4))
    uneven = np.repeat([0, 1, 2], [4, 2, 1])
    assert all(len(set(uneven[heads.folds_of(uneven) == fold])) == sum(heads.folds_of(uneven) == fold) for fold in range(4))


def test_folds_of_many_examples_are_left_out_together() -> None:
    x, y = examples((30, 25, 20), seed=2)
    tried = heads.tried(x @ x.T, y, WAY, (Head("ridge", 1.0),))
    rows = np.arange(len(y))
    for fold in (0, 7):
        mine = tried.folds == fold
        np.testing.assert_allclose(tried.alone(0)[mine], fitted(Head("ridge", 1.0), x, y, rows[~mine])[mine], atol=1e-9)


def test_the_answer_of_a_fitted_classifier_is_the_heads() -> None:
    for seed in range(6):
        x, y = examples((4, 4, 4), seed=seed)
        learned = learn(x, [f"class {i}" for i in y])
        probabilities, scores = learned.answer(x)
        expected = fitted(learned.head, x, y, np.arange(len(y))) / learned.temperature
        np.testing.assert_allclose(probabilities, torch.from_numpy(expected).softmax(-1).numpy(), atol=2e-3)
        np.testing.assert_allclose(scores, belonging(x, x, torch.from_numpy(y), WAY).numpy(), atol=1e-9)


def test_probabilities_of_few_examples_without_an_error_are_not_certain() -> None:
    x, y = examples((3, 3, 3), apart=9.0)
    learned = learn(x, [str(i) for i in y])
    probabilities, _ = learned.answer(x)
    assert (probabilities.argmax(-1) == y).all()
    assert probabilities.max() < 0.99


def test_scikit_learn_agrees() -> None:
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    x, y = examples((6, 5, 4), seed=3)
    z = np.concatenate([x.numpy(), np.ones((len(x), 1))], 1)
    theirs = linear.LogisticRegression(C=10.0, fit_intercept=False, tol=1e-10, max_iter=10_000).fit(z, y).decision_function(z)
    ours = heads.left_out(Head("logistic", 0.1), x @ x.T, torch.from_numpy(y), WAY, torch.ones(1, len(y), dtype=torch.bool))[0].numpy()
    np.testing.assert_allclose(ours - ours.mean(-1, keepdims=True), theirs - theirs.mean(-1, keepdims=True), atol=1e-4)


def test_a_threshold_needs_two_examples_of_a_class() -> None:
    x, y = examples((1, 1, 1))
    assert learn(x, [str(i) for i in y]).threshold(0.05) is None
    x, y = examples((4, 4, 4))
    assert learn(x, [str(i) for i in y]).threshold(0.0) is None
    found = learn(x, [str(i) for i in y]).threshold(0.05)
    assert found
    assert found[1] == 1 / 13  # the lowest rate that 12 examples can tell


def test_features_keep_their_sign_and_get_length_one() -> None:
    found = directions(torch.tensor([[4.0, -9.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([[2.0, -3.0, 0.0]]).double() / 13**0.5)
