"""MetaOptNet's answers and meta-gradient against learn2learn's, which hands the program to qpth; compared where both are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from helpers import Identity, relative_error, vectors

from metarun.algos.heads.metaoptnet import MetaOptNet


@pytest.fixture
def in_double() -> Iterator[None]:
    """learn2learn makes its constants in torch's default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize(("way", "shot", "features"), [(2, 1, 5), (5, 1, 64), (5, 5, 64), (3, 8, 4)])
def test_logits_and_gradients_equal_learn2learn(learn2learn: ModuleType, way: int, shot: int, features: int) -> None:
    if importlib.util.find_spec("qpth") is None:
        pytest.skip("qpth is not installed")
    problem, task = vectors(features, way, shot)
    (x, y), query = task.context.support, task.query
    support = x.clone().requires_grad_()
    theirs = learn2learn.nn.SVClassifier(support, y, way, max_iters=40)(query.x)
    ours = MetaOptNet(Identity(features), problem, head="svm", cost=0.1, penalty=1.0, scale=1.0, solver_steps=30)
    state = ours.begin(task.context._replace(support=task.context.support._replace(x=support)))
    logits = ours.predict(state, query.x)
    torch.testing.assert_close(logits, theirs, rtol=0, atol=1e-6)
    gradients = [torch.autograd.grad(problem.loss(answers, query.y), support)[0] for answers in (logits, theirs)]
    assert relative_error(*gradients) < 1e-4  # theirs stops at the border, ours a little inside
