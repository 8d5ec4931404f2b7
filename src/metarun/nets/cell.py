"""Cells: small graphs whose edges are operations to be chosen; as a net of chosen ones, or, before the choice, as a mixture of all.
The space of NAS-Bench-201 (Dong & Yang 2020, arXiv:2001.00326), relaxed as by DARTS (Liu, Simonyan, Yang 2019, arXiv:1806.09055)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, reduce
from math import prod
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, MinLen
from torch import Tensor, nn

from metarun.errors import nearest
from metarun.nets.base import Net, image_shape
from metarun.nets.conv import Conv
from metarun.nets.conv4 import Block
from metarun.nets.norm import Norm, NormKind

Operation = Literal["none", "skip", "conv1", "conv3", "pool"]
OPERATIONS: tuple[Operation, ...] = ("none", "skip", "conv1", "conv3", "pool")
KERNELS = {"conv1": 1, "conv3": 3}
NODES = 4
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))  # from node to node, in the order of a genotype's words


class Edge(nn.Module):
    """Operations side by side, maps [n, channels, h, w] to maps of the same shape.

    ``none`` is 0, ``skip`` the input, ``pool`` the mean of 3x3 places; ``conv1`` and ``conv3`` are [ReLU, convolution, norm].

    Args:
        operations: those there are.
        channels: of the maps.
        norm: see ``Norm``.
    """

    def __init__(self, operations: Sequence[str], channels: int, norm: NormKind) -> None:
        super().__init__()
        self.operations = tuple(operations)
        kernels = {name: KERNELS[name] for name in operations if name in KERNELS}
        self.convs = nn.ModuleDict({name: Conv(channels, channels, kernel, bias=norm == "none") for name, kernel in kernels.items()})
        self.norms = nn.ModuleDict({name: Norm(channels, norm) for name in kernels})

    def forward(self, node: Node, n_support: int | None, shares: Tensor | None) -> Tensor:
        """Σ_o share_o · o(x); ``shares`` [operations], or None where there is one operation only."""
        made = {i: self.operate(name, node, n_support) for i, name in enumerate(self.operations) if name != "none"}
        return added([out if shares is None else shares[i].to(out.dtype) * out for i, out in made.items()], node.x)

    def operate(self, name: str, node: Node, n_support: int | None) -> Tensor:
        """What the operation of that name makes of a node."""
        if name in ("skip", "pool"):
            return node.x if name == "skip" else node.pooled
        made: Tensor = self.norms[name](self.convs[name](node.rectified), n_support)
        return made


class Node:
    """A map x [n, channels, h, w], and what edges from it have in common, each made when it is first asked for."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    @cached_property
    def rectified(self) -> Tensor:
        """ReLU of x."""
        return F.relu(self.x)

    @cached_property
    def pooled(self) -> Tensor:
        """The mean of 3x3 places."""
        return neighbourhood_sum(self.x) / neighbourhood_sum(torch.ones_like(self.x[:1, :1]))


def added(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    """The sum of the parts; zeros where there is none."""
    return reduce(torch.add, parts) if parts else torch.zeros_like(like)


def neighbourhood_sum(x: Tensor) -> Tensor:
    """The sum over 3x3 places around each of x [n, channels, h, w], 0 beyond the borders; by shifts, whose derivatives are shifts, too."""
    rows, columns = F.pad(x, [0, 0, 1, 1]), x.shape[-1]
    x = rows[..., :-2, :] + rows[..., 1:-1, :] + rows[..., 2:, :]
    x = F.pad(x, [1, 1])
    return x[..., :columns] + x[..., 1 : columns + 1] + x[..., 2:]


class Stage(nn.Module):
    """A block of Conv-4, which halves the map, and cells: node 0 is the input, every other the sum of its edges, the last the output."""

    def __init__(self, channels_in: int, channels: int, cells: int, edges: Sequence[Sequence[str]], down: str, norm: NormKind) -> None:
        super().__init__()
        self.block = Block(channels_in, channels, down, norm)
        self.cells = nn.ModuleList(nn.ModuleList(Edge(names, channels, norm) for names in edges) for _ in range(cells))

    def forward(self, x: Tensor, n_support: int | None, shares: Tensor | None) -> Tensor:
        """[n, channels_in, h, w] -> [n, channels, h/2, w/2]; ``shares`` [edges, operations] as of ``Edge``."""
        x = self.block(x, n_support)
        for cell in self.cells:
            nodes = [Node(x)]
            for node in range(1, NODES):
                into = [(i, start, cell[i]) for i, (start, end) in enumerate(EDGES) if end == node]  # type: ignore[index]
                parts = [edge(nodes[start], n_support, None if shares is None else shares[i]) for i, start, edge in into]
                nodes.append(Node(added(parts, x)))
            x = nodes[-1].x
        return x


class Cell(Net):
    """A net of cells, all of which are alike.

        stages of [block of Conv-4, which halves the map; cells], a norm, ReLU
        edge (i, j) of a cell:   Σ_o softmax(α_ij)_o · o(x_i)   before the choice (arXiv:1806.09055, equation 2), o_ij(x_i) after it

    Without a genotype the net is the mixture of all operations, and α is a parameter like others, ``mixture``; ``algo=darts`` searches
    by it. The parts of a chosen net have the names that they have in the mixture, so that ``init_from`` can begin with those weights.

    Deviations from NAS-Bench-201: (1) A stage begins with a block of Conv-4 in place of a residual one, and the first one is the stem.
    (2) All stages are equally wide. From DARTS: (3) its cells have two inputs and learned choices of edges; here all six edges stay.
    (4) Norms have scale and shift in the mixture, too, as inner loops adapt them. (5) α begins at 0, not at small random numbers.

    Args:
        input_shape: (channels, height, width).
        hidden: filters everywhere.
        stages: how many; each halves height and width.
        cells: in every stage.
        operations: that an edge may be, of ``OPERATIONS``, before the choice.
        genotype: null, or the operations of the edges 0→1, 0→2, 1→2, 0→3, 1→3, 2→3, as in ``conv3-skip-none-conv1-conv3-pool``; a
            configuration may name a run in its place (``settled``).
        down: how a stage halves the map, ``pool`` (max-pool 2x2, odd borders cut) or ``stride`` (stride 2, odd borders kept).
        flatten: features are the flattened last map; false: its mean over space.
        norm: see ``Norm``.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        *,
        hidden: Annotated[int, Ge(1)],
        stages: Annotated[int, Ge(1)],
        cells: Annotated[int, Ge(1)],
        operations: Annotated[list[Operation], MinLen(1)],
        genotype: str | None,
        down: Literal["pool", "stride"],
        flatten: bool,
        norm: NormKind,
    ) -> None:
        super().__init__()
        channels, *sides = image_shape(input_shape, "cell")
        self.norm, self.flatten, self.modulated = norm, flatten, "last"
        self.operations, self.genotype = tuple(operations), genotype
        edges: list[Sequence[str]] = [list(operations)] * len(EDGES)
        if genotype is None:
            self.mixture = nn.Parameter(torch.zeros(len(EDGES) * len(operations)))
            self.architecture = "mixture"
        else:
            edges = [[name] for name in parsed(genotype)]
        self.stages = nn.ModuleList(Stage(hidden if i else channels, hidden, cells, edges, down, norm) for i in range(stages))
        self.last = Norm(hidden, norm)
        for _ in self.stages:
            sides = [side // 2 if down == "pool" else (side + 1) // 2 for side in sides]
        if not all(sides):
            raise ValueError(
                f"net=cell with net.stages={stages} needs images of at least {2**stages}x{2**stages} pixels, these are "
                f"{input_shape[1]}x{input_shape[2]}"
            )
        self.map_shape = (hidden, sides[0], sides[1]) if flatten else (hidden, 1, 1)
        self.features = prod(self.map_shape)

    def layers(self, x: Tensor, n_support: int | None) -> Tensor:
        shares = self.mixture.view(len(EDGES), -1).softmax(1) if self.architecture else None
        for stage in self.stages:
            x = stage(x, n_support, shares)
        x = F.relu(self.last(x, n_support))
        return x.flatten(1) if self.flatten else x.mean((2, 3))

    def monitored(self) -> dict[str, Tensor]:
        if not self.architecture:
            return {}
        logs = self.mixture.detach().view(len(EDGES), -1).log_softmax(1)
        chosen = choices(self.mixture, self.operations)
        skips = torch.stack([chosen == i for i, name in enumerate(self.operations) if name == "skip"] or [chosen < 0])
        return {"entropy": -(logs.exp() * logs).sum(1).mean(), "skips": skips.to(logs.dtype).sum()}

    def found(self) -> dict[str, Any]:
        if not self.architecture:
            return {}
        genotype = derived(self.mixture, self.operations)
        skips = genotype.split("-").count("skip")
        return {"genotype": genotype, "skips": skips, "collapsed": 2 * skips > len(EDGES)}

    @classmethod
    def settled(cls, settings: Mapping[str, Any], weights_of: Callable[[str, str], dict[str, Tensor]]) -> dict[str, Any]:
        """A run in place of the genotype becomes what that run found.

        Raises:
            UserError: from ``weights_of``, there is no such run.
            ValueError: that run's net is no mixture of these operations.
        """
        source = settings.get("genotype")
        if source is None or not names_a_folder(source):
            return dict(settings)
        weights, operations = weights_of("net.genotype", source).get("mixture"), settings["operations"]
        if weights is None or weights.numel() != len(EDGES) * len(operations):
            raise ValueError(
                f"net.genotype={source} is not possible: that run's net is no mixture of net.operations={operations}; name a run of "
                "net=cell with net.genotype=null and the same operations, such as one of algo=darts"
            )
        return {**settings, "genotype": derived(weights, operations)}


def names_a_folder(text: str) -> bool:
    """Whether a text is meant for a folder, and not for a genotype, maybe with a slip in it."""
    return "/" in text or not any(name in OPERATIONS for name in text.split("-"))


def parsed(genotype: str) -> list[str]:
    """The operations of all edges.

    Raises:
        ValueError: the text is no genotype.
    """
    names = genotype.split("-")
    if unknown := [name for name in names if name not in OPERATIONS]:
        raise ValueError(
            f"net.genotype={genotype} is not possible: '{unknown[0]}' is no operation{nearest(unknown[0], OPERATIONS)} (known: "
            f"{', '.join(OPERATIONS)}; or name a run's folder)"
        )
    if len(names) != len(EDGES):
        raise ValueError(f"net.genotype={genotype} has {len(names)} operations, and a cell {len(EDGES)} edges: write one for each")
    return names


def spelled(word: Sequence[int]) -> str:
    """The genotype of a word [edges] of places in ``OPERATIONS``."""
    return "-".join(OPERATIONS[i] for i in word)


def choices(mixture: Tensor, operations: Sequence[str]) -> Tensor:
    """The places [edges] among ``operations`` that architecture weights α [edges * operations] lead to: the largest, leaving out ``none``.

    As in section 2.4: α of ``none`` scales what an edge gives, whatever the others are, so that its size says nothing of them.
    """
    table = mixture.detach().view(len(EDGES), len(operations))
    left_out = torch.tensor([name == "none" and len(operations) > 1 for name in operations], device=table.device)
    return torch.where(left_out, -torch.inf, table).argmax(1)


def derived(mixture: Tensor, operations: Sequence[str]) -> str:
    """The genotype of ``choices``."""
    return "-".join(operations[i] for i in choices(mixture, operations).tolist())
