"""WCCN: the distance against its definition, and its limit, the nearest mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from helpers import small

import metarun
from metarun.experiment import train
from metarun.run import Run
from metarun.task import select

WORDS = ["algo=wccn", "net=mlp", "net.norm=none", "episode.train.way=10", "episode.train.query=6"]


def solved(*words: str) -> tuple:
    run = Run(small(*WORDS, *words))
    run.algorithm.double().eval()
    task = select(run.episodes("train").batch([0]), 0)
    support, query = (batch._replace(x=batch.x.double()) for batch in (task.context.support, task.query))
    task = task._replace(context=task.context._replace(support=support), query=query)
    run.algorithm.calibrate([task])
    u = torch.nn.functional.normalize(run.algorithm.net(torch.cat([support.x, query.x])).detach(), dim=1)
    return run.algorithm, task, u, torch.cat([support.y, query.y])


def test_the_squared_map_is_the_inverse_of_the_shrunken_covariance() -> None:
    learner, _, u, y = solved("algo.shrinkage=0.5")
    apart = u - torch.stack([u[y == c].mean(0) for c in range(10)])[y]
    within = apart.T @ apart / len(u)
    d = len(within)
    inverse = torch.linalg.inv(torch.eye(d).double() + within / (0.5 * within.trace() / d))
    torch.testing.assert_close(learner.weight @ learner.weight.T, inverse)
    torch.testing.assert_close(learner.centre, u.mean(0))


def test_a_large_shrinkage_leaves_the_nearest_mean_of_centred_directions() -> None:
    learner, task, u, y = solved("algo.shrinkage=1e9")
    z = torch.nn.functional.normalize(u - u.mean(0), dim=1)
    n = len(task.context.support.y)
    means = torch.stack([z[:n][y[:n] == c].mean(0) for c in range(10)])
    logits = learner.predict(learner.begin(task.context), task.query.x)
    torch.testing.assert_close(logits, -10.0 * torch.cdist(z[n:], means) ** 2, rtol=1e-5, atol=1e-6)


def test_a_run_without_development_tasks_is_solved_all_the_same(tmp_path: Path) -> None:
    for n in (0, 2):
        train(small(*WORDS, "trainer.iterations=0", f"trainer.val_episodes={n}"), tmp_path / str(n))
    none, some = (np.load(tmp_path / str(n) / "test_scores.npy") for n in (0, 2))
    assert (none == some).all()
    assert not torch.equal((model := metarun.load(tmp_path / "0", device="cpu").algorithm).weight, torch.eye(len(model.weight)))
