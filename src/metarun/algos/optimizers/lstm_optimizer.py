"""Gradient descent as an LSTM: a small recurrent net, the same for every coordinate, turns gradients into updates.
Andrychowicz et al. 2016, "Learning to learn by gradient descent by gradient descent", arXiv:1606.04474."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from metarun import inner
from metarun.algos.optimizers._gates import Gates
from metarun.algos.optimizers._learned import LearnedOptimizer
from metarun.algos.optimizers._scratch import Fast, flat, shaped
from metarun.nets.base import Net
from metarun.nets.lstm import LSTMCell
from metarun.problem import Problem


class Past(NamedTuple):
    """What the cells remember of the steps before."""

    outputs: Tensor  # h [cells, coordinates, hidden]
    cells: Tensor  # c [cells, coordinates, hidden]
    gates: Tensor | tuple[()]  # [2, coordinates], see ``Gates``


class LSTMOptimizer(LearnedOptimizer):
    """LSTM optimizer.

        (u_k, h_{k+1}) = LSTM_ω(pre(∇f(θ_k)), h_k),   θ_{k+1} = θ_k + scale · u_k            (section 2, for every coordinate alike)
        min_ω  mean over tasks of Σ_k f(θ_k)                                                (equation 3, all weights 1)

    Gradients are constants (the dashed edges of figure 2). Two cells, the second on top of the first, are the paper's net.

    ``output=gates`` reads gradient descent itself as the last cell: its state is the weights, its input gate the rate, its forget gate
    the decay (Ravi & Larochelle 2017, see ``Gates``). With one layer that cell is all, and its gates see the gradient; with two, a cell
    below it remembers past gradients for it.

    Deviations: (1) The loss that is summed is that of the query, which for ``data=quadratics`` is the function itself. (2) The last layer
    begins at a tenth of torch's size, so that training begins with small steps.

    Args:
        net, problem, settings: as of ``LearnedOptimizer``.
        hidden: units of a cell.
        layers: cells on top of each other.
        scale: of the updates: 1 for quadratics, 0.01 for nets; with ``output=gates`` the rate is the gate's.
        preprocess: p of section 3's footnote: gradients come as the logarithm of their size over p, and their sign; at most 80,
            as eᵖ is a number of float32; 0: as they are.
        output: ``update``, which is added to the weights, or ``gates``, see above.
    """

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        hidden: Annotated[int, Ge(1)],
        layers: Annotated[int, Ge(1)],
        scale: Annotated[float, Gt(0)],
        preprocess: Annotated[float, Ge(0), Le(80)],
        output: Literal["update", "gates"] = "update",
        **settings: Any,
    ) -> None:
        super().__init__(net, problem, **settings)
        self.hidden, self.scale, self.preprocess, self.output = hidden, scale, preprocess, output
        gated = output == "gates"
        sizes = [2 if preprocess else 1, *[hidden] * layers]  # of what each cell sees, and of what the last layer does
        self.cells = nn.ModuleList(LSTMCell(size + hidden, hidden) for size in sizes[: layers - gated])
        if gated:
            self.gates = Gates(sizes[layers - 1])
            return
        self.update = nn.Linear(hidden, 1)
        with torch.no_grad():
            for weight in self.update.parameters():
                weight.mul_(0.1)

    def remember(self, fast: Fast) -> Past:
        weights = flat(fast)
        none = weights.new_zeros(len(self.cells), len(weights), self.hidden)
        return Past(none, none, self.gates.begin(weights) if self.output == "gates" else ())

    def advance(self, fast: Fast, grads: Fast, memory: Past, k: int | Tensor) -> tuple[Fast, Past]:
        weights, gradient = flat(fast), flat(grads)
        x, outputs, cells = self.inputs(gradient), [], []
        for cell, output, before in zip(self.cells, memory.outputs, memory.cells):
            x, inside = cell(torch.cat([x, output], -1), before)
            outputs.append(x)
            cells.append(inside)
        if outputs:
            memory = memory._replace(outputs=torch.stack(outputs), cells=torch.stack(cells))
        if isinstance(memory.gates, Tensor):
            weights, gates = self.gates(x, weights, gradient, memory.gates)
            return shaped(weights, fast), memory._replace(gates=gates)
        return shaped(weights + self.scale * self.update(x).squeeze(-1), fast), memory

    def inputs(self, gradient: Tensor) -> Tensor:
        """A gradient [coordinates] as the first cell sees it, [coordinates, 1 or 2]."""
        return inner.log_and_sign(gradient, self.preprocess) if self.preprocess else gradient[:, None]
