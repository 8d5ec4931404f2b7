"""Few-shot node classification: how features are spread, how classes are divided, and that a nearest mean then tells unseen ones."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import small

from metarun.data.graph_classes import GraphClasses, spread
from metarun.data.graph_file import made_up
from metarun.errors import UserError
from metarun.experiment import train
from metarun.problem import EpisodeSpec

DEFAULTS: dict[str, Any] = {
    "root": None,
    "size": 40,
    "drop_self_loops": False,
    "hops": 2,
    "val_classes": 2,
    "test_classes": 2,
    "split_seed": 0,
}


def load(**values: Any) -> GraphClasses:
    return GraphClasses(0, **DEFAULTS | values)


def test_features_are_spread_as_the_matrix_says() -> None:
    edges, features, labels = made_up(10)
    linked = np.eye(len(labels))
    linked[edges[:, 0], edges[:, 1]] = linked[edges[:, 1], edges[:, 0]] = 1
    half = np.diag(linked.sum(1) ** -0.5)
    np.testing.assert_allclose(spread(features, edges), half @ linked @ half @ features, rtol=1e-5, atol=1e-6)


def test_classes_are_divided_and_every_node_is_there_once() -> None:
    graph, data = made_up(40, 8), load(hops=0)
    names = {split: set(found.names) for split, found in data.splits.items()}
    assert {split: len(found) for split, found in names.items()} == {"train": 4, "val": 2, "test": 2}
    assert set.union(*names.values()) == {f"class {c}" for c in range(8)}
    assert load(split_seed=1).splits["test"].names != data.splits["test"].names
    for found in data.splits.values():
        for name, start, count in zip(found.names, found.starts, found.counts):
            rows = graph.features[graph.labels == int(name.split()[1])]
            assert torch.equal(found.images[start : start + count], torch.from_numpy(rows))
    assert data.describe("test") == f"2 classes, {len(data.splits['test'].images)} nodes, as vectors of 96 numbers"


def test_an_episode_has_vectors_of_nodes() -> None:
    task = load().episodes("test", EpisodeSpec(way=2, shot=3, query=4), 0).batch([0, 1])
    assert task.context.support.x.shape == (2, 6, 96)
    assert task.query.y.tolist() == [[0] * 4 + [1] * 4] * 2


def test_a_division_without_training_classes_is_refused() -> None:
    with pytest.raises(UserError, match=r"data.val_classes=4 and data.test_classes=3 leave 1 of 8 classes for training, which needs two"):
        load(val_classes=4, test_classes=3)


def test_unseen_classes_are_told_and_better_with_the_graph(tmp_path: Path) -> None:
    found = {}
    for hops in (0, 2):
        words = ["data=graph_classes", f"data.hops={hops}", "net=mlp", "net.sizes=[]", "algo=protonet", "way=2", "shot=2", "query=10"]
        found[hops] = train(small(*words, "trainer.test_episodes=60"), tmp_path / str(hops))["test"]["accuracy"]["mean"]
    assert found[2] > found[0] + 0.03
    assert found[2] > 0.75


def test_yaml_holds_every_argument(request: pytest.FixtureRequest) -> None:
    values = yaml.safe_load((request.config.rootpath / "conf/data/graph_classes.yaml").read_text())
    assert values.pop("_target_") == "metarun.data.graph_classes.GraphClasses"
    assert values.pop("name") == "graph_classes"
    assert set(values) == set(inspect.signature(GraphClasses).parameters) - {"seed"}
    assert values == DEFAULTS
