"""A graph whose nodes have features and classes: a task is a random division of its nodes into labelled, validation and unlabelled ones.
The graph itself lies once in ``Context.shared``; examples are numbers of nodes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Gt
from torch import Tensor

from metarun.data.base import Dataset
from metarun.data.episodes import Episodes, draws, episode_keys, task_keys
from metarun.data.graph_file import Arrays, made_up, read
from metarun.errors import UserError
from metarun.problem import EpisodeSpec, Kind, NodeClassification
from metarun.task import Batch, Context, Task

NODES = 41  # stream of draws, apart from those of other data


class Graph(NamedTuple):
    """An undirected graph without self-loops. Its edges are those of ``edges``, but for the pairs of ``flips``, which have none for one."""

    edges: Tensor  # [edges, 2] int64, nodes i < j, every pair once
    features: Tensor  # [nodes, features]
    flips: Tensor  # [flips, 2] int64, nodes i < j, every pair once: linked if ``edges`` has them not; (0, 0) changes nothing

    def adjacency(self) -> Tensor:
        """Which nodes are linked, [nodes, nodes] bool: symmetric, nothing on the diagonal."""
        return self.pairs(self.edges) ^ self.pairs(self.flips)

    def pairs(self, pairs: Tensor) -> Tensor:
        """Pairs of nodes [n, 2] as a matrix, [nodes, nodes] bool, both ways round; a node with itself is none."""
        n = self.features.shape[0]
        there = torch.zeros(n * n, dtype=torch.bool, device=pairs.device)
        upper = there.scatter(0, pairs[:, 0] * n + pairs[:, 1], True).reshape(n, n).triu(1)
        return upper | upper.T


class NodeEpisodes(Episodes):
    """Divisions of a graph's nodes, class by class: first the labelled, then those for validation, and all others are asked for.

    Args:
        arrays: the graph.
        labelled, validation: [classes], how many nodes of each.
        split: part of every episode's identity, as is the ``seed``.
        device: where tasks appear.
    """

    def __init__(
        self, arrays: Arrays, labelled: np.ndarray, validation: np.ndarray, split: str, seed: int, device: str | torch.device
    ) -> None:
        self.arrays, self.split, self.seed, self.device = arrays, split, seed, device
        self.by_class = np.argsort(arrays.labels, kind="stable")
        counts = np.bincount(arrays.labels)
        place = np.arange(len(arrays.labels)) - np.repeat(np.cumsum(counts) - counts, counts)  # of a node in its class
        asked = np.repeat(labelled + validation, counts)
        known = np.repeat(labelled, counts)
        self.parts = [np.flatnonzero(part) for part in (place < known, (known <= place) & (place < asked), place >= asked)]
        flips = torch.zeros(0, 2, dtype=torch.int64)
        tensors = map(torch.from_numpy, (arrays.edges, arrays.features))
        self.graph = Graph(*(tensor.to(device) for tensor in (*tensors, flips)))

    def nodes(self, indices: Sequence[int]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Keys [B] uint64, and the labelled, validation and unlabelled nodes [B, n] int64 of these episodes, each grouped by class."""
        keys = episode_keys(self.seed, self.split, indices)
        labels = self.arrays.labels[self.by_class]
        order = (labels + draws(keys, NODES, labels.shape)).argsort(-1)  # within every class
        return keys, [self.by_class[order[:, part]] for part in self.parts]

    def batch(self, indices: Sequence[int]) -> Task:
        keys, parts = self.nodes(indices)
        labels = torch.from_numpy(self.arrays.labels)
        support, validation, query = (
            Batch(x.to(self.device), labels[x].to(self.device)) for x in map(torch.from_numpy, map(np.ascontiguousarray, parts))
        )
        classes = torch.arange(int(labels.max()) + 1, device=self.device).expand(len(keys), -1)
        extras = {"validation": validation.x, "validation_y": validation.y}
        return Task(Context(support, classes, task_keys(keys).to(self.device), extras, self.graph), query)

    def identity(self, indices: Sequence[int]) -> bytes:
        return np.concatenate(self.nodes(indices)[1], 1).astype("<i8").tobytes()

    def content(self) -> bytes:
        digest = hashlib.sha256()
        for array in self.arrays[:3]:
            digest.update(f"{array.shape} {array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
        return digest.digest()

    def bounds(self, n: int) -> dict[str, np.ndarray]:
        """The error of who takes every node for one of the largest class."""
        labels = self.arrays.labels
        return {"trivial": np.array([(labels[nodes] != np.bincount(labels).argmax()).mean() for nodes in self.nodes(range(n))[1][2]])}


class GraphData(Dataset):
    """One graph, its largest component, from a file or made up.

    Training, development and test tasks are independent divisions of the same nodes.

    Args:
        seed: the run's; unused, since every division is a function of the seed handed to ``episodes``.
        root: a file, see ``graph_file.read``; None for a small made-up graph, see ``graph_file.made_up``.
        size: nodes of each class of the made-up graph, before its largest component is taken.
        labelled, validation: nodes of each class: below 1 a share of them (at least one), from 1 on a number.
        drop_self_loops: leave out an edge from a node to itself, in place of refusing the file.
        binary: features are 1 where they are not 0, as step sizes of the attacks' papers presuppose.

    Raises:
        UserError: the file is not as described, or a class has too few nodes.
    """

    kind: Kind = NodeClassification()
    splits = ("train", "val", "test")

    def __init__(
        self,
        seed: int,
        *,
        root: str | None,
        size: Annotated[int, Ge(8)],
        labelled: Annotated[float, Gt(0)],
        validation: Annotated[float, Gt(0)],
        drop_self_loops: bool,
        binary: bool,
    ) -> None:
        self.arrays = made_up(size) if root is None else read(root, drop_self_loops)
        if binary:
            self.arrays = self.arrays._replace(features=(self.arrays.features != 0).astype(np.float32))
        counts = np.bincount(self.arrays.labels)
        self.labelled, self.validation = (
            np.maximum(1, np.round(n * counts)).astype(int) if n < 1 else np.full_like(counts, n) for n in (labelled, validation)
        )
        asked = counts - self.labelled - self.validation
        short = int(asked.argmin())
        if asked[short] < 1:
            raise UserError(
                f"data.labelled={labelled:g} and data.validation={validation:g} leave no node of class {short} to be asked for: "
                f"it has {counts[short]} in the largest component; choose fewer"
            )
        self.note = note(root)
        self.kind, self.classes = NodeClassification(len(counts)), len(counts)
        self.input_shape = self.arrays.features.shape[1:]
        shot, query = (max(1, round(nodes.mean())) for nodes in (self.labelled, asked))
        self.fixed_spec = EpisodeSpec(way=len(counts), shot=shot, query=query, uneven=True)

    def episodes(self, split: str, spec: EpisodeSpec, seed: int, device: str | torch.device = "cpu") -> NodeEpisodes:
        """Divisions of the nodes, whatever ``spec`` says: ``fixed_spec`` is their shape in the mean over classes."""
        self.check_split(split)
        return NodeEpisodes(self.arrays, self.labelled, self.validation, split, seed, device)

    def describe(self, split: str) -> str:
        arrays = self.arrays
        return f"a graph of {len(arrays.labels):,} nodes and {len(arrays.edges):,} edges, {self.classes} classes"


def note(root: str | None) -> str:
    """What a graph's file is called in reports, ``cora_ml``; nothing for a made-up one."""
    return re.sub(r"[^\w .+-]", "_", Path(root).stem) if root else ""
