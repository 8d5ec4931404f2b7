"""An LSTM with an external memory that is written where it has been used least: memory-augmented neural networks.
Santoro, Bartunov, Botvinick, Wierstra, Lillicrap 2016, arXiv:1605.06065."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

from metarun import inner
from metarun.algos.blackbox._reader import RecurrentReader
from metarun.nets.base import Net
from metarun.nets.lstm import LSTMCell
from metarun.problem import Problem

EMPTY = 1e-6  # what slots begin with: a cosine with zeros is none


class Memory(NamedTuple):
    """What the reader goes on with: its LSTM, and the slots beside it."""

    output: Tensor  # h [hidden]
    cell: Tensor  # c [hidden]
    slots: Tensor  # M [slots, width]
    keys: Tensor  # k [heads, width], what was looked for last
    reading: Tensor  # w^r [heads, slots], where it was read last; each head's sum is 1
    found: Tensor  # r [heads * width], what was read there
    usage: Tensor  # w^u [slots], >= 0


def least_used(usage: Tensor, n: int) -> Tensor:
    """Places [..., n] of the n slots used least, that least of all first, equal ones in their order; ``usage`` is [..., slots]."""
    return usage.argsort(dim=-1, stable=True)[..., :n]


class MANN(RecurrentReader):
    """Memory-augmented network with least-recently-used access (LRUA; equations 2 to 8 of the paper, for every head i of n).

        h_t, c_t = LSTM([f(x_t), y_{t−1}, r_{t−1}], h_{t−1})
        w^w_i ← σ(α_i) w^r_i + (1 − σ(α_i)) w^lu,     w^lu = 1 for the n slots of least w^u, else 0
        M ← M with the least used slot erased,        M ← M + Σ_i w^w_i a_iᵀ,     a_i = k_i in the paper
        w^r_i ← softmax_j β_i cos(k_i, M_j),          r_t = [Σ_j w^r_ij M_j]_i,   β_i = 1 in the paper
        w^u ← γ w^u + Σ_i (w^r_i + w^w_i),            o_t = head([h_t, r_t])

    Keys k = tanh(W h_t) and gates α are what the LSTM makes of h_t.

    Deviations: (1) to (4) as of ``LSTM``. (5) With ``sharpen`` β_i > 1 is computed as in neural Turing machines (arXiv:1410.5401, equation
    5); a softmax over bare cosines is nearly flat. (6) With ``bind`` keys see f(x_t) as well, k = tanh(W h_t + U f(x_t)), and a head writes
    the last key, that of the example whose label has just come, beside a vector of its own, a_i = k_{i,t−1} + tanh(V h_t). In the paper a
    head writes its key a step before the label is there, and has to find the slot again to add the label. (7) Gates begin nearly closed.
    (8) Slots, width, heads and γ are those of a reproduction.

    Args:
        net, problem, pairs: as of ``RecurrentReader``.
        hidden: units of the LSTM.
        slots, width: of the memory.
        heads: n, which read and write.
        decay: γ.
        sharpen, bind: see deviations 5 and 6; false: the paper's.
    """

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        hidden: Annotated[int, Ge(1)],
        slots: Annotated[int, Ge(1)],
        width: Annotated[int, Ge(1)],
        heads: Annotated[int, Ge(1)],
        decay: Annotated[float, Ge(0), Le(1)],
        sharpen: bool,
        bind: bool,
        pairs: bool,
    ) -> None:
        if heads > slots:
            raise ValueError(
                f"algo.heads={heads} write to as many slots each time, and there are algo.slots={slots}; choose heads <= slots"
            )
        super().__init__(net, problem, pairs=pairs)
        self.hidden, self.slots, self.width, self.heads, self.decay = hidden, slots, width, heads, decay
        self.cell = LSTMCell(self.inputs + hidden + heads * width, hidden)
        self.heed_labels([self.cell])
        self.key, self.gate = nn.Linear(hidden, heads * width), nn.Linear(hidden, heads)
        nn.init.constant_(self.gate.bias, -2.0)
        self.value = nn.Linear(hidden, heads * width) if bind else None
        self.look = nn.Linear(net.features, heads * width, bias=False) if bind else None
        self.strength = nn.Linear(hidden, heads) if sharpen else None
        if self.strength:
            nn.init.constant_(self.strength.bias, 10.0)
        self.head = nn.Linear(hidden + heads * width, problem.outputs)

    def blank(self, features: Tensor) -> Memory:
        def filled(*shape: int, value: float = 0.0) -> Tensor:
            return features.new_full(shape, value)

        first = (torch.arange(self.slots, device=features.device) == 0).to(features.dtype)
        slots = filled(self.slots, self.width, value=EMPTY)
        keys, found = filled(self.heads, self.width), filled(self.heads * self.width)
        return Memory(filled(self.hidden), filled(self.hidden), slots, keys, first.expand(self.heads, -1), found, first)

    def read(self, memory: Memory, x: Tensor) -> tuple[Tensor, Memory]:
        output, cell, slots, before, reading, found, usage = (leaf.expand(x.shape[0], *leaf.shape) for leaf in memory)
        output, cell = self.cell(torch.cat([x, output, found], -1), cell)
        keys = self.key(output) + self.look(x[:, : self.net.features]) if self.look else self.key(output)
        keys = torch.tanh(inner.upcast(keys)).unflatten(-1, (self.heads, self.width))
        values = before + torch.tanh(self.value(output)).unflatten(-1, (self.heads, self.width)) if self.value else keys
        slots, writing = self.write(slots, reading, usage, self.gate(output).sigmoid(), values)
        match = F.normalize(keys, dim=-1) @ F.normalize(slots, dim=-1, eps=EMPTY).mT
        if self.strength:
            match = (1 + F.softplus(self.strength(output)))[..., None] * match
        reading = match.softmax(-1)
        found = (reading @ slots).flatten(-2)
        usage = self.decay * usage + (reading + writing).sum(-2).detach()
        return self.head(torch.cat([output, found], -1)), Memory(output, cell, slots, keys, reading, found, usage)

    def write(self, slots: Tensor, reading: Tensor, usage: Tensor, gate: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The slots [..., slots, width] after writing, and where was written, w^w [..., heads, slots].

        Args:
            slots, reading, usage: as of ``Memory``.
            gate: σ(α) [..., heads]: 1 writes where was read last, 0 to the slots used least.
            values: a [..., heads, width].
        """
        places = torch.arange(self.slots, device=slots.device)
        chosen = (least_used(usage, self.heads)[..., None] == places).to(slots.dtype)  # [..., heads, slots]
        writing = gate[..., None] * reading + (1 - gate[..., None]) * chosen.sum(-2, keepdim=True)
        erased = slots * (1 - chosen[..., 0, :, None])
        return erased + writing.mT @ values, writing
