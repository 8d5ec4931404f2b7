"""Few-shot learning on a graph: support and query are its nodes, and labels flow along edges that are learned.
Garcia & Bruna 2018, arXiv:1711.04043."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from metarun import inner
from metarun.algorithm import Algorithm, Footprint
from metarun.nets.base import Net
from metarun.nets.norm import Norm
from metarun.problem import Problem
from metarun.task import Context, Task


class Nodes(NamedTuple):
    """The nodes that every query's graph shares."""

    values: Tensor  # [way * shot, features + way]: embedding and label
    support_x: Tensor  # [way * shot, *input_shape], for nets that normalise queries by the support


class GNN(Algorithm):
    """Graph neural network.

    Each query has a graph of its own, with the support: nodes [f(x_i), one-hot label], the query's label being uniform.

        A_ij = softmax_j of MLP(|v_i − v_j|), without i = j            (equation 5, 6)
        v ← [v, LReLU(norm(W [v, A v]))]   ``layers`` times, then logits = W [v, A v] of the query      (equation 4)

    Deviations: (1) The MLP on edges has two hidden layers; the authors' has four. (2) Norms act on the nodes or edges of one graph,
    where the authors' batch norms mix queries and tasks. (3) −‖f(x_i) − f(x_j)‖² is added to the MLP's score: edges begin as
    attention to what is near, without which training begins with a long plateau.

    Args:
        net, problem: the backbone and the data's shape.
        layers: before the one that answers.
        width: what a layer adds to a node.
        hidden: width of the MLP on edges.
    """

    kinds = frozenset({"classification"})
    fixed_way = True
    label_dependent = True
    encodes = True

    def __init__(
        self, net: Net, problem: Problem, *, layers: Annotated[int, Ge(0)], width: Annotated[int, Ge(1)], hidden: Annotated[int, Ge(1)]
    ) -> None:
        super().__init__(net, problem)
        first = net.features + problem.outputs
        self.layers = nn.ModuleList(GraphLayer(first + i * width, width, hidden, net.features) for i in range(layers))
        self.norms = nn.ModuleList(GraphNorm(width) for _ in range(layers))
        self.answer = GraphLayer(first + layers * width, problem.outputs, hidden, net.features)
        self.edge_bytes = 4 * (first + layers * width + 6 * hidden)  # of an edge of a graph, and what the MLP makes of it

    def footprint(self, task: Task, train: bool) -> Footprint:
        # A graph of its own for each query.
        return super().footprint(task, train)._replace(bytes=len(task.query.y) * (self.problem.most_support + 1) ** 2 * self.edge_bytes)

    def begin(self, context: Context) -> Nodes:
        x, y = context.support
        features = inner.upcast(self.net(x, x))
        return Nodes(torch.cat([features, inner.one_hot(y, self.problem.outputs).to(features.dtype)], 1), x)

    def predict(self, state: Nodes, x: Tensor) -> Tensor:
        features = inner.upcast(self.net(x, state.support_x))
        unknown = torch.full_like(features[:, :1], 1 / self.problem.outputs).expand(-1, self.problem.outputs)
        query = torch.cat([features, unknown], 1)
        nodes = torch.cat([query[:, None], state.values.expand(x.shape[0], -1, -1)], 1)
        for layer, norm in zip(self.layers, self.norms):
            nodes = torch.cat([nodes, F.leaky_relu(norm(layer(nodes, nodes.shape[1])))], -1)
        return self.answer(nodes, 1).squeeze(1)


class GraphNorm(nn.Module):
    """Statistics of each graph alone, over its nodes or edges, so that distances keep their relation: [n, *nodes, width] to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = Norm(width, "instance")

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(-1, 1)).movedim(1, -1)


class GraphLayer(nn.Module):
    """A graph convolution with the operators identity and learned adjacency.

    Args:
        width_in, width_out: numbers of a node before and after.
        hidden: width of the MLP on edges.
        features: how many numbers of a node, its first ones, are the embedding.
    """

    def __init__(self, width_in: int, width_out: int, hidden: int, features: int) -> None:
        super().__init__()
        self.features = features
        self.edges = nn.ModuleList([nn.Linear(width_in, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 1)])
        self.norms = nn.ModuleList(GraphNorm(hidden) for _ in range(2))
        self.mix = nn.Linear(2 * width_in, width_out)

    def adjacency(self, nodes: Tensor, rows: int) -> Tensor:
        """[n, rows, v] of graphs with nodes [n, v, width_in]: for the first ``rows`` nodes, the weights of the others."""
        differences = nodes[:, :rows, None] - nodes[:, None]
        edges = differences.abs()
        for linear, norm in zip(self.edges, self.norms):
            edges = F.leaky_relu(norm(linear(edges)))
        scores = inner.upcast(self.edges[-1](edges)).squeeze(-1) - differences[..., : self.features].square().sum(-1)
        itself = torch.eye(nodes.shape[1], dtype=torch.bool, device=nodes.device)[:rows]
        return scores.masked_fill(itself, -torch.inf).softmax(-1)

    def forward(self, nodes: Tensor, rows: int) -> Tensor:
        """[n, rows, width_out]: the first ``rows`` nodes of graphs [n, v, width_in] after the convolution."""
        return self.mix(torch.cat([nodes[:, :rows], self.adjacency(nodes, rows) @ nodes], -1))
