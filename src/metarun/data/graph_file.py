"""A graph from a file, or made up: its largest component, as plain arrays.
Whatever is wrong with a file ends in one line for the user; nothing in it is ever run."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from metarun.data.archive import DAMAGE, arrays
from metarun.errors import UserError

NEEDED = ("adj_data", "adj_indices", "adj_indptr", "adj_shape", "labels")
LARGEST = 2**29  # numbers of the matrices of nodes by nodes and nodes by features, which methods hold
LAYOUT = (
    "it should be an .npz of a sparse matrix in CSR form (adj_data, adj_indices, adj_indptr, adj_shape), with labels, and attr_* likewise"
)


class Arrays(NamedTuple):
    """A connected, undirected graph without self-loops."""

    edges: np.ndarray  # [edges, 2] int64, nodes i < j, every pair once, sorted
    features: np.ndarray  # [nodes, features] float32
    labels: np.ndarray  # [nodes] int64, classes 0, 1, … all of which there are


def read(root: str, drop_self_loops: bool) -> Arrays:
    """The graph of a file as gnn-benchmarks have it (``LAYOUT``); links are taken as undirected, nodes without ``attr_*`` are told apart
    by one feature each.

    Raises:
        UserError: there is no such file, it is damaged or holds something else, a node is linked to itself, or labels are missing.
    """
    path = Path(root).expanduser()
    if not path.is_file():
        raise UserError(f"data.root={root} is not a file; give an .npz with a graph, or leave data.root out for a made-up one")
    try:
        found = arrays(path, lambda name: name in NEEDED or (name.startswith("attr_") and name != "attr_names"))
    except (*DAMAGE, ValueError) as error:  # ValueError: an array of Python objects, which are never unpickled
        raise _refused(path, " ".join(str(error).split())) from None
    if missing := [name for name in NEEDED if name not in found]:
        raise _refused(path, f"{missing[0]} is missing")
    sources, targets, _, shape = _sparse(path, found, "adj")
    if shape[0] != shape[1]:
        raise _refused(path, f"adj_shape is {shape[0]} x {shape[1]}, which is not square")
    loops = sources == targets
    if loops.any() and not drop_self_loops:
        raise UserError(
            f"data.root={path} is not possible: {int(loops.sum())} links lead from a node to itself, from node {sources[loops][0]} first; "
            "leave them out of the file, or set data.drop_self_loops=true"
        )
    nodes, labels = shape[0], found["labels"]
    if labels.shape != (nodes,) or labels.dtype.kind not in "iu":
        raise _refused(path, f"labels are {labels.dtype} {list(labels.shape)}, but there are {nodes} nodes, each of which has an integer")
    edges = np.unique(np.sort(np.stack([sources, targets], 1)[~loops], 1), axis=0)
    kept = largest_component(edges, nodes)
    _bounded(path, len(kept), len(kept))
    names, classes = np.unique(labels[kept], return_inverse=True)
    if len(names) < 2:
        raise _refused(path, f"all nodes of its largest component have the label {labels[kept[0]]}" if len(kept) else "it has no nodes")
    return Arrays(renumbered(edges, kept, nodes), _features(path, found, kept, nodes), classes.astype(np.int64))


def _features(path: Path, found: dict[str, np.ndarray], kept: np.ndarray, nodes: int) -> np.ndarray:
    """The rows of the nodes that are kept, [kept, features] float32."""
    if not any(name.startswith("attr_") for name in found):
        return np.eye(len(kept), dtype=np.float32)
    rows, columns, values, shape = _sparse(path, found, "attr")
    if shape[0] != nodes:
        raise _refused(path, f"attr_shape is {shape[0]} x {shape[1]}, but there are {nodes} nodes")
    _bounded(path, *shape)
    features = np.zeros(shape, np.float32)
    features[rows, columns] = values
    if not np.isfinite(features).all():
        raise _refused(path, "attr_data has values that are no finite numbers")
    return features[kept]


def _sparse(path: Path, found: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int]]:
    """Rows, columns and values of what a sparse matrix holds, and its shape."""
    if missing := [f"{name}_{part}" for part in ("data", "indices", "indptr", "shape") if f"{name}_{part}" not in found]:
        raise _refused(path, f"{missing[0]} is missing")
    data, indices, indptr, shape = (found[f"{name}_{part}"] for part in ("data", "indices", "indptr", "shape"))
    whole = all(array.ndim == 1 and array.dtype.kind in "iu" for array in (indices, indptr, shape))
    if not (whole and len(shape) == 2 and shape.min() >= 0 and data.shape == indices.shape and data.dtype.kind in "iufb"):
        raise _refused(path, f"{name}_data, {name}_indices, {name}_indptr and {name}_shape are not those of a sparse matrix")
    counts: np.ndarray = np.diff(indptr.astype(np.int64))
    if len(indptr) != shape[0] + 1 or (counts < 0).any() or counts.sum() != len(data) or indptr[0] != 0:
        raise _refused(path, f"{name}_indptr does not divide the {len(data)} values of {name}_data into {shape[0]} rows")
    if len(indices) and not (indices.min() >= 0 and indices.max() < shape[1]):
        raise _refused(path, f"{name}_indices has columns beyond the {shape[1]} of {name}_shape")
    there = data != 0
    rows = np.repeat(np.arange(len(counts)), counts)
    return rows[there], indices[there].astype(np.int64), data[there], (int(shape[0]), int(shape[1]))


def _bounded(path: Path, rows: int, columns: int) -> None:
    if rows * columns > LARGEST:
        raise _refused(path, f"a matrix of {rows:,} x {columns:,} numbers is too large for methods that hold it whole")


def _refused(path: Path, why: str) -> UserError:
    return UserError(f"data.root={path} is not possible ({why}): {LAYOUT}")


def largest_component(edges: np.ndarray, nodes: int) -> np.ndarray:
    """The nodes of the largest connected component, ascending; of several, that of the lowest node.

    Every node takes the lowest number among its neighbours' and of who has that number, until nothing changes.
    """
    lowest = np.arange(nodes)
    while True:
        before = lowest.copy()
        np.minimum.at(lowest, edges[:, 0], lowest[edges[:, 1]])
        np.minimum.at(lowest, edges[:, 1], lowest[edges[:, 0]])
        lowest = lowest[lowest]
        if (lowest == before).all():
            return np.flatnonzero(lowest == np.bincount(lowest, minlength=1).argmax())


def renumbered(edges: np.ndarray, kept: np.ndarray, nodes: int) -> np.ndarray:
    """The edges among the nodes ``kept``, a component, which are numbered 0, 1, …"""
    place = np.full(nodes, -1)
    place[kept] = np.arange(len(kept))
    return place[edges[np.isin(edges[:, 0], kept)]]


def made_up(size: int, classes: int = 4, inside: float = 5.0, outside: float = 1.0, words: int = 12) -> Arrays:
    """A stochastic block model, the same every time: ``classes`` groups of ``size`` nodes, whose features are words.

    A node has on average ``inside`` neighbours in its group and ``outside`` in others. Of the ``words`` words that belong to a group its
    nodes have each with probability 0.25, other nodes with 0.1.
    """
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), size)
    same = labels[:, None] == labels
    linked = np.triu(random.random(same.shape) < np.where(same, inside / size, outside / (size * (classes - 1))), 1)
    own = labels[:, None] == np.repeat(np.arange(classes), words)
    features = (random.random(own.shape) < np.where(own, 0.25, 0.1)).astype(np.float32)
    edges = np.argwhere(linked)
    kept = largest_component(edges, len(labels))
    return Arrays(renumbered(edges, kept, len(labels)), features[kept], labels[kept])
