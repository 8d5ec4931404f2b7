"""The graph network: rows of the adjacency, blindness to the support's order, queries that do not meet, the convolution itself."""

from __future__ import annotations

import torch
from helpers import in_float64, small
from torch import Tensor

from metarun.algos.metric.gnn import GNN, GraphLayer
from metarun.task import Batch, Task, select

F64 = torch.float64


def gnn() -> tuple[GNN, Task]:
    algorithm, tasks = in_float64(small("algo=gnn", "net.hidden=8", "net.norm=none"), tasks=1)
    assert isinstance(algorithm, GNN)
    return algorithm, select(tasks, 0)


def nodes() -> Tensor:
    return torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=F64)


def layer() -> GraphLayer:
    torch.manual_seed(0)
    return GraphLayer(7, 4, 6, 3).double()


def test_rows_of_the_adjacency_sum_to_one_and_no_node_sees_itself() -> None:
    weights = layer().adjacency(nodes(), 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5, dtype=F64))
    assert not weights.diagonal(dim1=1, dim2=2).any()
    assert bool((weights + torch.eye(5) > 0).all())


def test_with_zero_edge_weights_attention_falls_with_the_distance_of_embeddings() -> None:
    graph, values = layer(), nodes()
    for parameter in graph.edges.parameters():
        parameter.data.zero_()
    embeddings = values[..., :3]
    scores = -(torch.cdist(embeddings, embeddings) ** 2) - torch.diag(torch.full((5,), torch.inf, dtype=F64))
    torch.testing.assert_close(graph.adjacency(values, 5), scores.softmax(-1))


def test_the_convolution_mixes_a_node_and_its_neighbours() -> None:
    graph, values = layer(), nodes()
    neighbours = graph.adjacency(values, 5) @ values
    own, others = graph.mix.weight.chunk(2, dim=1)
    torch.testing.assert_close(graph(values, 5), values @ own.T + neighbours @ others.T + graph.mix.bias)


def test_permuting_the_support_nodes_leaves_the_query_as_it_is() -> None:
    algorithm, task = gnn()
    x, y = task.context.support
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    shuffled = task.context._replace(support=Batch(x[order], y[order]))
    before, after = (algorithm.predict(algorithm.begin(context), task.query.x) for context in (task.context, shuffled))
    torch.testing.assert_close(after, before)


def test_a_query_is_unlabelled_and_alone_in_its_graph() -> None:
    algorithm, task = gnn()
    seen: list[Tensor] = []
    algorithm.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    algorithm.predict(algorithm.begin(task.context), task.query.x)
    assert seen[0].shape[:2] == (6, 7)  # six queries, each with six support nodes
    labels = seen[0][..., -3:]
    torch.testing.assert_close(labels[:, 0], torch.full((6, 3), 1 / 3, dtype=F64))
    torch.testing.assert_close(labels[:, 1:], torch.eye(3, dtype=F64)[task.context.support.y].expand(6, -1, -1))
