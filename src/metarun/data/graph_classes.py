"""Few-shot node classification: the classes of a graph's nodes are divided, and episodes ask for nodes of classes not seen in training.
A node's features are spread over the graph beforehand, so that any method and net for vectors can be used."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge

from metarun.data.base import ImageDataset
from metarun.data.episodes import CLASSES, Split, draws, episode_keys
from metarun.data.graph import note
from metarun.data.graph_file import Arrays, made_up, read
from metarun.errors import UserError

MADE_UP = 8  # classes of the made-up graph


class GraphClasses(ImageDataset):
    """Nodes as vectors, the rows of Â^hops X with Â = D^(-½) (A + I) D^(-½), as in SGC (Wu et al. 2019, arXiv:1902.07153, equation 8).

    The whole graph is known beforehand, edges and features of the nodes of all classes, but labels of training classes alone.

    Args:
        seed: the run's; unused, so that all runs share one division of the classes.
        root, size, drop_self_loops: as of ``graph.GraphData``.
        hops: how often features are spread; 0 leaves the graph aside.
        val_classes, test_classes: how many of the classes; the others are for training.
        split_seed: shuffles the classes before that division.

    Raises:
        UserError: the file is not as described, or fewer than two classes are left for training.
    """

    def __init__(
        self,
        seed: int,
        *,
        root: str | None,
        size: Annotated[int, Ge(8)],
        drop_self_loops: bool,
        hops: Annotated[int, Ge(0)],
        val_classes: Annotated[int, Ge(1)],
        test_classes: Annotated[int, Ge(1)],
        split_seed: int,
    ) -> None:
        graph = made_up(size, MADE_UP) if root is None else read(root, drop_self_loops)
        classes = int(graph.labels.max()) + 1
        if (left := classes - val_classes - test_classes) < 2:
            raise UserError(
                f"data.val_classes={val_classes} and data.test_classes={test_classes} leave {max(left, 0)} of {classes} classes "
                "for training, which needs two; choose fewer"
            )
        features = graph.features
        for _ in range(hops):
            features = spread(features, graph.edges)
        order = draws(episode_keys(split_seed, "classes", [0]), CLASSES, (classes,))[0].argsort()
        parts = dict(zip(("val", "test", "train"), np.split(order, [val_classes, val_classes + test_classes])))
        super().__init__({name: _split(graph, features, sorted(parts[name].tolist())) for name in ("train", "val", "test")})
        self.note = note(root)

    def describe(self, split: str) -> str:
        data = self.splits[split]
        return f"{data.classes} classes, {len(data.images):,} nodes, as vectors of {data.images.shape[1]:,} numbers"


def spread(features: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """ÂX [nodes, features] of a connected graph of two nodes or more, see ``GraphClasses``."""
    both = np.concatenate([edges, edges[:, ::-1]])
    both = both[both[:, 0].argsort(kind="stable")]
    degrees = np.bincount(both[:, 0])
    scale = (degrees[:, None] + 1.0).astype(np.float32) ** -0.5
    scaled = scale * features
    neighbours: np.ndarray = np.add.reduceat(scaled[both[:, 1]], np.cumsum(degrees) - degrees)
    return scale * (neighbours + scaled)


def _split(graph: Arrays, features: np.ndarray, classes: list[int]) -> Split:
    """The nodes of these classes, class by class."""
    rows = [np.flatnonzero(graph.labels == c) for c in classes]
    counts = np.array([len(found) for found in rows], np.int64)
    return Split(torch.from_numpy(features[np.concatenate(rows)]), np.cumsum(counts) - counts, counts, [f"class {c}" for c in classes])
