"""Cora, Cora-ML and Polblogs, where a checkout has them beside it: the largest components that papers report, and a division of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from metarun.data.graph import GraphData
from metarun.errors import UserError
from metarun.problem import EpisodeSpec
from metarun.task import select

FOLDER = Path(__file__).parents[3] / "shared" / "graphs"
pytestmark = [pytest.mark.real, pytest.mark.skipif(not FOLDER.is_dir(), reason="no shared/graphs beside the checkout")]


def load(name: str, drop_self_loops: bool = False) -> GraphData:
    root = str(FOLDER / f"{name}.npz")
    return GraphData(0, root=root, size=8, labelled=0.1, validation=0.1, drop_self_loops=drop_self_loops, binary=False)


@pytest.mark.parametrize(("name", "counts"), [("cora", (2485, 5069, 1433, 7)), ("cora_ml", (2810, 7981, 2879, 7))])
def test_counts_and_a_division(name: str, counts: tuple[int, ...]) -> None:
    data = load(name)
    edges, features, labels = data.arrays
    assert (len(labels), len(edges), features.shape[1], data.classes) == counts
    task = select(data.episodes("test", EpisodeSpec(way=1, shot=1, query=1), 0).batch([0]), 0)
    shares = [len(x) / len(labels) for x in (task.context.support.x, task.context.extras["validation"], task.query.x)]
    assert shares == pytest.approx([0.1, 0.1, 0.8], abs=0.002)
    assert task.context.shared.adjacency().sum() == 2 * len(edges)


def test_polblogs_has_self_loops_and_no_features() -> None:
    with pytest.raises(UserError, match=r"3 links lead from a node to itself, from node \d+ first"):
        load("polblogs")
    edges, features, labels = load("polblogs", drop_self_loops=True).arrays
    assert (len(labels), len(edges), features.shape) == (1222, 16714, (1222, 1222))
