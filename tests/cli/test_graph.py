"""Graphs from the command line: what is wrong with a file in one line, an attack that is compared by what is better for it, a check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import assert_one_line, everything

RING = {
    "adj_data": np.ones(12),
    "adj_indices": (np.arange(12) + 1) % 12,
    "adj_indptr": np.arange(13),
    "adj_shape": np.array([12, 12]),
    "labels": np.arange(12) // 6,
}
TINY = [
    *("experiment=graph", "data.size=8", "device=cpu", "logger=quiet", "trainer.test_episodes=2", "algo=random_flips"),
    *("algo.budget=0.03", "algo.victim.test_steps=3", "algo.victim.hidden=4"),
]

BAD: list[tuple[str, dict[str, Any]]] = [
    (r"12 links lead from a node to itself, from node 0 first; .* set data.drop_self_loops=true", {"adj_indices": np.arange(12)}),
    (r"\(labels is missing\)", {"labels": None}),
    (r"\(adj_shape is 12 x 13, which is not square\)", {"adj_shape": np.array([12, 13])}),
    ("Object arrays cannot be loaded", {"adj_data": np.array([None] * 12, object)}),
]


@pytest.mark.parametrize(("line", "changes"), BAD)
def test_a_bad_graph_is_refused_in_one_line(metarun: Any, tmp_path: Path, line: str, changes: dict[str, Any]) -> None:
    np.savez("graph.npz", **{name: array for name, array in (RING | changes).items() if array is not None})
    before = everything(tmp_path)
    assert_one_line(metarun("experiment=graph data.root=graph.npz"), 2, line)
    assert everything(tmp_path) == before


def test_what_is_no_graph_at_all_is_refused_in_one_line(metarun: Any, tmp_path: Path) -> None:
    Path("graph.npz").write_bytes(b"PK, or so it says")
    assert_one_line(metarun("experiment=graph data.root=graph.npz"), 2, "data.root=graph.npz is not possible")
    assert_one_line(metarun("experiment=graph data.root=nowhere.npz"), 2, "data.root=nowhere.npz is not a file; give an .npz")
    assert_one_line(metarun("data=graph net=mlp algo=maml"), 2, "data=graph is node classification; choose another algo or data")


def test_an_attack_is_better_the_higher_the_error(metarun: Any) -> None:
    runs = [metarun(*TINY, f"hydra.run.dir={name}", f"algo.victim.lr={lr}", "--json").json for name, lr in (("a", 0.01), ("b", 0.3))]
    assert runs[0] == json.loads(Path("a/summary.json").read_text())
    assert all((run["metric"], run["higher_is_better"]) == ("error", True) for run in runs)
    groups = metarun("compare a b --json").json["groups"]
    errors = [run["test"]["error"]["mean"] for run in runs]
    assert [group["test_mean"] for group in groups] == sorted(errors, reverse=True)
    again = metarun("eval a --split val trainer.val_episodes=3 --json").json
    assert again["val"]["error"]["n"] == 3
    assert_one_line(metarun("eval a --split val"), 2, "trainer.val_episodes=0 leaves nothing to measure")


def test_a_sweep_needs_no_validation(metarun: Any) -> None:
    result = metarun("-m", *TINY, "seed=0,1", "hydra.sweep.dir=sweep")
    assert result.status == 0, result.err
    assert sorted(path.parent.name[:1] for path in Path("sweep").glob("*/summary.json")) == ["0", "1"]
