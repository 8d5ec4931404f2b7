"""ESZSL: the closed form against its definition and its objective, orthonormal attributes, and that it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import engine, small
from torch import Tensor

from metarun.experiment import train
from metarun.protocols.episodes import LAST
from metarun.run import Run
from metarun.task import Task, select

WORDS = ["algo=eszsl", "net=mlp", "net.norm=none", "episode.train.way=40", "episode.train.query=8"]


def solved(*words: str) -> tuple[Run, Task, Tensor, Tensor, Tensor]:
    """A run after one task of all training classes and images, and X [d, m], Y [m, z], S [a, z] of it, less their means."""
    run = Run(small(*WORDS, *words))
    run.algorithm.double().eval()
    task = select(run.episodes("train").batch([0]), 0)
    task = task._replace(query=task.query._replace(x=task.query.x.double()))
    run.algorithm.calibrate([task])
    x, s = run.algorithm.net(task.query.x).detach().T, task.context.support.x.double().T
    y = 2 * torch.nn.functional.one_hot(task.query.y, 40).double() - 1
    return run, task, x - x.mean(1, keepdim=True), y, s - s.mean(1, keepdim=True)


def penalties(x: Tensor, s: Tensor, gamma: float, penalty: float) -> tuple[Tensor, Tensor]:
    """γ and λ for sums over images and classes, of those for means and relative to the mean squares."""
    return gamma * (x @ x.T).diagonal().mean(), penalty * (s @ s.T).diagonal().mean()


def test_the_matrix_is_equation_4() -> None:
    run, _, x, y, s = solved("algo.gamma=0.3", "algo.penalty=0.2")
    gamma, penalty = penalties(x, s, 0.3, 0.2)
    v = (
        torch.linalg.inv(x @ x.T + gamma * torch.eye(len(x)).double())
        @ x
        @ y
        @ s.T
        @ torch.linalg.inv(s @ s.T + penalty * torch.eye(len(s)).double())
    )
    # Means over classes in place of sums make what is inverted smaller by as much.
    torch.testing.assert_close(run.algorithm.weight, s.shape[1] * v, rtol=1e-6, atol=1e-9)


def test_the_gradient_of_its_objective_is_zero() -> None:
    _, _, x, y, s = solved()
    gamma, penalty = penalties(x, s, 1.0, 1.0)
    v = torch.linalg.solve(x @ x.T + gamma * torch.eye(len(x)).double(), x @ y @ s.T)
    v = torch.linalg.solve(s @ s.T + penalty * torch.eye(len(s)).double(), v.T).T.requires_grad_()
    loss = (x.T @ v @ s - y).square().sum() + gamma * (v @ s).square().sum() + penalty * (x.T @ v).square().sum()
    loss = loss + gamma * penalty * v.square().sum()
    (slope,) = torch.autograd.grad(loss, v)
    assert float(slope.abs().max()) < 1e-8 * float((x @ y @ s.T).abs().max())


def test_several_tasks_are_one_of_all_their_images() -> None:
    run, task, *_ = solved()
    whole = run.algorithm.weight.clone()
    halves = [
        task._replace(query=task.query._replace(x=task.query.x[part], y=task.query.y[part]))
        for part in (slice(0, None, 2), slice(1, None, 2))
    ]
    run.algorithm.calibrate(iter(halves))
    torch.testing.assert_close(run.algorithm.weight, whole)


def test_orthonormal_attributes_make_ridge_regression_to_the_classes() -> None:
    """But for the mean over classes, which no answer hangs on."""
    run, task, x, y, _ = solved()
    run.algorithm.weight, run.algorithm.word = torch.zeros(len(x), 40, dtype=torch.float64), torch.zeros(40, dtype=torch.float64)
    known = task.context.support._replace(x=torch.eye(40, dtype=torch.float64))
    task = task._replace(context=task.context._replace(support=known))
    run.algorithm.calibrate([task])
    ridge = x.T @ torch.linalg.solve(x @ x.T + (x @ x.T).diagonal().mean() * torch.eye(len(x)).double(), x @ y)
    ridge -= ridge.mean(1, keepdim=True)
    logits = run.algorithm.predict(run.algorithm.begin(task.context), task.query.x)
    torch.testing.assert_close(logits / logits.std(), ridge / ridge.std(), rtol=1e-6, atol=1e-8)


def test_it_tells_classes_that_were_never_seen(tmp_path: Path) -> None:
    """Nothing is trained, so the run goes straight to its test; net=mlp without layers is the pixels."""
    values = small(*WORDS, "net.sizes=[]", "trainer.test_episodes=40", "trainer.val_episodes=20")
    summary = train(values, tmp_path / "run")
    assert summary["iterations"] == 0
    assert summary["test"]["accuracy"]["mean"] > 0.6  # chance is a third
    run = Run(values, torch.load(tmp_path / "run" / "checkpoints" / "best.pt", weights_only=True))
    again = engine().evaluate(run.algorithm.eval(), run.episodes("test").batch(range(40)), LAST)
    assert float(again["score"].mean()) == pytest.approx(summary["test"]["accuracy"]["mean"], abs=1e-6)
    assert np.isfinite(run.algorithm.weight.numpy()).all()
