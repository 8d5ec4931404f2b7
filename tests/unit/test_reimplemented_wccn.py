"""WCCN against its equations written out a second time in NumPy, on several training tasks and one that is new."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import small

from metarun.contract.measures import answers, double
from metarun.run import Run
from metarun.task import Task, select

WORDS = ["net=mlp", "net.sizes=[7]", "net.norm=none", "net.activation=tanh", "episode.train.way=8", "episode.train.query=5"]


def lengthened(rows: np.ndarray) -> np.ndarray:
    return rows / np.sqrt((rows**2).sum(1, keepdims=True))


@pytest.mark.parametrize("shrinkage", [0.2, 3.0])
def test_answers_are_distances_to_means_where_classes_vary_little(shrinkage: float) -> None:
    """AᵀA is what has to be the inverse of the shrunken covariance: A is its symmetric root here, and a triangular one there."""
    run = Run(small("algo=wccn", *WORDS, f"algo.shrinkage={shrinkage}", "algo.scale=4"))
    algorithm = run.algorithm.double()
    train: list[Task] = [select(double(run.episodes("train").batch([i])), 0) for i in range(3)]
    new = select(double(run.episodes("test").batch([0])), 0)
    algorithm.calibrate(train)
    weight, bias = (p.detach().numpy() for p in algorithm.net.parameters())

    def directions(x: torch.Tensor) -> np.ndarray:
        return lengthened(np.tanh(x.flatten(1).numpy() @ weight.T + bias))

    u, apart = [], []
    for task in train:
        rows = np.concatenate([directions(task.context.support.x), directions(task.query.x)])
        labels = torch.cat([task.context.support.y, task.query.y]).numpy()
        u += list(rows)
        apart += [row - rows[labels == label].mean(0) for row, label in zip(rows, labels)]
    centre, within = np.mean(u, 0), np.mean([np.outer(row, row) for row in apart], 0)
    values, vectors = np.linalg.eigh(np.eye(7) + within / (shrinkage * np.trace(within) / 7))
    root = vectors @ np.diag(values**-0.5) @ vectors.T

    def embedded(x: torch.Tensor) -> np.ndarray:
        return lengthened((directions(x) - centre) @ root)

    (x, y), z = new.context.support, embedded(new.query.x)
    means = [embedded(x)[y.numpy() == c].mean(0) for c in range(3)]
    wanted = np.stack([-4 * ((z - mean) ** 2).sum(1) for mean in means], 1)
    [found] = answers(algorithm, new.context, new.query.x)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9, atol=1e-9)
