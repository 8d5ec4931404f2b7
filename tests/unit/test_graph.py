"""Graphs: the file and what is wrong with one, the largest component, the matrix of links, divisions of the nodes; node classification."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from metarun.data.graph import Graph, GraphData
from metarun.data.graph_file import largest_component, made_up
from metarun.errors import UserError
from metarun.problem import EpisodeSpec, NodeClassification, Problem
from metarun.task import select

SPEC = EpisodeSpec(way=1, shot=1, query=1)
DEFAULTS: dict[str, Any] = {"root": None, "size": 40, "labelled": 0.1, "validation": 0.1, "drop_self_loops": False, "binary": False}


def sparse(name: str, matrix: np.ndarray) -> dict[str, np.ndarray]:
    """A dense matrix in CSR form, as such files have it."""
    rows, columns = matrix.nonzero()
    indptr = np.concatenate([[0], np.cumsum((matrix != 0).sum(1))]).astype(np.int32)
    parts = {"data": matrix[rows, columns], "indices": columns.astype(np.int32), "indptr": indptr, "shape": np.array(matrix.shape)}
    return {f"{name}_{part}": array for part, array in parts.items()}


def two_rings() -> dict[str, np.ndarray]:
    """A ring of twelve nodes, every link written down one way round, and apart from it a ring of four."""
    links = np.zeros((16, 16), np.float32)
    for first, size in ((0, 12), (12, 4)):
        for i in range(size):
            links[first + i, first + (i + 1) % size] = 1
    features = np.arange(48, dtype=np.float32).reshape(16, 3) % 5
    return {**sparse("adj", links), **sparse("attr", features), "labels": np.array([7] * 6 + [9] * 10, np.int8)}


def stored(folder: Path, **changes: Any) -> str:
    """The path of a file of ``two_rings`` with these changes; None leaves an array out."""
    arrays = {name: array for name, array in (two_rings() | changes).items() if array is not None}
    np.savez(folder / "rings.npz", **arrays)
    return str(folder / "rings.npz")


def load(**values: Any) -> GraphData:
    return GraphData(0, **DEFAULTS | values)


def test_the_largest_component_undirected_with_classes_0_1(tmp_path: Path) -> None:
    data = load(root=stored(tmp_path), labelled=2, validation=1)
    edges, features, labels = data.arrays
    assert edges.tolist() == sorted([[0, 11], *([i, i + 1] for i in range(11))])
    np.testing.assert_array_equal(features, np.arange(36).reshape(12, 3) % 5)
    assert labels.tolist() == [0] * 6 + [1] * 6
    assert (data.classes, data.kind, data.input_shape, data.note) == (2, NodeClassification(2), (3,), "rings")
    assert data.describe("test") == "a graph of 12 nodes and 12 edges, 2 classes"
    assert data.fixed_spec == EpisodeSpec(way=2, shot=2, query=3, uneven=True)


def test_components_are_found_whatever_the_order_of_the_links() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        nodes = 40
        edges = random.integers(0, nodes, (30, 2))
        reached = np.eye(nodes, dtype=bool)
        reached[edges[:, 0], edges[:, 1]] = reached[edges[:, 1], edges[:, 0]] = True
        for _ in range(6):
            reached = reached @ reached
        assert largest_component(edges, nodes).tolist() == np.flatnonzero(reached[reached.sum(1).argmax()]).tolist()


def test_without_features_every_node_has_one_of_its_own(tmp_path: Path) -> None:
    root = stored(tmp_path, **dict.fromkeys(sparse("attr", np.eye(2))))
    np.testing.assert_array_equal(load(root=root).arrays.features, np.eye(12, dtype=np.float32))


def test_features_are_0_and_1_where_that_is_asked_for(tmp_path: Path) -> None:
    features = load(root=stored(tmp_path)).arrays.features
    np.testing.assert_array_equal(load(root=stored(tmp_path), binary=True).arrays.features, features != 0)
    assert features.max() == 4


LOOP = sparse("adj", np.eye(16, k=1) + np.diag([0] * 3 + [1] + [0] * 12))
BAD: list[tuple[str, dict[str, Any]]] = [
    ("1 links lead from a node to itself, from node 3 first; leave them out of the file, or set data.drop_self_loops=true", LOOP),
    (r"\(labels is missing\): it should be an .npz of a sparse matrix", {"labels": None}),
    (r"labels are float64 \[16\], but there are 16 nodes", {"labels": np.zeros(16)}),
    (r"labels are int64 \[3\], but there are 16 nodes", {"labels": np.zeros(3, np.int64)}),
    ("all nodes of its largest component have the label 4", {"labels": np.full(16, 4)}),
    ("adj_shape is 16 x 17, which is not square", {"adj_shape": np.array([16, 17])}),
    ("adj_indptr does not divide the 16 values of adj_data into 16 rows", {"adj_indptr": np.arange(16)}),
    ("adj_indices has columns beyond the 16", {"adj_indices": np.arange(1, 17)}),
    ("are not those of a sparse matrix", {"adj_data": np.array(["a"] * 16)}),
    ("are not those of a sparse matrix", {"adj_shape": np.array([16])}),
    ("attr_data is missing", {"attr_data": None, "attr_shape": np.array([16, 3])}),
    ("attr_shape is 2 x 2, but there are 16 nodes", sparse("attr", np.eye(2))),
    ("attr_data has values that are no finite numbers", sparse("attr", np.full((16, 1), np.nan))),
    ("too large", {"attr_shape": np.array([16, 2**40])}),
    ("is not possible .*Object arrays cannot be loaded", {"labels": np.array([None] * 16, object)}),
]


@pytest.mark.parametrize(("line", "changes"), BAD)
def test_a_bad_file_is_refused_in_one_line(line: str, changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=line) as refusal:
        load(root=stored(tmp_path, **changes))
    assert "\n" not in str(refusal.value)


def test_what_is_no_file_or_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("nodes and edges")
    with pytest.raises(UserError, match=r"File is not a zip file.*: it should be an .npz"):
        load(root=str(tmp_path / "text.npz"))
    with pytest.raises(UserError, match=r"is not a file; give an .npz"):
        load(root=str(tmp_path))


def test_self_loops_are_dropped_where_that_is_asked_for(tmp_path: Path) -> None:
    arrays = load(root=stored(tmp_path, **LOOP), drop_self_loops=True).arrays
    assert arrays.edges.tolist() == [[i, i + 1] for i in range(15)]


def test_a_division_that_leaves_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"leave no node of class 0 to be asked for: it has 6 in the largest component"):
        load(root=stored(tmp_path), labelled=5, validation=1)


def test_the_made_up_graph_is_sparse_connected_and_mostly_within_classes() -> None:
    edges, features, labels = made_up(40)
    assert len(labels) == len(features) > 150
    assert len(largest_component(edges, len(labels))) == len(labels)
    assert (edges[:, 0] < edges[:, 1]).all()
    within = (labels[edges[:, 0]] == labels[edges[:, 1]]).mean()
    assert within == pytest.approx(5 / 6, abs=0.05)


def test_flips_turn_links_on_and_off() -> None:
    edges = torch.tensor([[0, 1], [1, 2]])
    linked = Graph(edges, torch.zeros(4, 1), torch.tensor([[0, 0], [1, 2], [0, 3], [0, 0]])).adjacency()
    expected = torch.zeros(4, 4, dtype=torch.bool)
    for i, j in ((0, 1), (0, 3)):
        expected[i, j] = expected[j, i] = True
    assert torch.equal(linked, expected)
    flips = torch.stack([torch.tensor([[0, 0]]), torch.tensor([[1, 3]])])
    mapped = torch.vmap(lambda flips: Graph(edges, torch.zeros(4, 1), flips).adjacency())(flips)
    assert [int(each.sum()) for each in mapped] == [4, 6]


def test_every_class_is_divided_as_asked_and_the_graph_lies_there_once() -> None:
    data = load(labelled=0.2, validation=3)
    task = data.episodes("test", SPEC, seed=1).batch(range(3))
    context, labels = task.context, torch.from_numpy(data.arrays.labels)
    parts = [context.support.x, context.extras["validation"], task.query.x]
    assert all(torch.equal(torch.cat(nodes).sort().values, torch.arange(len(labels))) for nodes in zip(*parts))
    assert torch.equal(context.support.y, labels[context.support.x])
    assert torch.equal(context.extras["validation_y"], labels[context.extras["validation"]])
    assert torch.equal(task.query.y, labels[task.query.x])
    counts = torch.bincount(labels)
    assert torch.equal(torch.bincount(context.support.y[2]), (0.2 * counts).round().long())
    assert torch.bincount(context.extras["validation_y"][2]).tolist() == [3] * 4
    assert context.shared.edges.shape == (len(data.arrays.edges), 2)
    assert select(task, 2).context.shared is context.shared


def test_a_division_depends_on_seed_split_and_index_alone() -> None:
    data = load()
    episodes = data.episodes("test", SPEC, 0)
    assert torch.equal(episodes.batch([7, 3]).context.support.x[1], episodes.batch([3]).context.support.x[0])
    assert len({data.episodes(split, SPEC, 0).sha256(4) for split in data.splits} | {data.episodes("test", SPEC, 1).sha256(4)}) == 4
    with pytest.raises(UserError, match=r"no tests split"):
        data.episodes("tests", SPEC, 0)


def test_the_trivial_error_is_that_of_the_largest_class(tmp_path: Path) -> None:
    labels = np.array([0] * 4 + [1] * 12)
    episodes = load(root=stored(tmp_path, labels=labels), labelled=1, validation=1).episodes("test", SPEC, 0)
    assert episodes.bounds(2)["trivial"].tolist() == pytest.approx([2 / 8] * 2)


def test_other_data_have_another_digest(tmp_path: Path) -> None:
    first = load(root=stored(tmp_path)).episodes("test", SPEC, 0)
    other = load(root=stored(tmp_path, **sparse("attr", np.eye(16)))).episodes("test", SPEC, 0)
    assert first.identity([0]) == other.identity([0])
    assert first.sha256(1) != other.sha256(1)


def test_the_score_is_the_share_of_nodes_that_are_told_wrong() -> None:
    y = torch.tensor([0, 1, 1])
    logits = torch.tensor([[2.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    problem = Problem(NodeClassification(2), (3,), 2, 2, SPEC, SPEC)
    assert float(problem.score(logits, y)) == pytest.approx(1 / 3)
    assert float(problem.loss(logits, y)) == pytest.approx(float(torch.nn.functional.cross_entropy(logits, y)))
    both = torch.stack([logits, -logits], 2)  # of two models, judged one by one
    assert float(problem.score(both, y)) == pytest.approx((1 / 3 + 2 / 3) / 2)
    mean = sum(float(torch.nn.functional.cross_entropy(each, y)) for each in (logits, -logits)) / 2
    assert float(problem.loss(both, y)) == pytest.approx(mean)


def test_a_higher_error_is_better_for_an_attacker_alone() -> None:
    kind = NodeClassification(2)
    assert not Problem(kind, (3,), 2, 2, SPEC, SPEC).higher_is_better
    assert Problem(kind, (3,), 2, 2, SPEC, SPEC, attacked=True).higher_is_better


def test_yaml_holds_every_argument(request: pytest.FixtureRequest) -> None:
    values = yaml.safe_load((request.config.rootpath / "conf/data/graph.yaml").read_text())
    assert values.pop("_target_") == "metarun.data.graph.GraphData"
    assert values.pop("name") == "graph"
    assert set(values) == set(inspect.signature(GraphData).parameters) - {"seed"}
    assert values == DEFAULTS
