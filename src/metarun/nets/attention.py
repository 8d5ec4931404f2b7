"""Attention with several heads, and the layer of a transformer that is made of it, in operations that torch.vmap can batch.
Vaswani et al. 2017, arXiv:1706.03762; torch's own modules are neither batched by vmap nor differentiable twice everywhere."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from metarun.inner import upcast
from metarun.nets.norm import Norm


class MultiHeadAttention(nn.Module):
    """Every query takes a weighted mean of values, weighted by how alike it and their keys are.

        weights_h = softmax over keys of (q W_h) (k W'_h)ᵀ / √size,   reading_h = weights_h (v W''_h)       (equation 1)
        out = [reading_1, …, reading_heads] W                                                               (section 3.2.2)

    Permuted queries permute the answers, keys permuted with their values change none. A query that may look at nothing reads zeros.

    Args:
        queries, keys, values: lengths of the three inputs.
        heads: how many.
        size: numbers of a head's queries and keys.
        read: numbers of a head's values; None: ``size``.
        outputs: length of the answer; None: the readings as they are, heads * read numbers, without W.
    """

    def __init__(
        self,
        *,
        queries: int,
        keys: int,
        values: int,
        heads: Annotated[int, Ge(1)],
        size: Annotated[int, Ge(1)],
        read: int | None = None,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.scale, read = heads, 1 / math.sqrt(size), read or size
        self.query, self.key = nn.Linear(queries, heads * size), nn.Linear(keys, heads * size)
        self.value = nn.Linear(values, heads * read)
        self.output = nn.Identity() if outputs is None else nn.Linear(heads * read, outputs)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, own: bool = False) -> Tensor:
        """Answers [..., n, outputs].

        Args:
            query: [..., n, queries].
            key, value: [..., m, keys] and [..., m, values]; m may be 0.
            mask: bool, [..., n, m] or what broadcasts to it, as [m]: true where a query may look; None: everywhere.
            own: each query looks at itself, as a key and value more, as well; without a ``mask``.
        """
        values = upcast(self._split(self.value(value)))
        if own:
            itself = (self._split(self.query(query)) * self._split(self.key(query))).sum(-1, keepdim=True)
            scores = torch.cat([self._scores(query, key), upcast(itself) * self.scale], -1)
            weights, weight = scores.softmax(-1).split([key.shape[-2], 1], -1)
            reading = weights @ values + weight * upcast(self._split(self.value(query)))
        else:
            reading = self.weights(query, key, mask) @ values
        return self.output(reading.movedim(-3, -2).flatten(-2))

    def weights(self, query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
        """How much each query heeds each key, [..., heads, n, m]: rows of sum 1 over the keys it may look at, or of zeros."""
        scores = self._scores(query, key)
        if mask is None:
            return scores.softmax(-1)
        mask = mask.unsqueeze(-3) if mask.dim() > 1 else mask
        # Not −∞, which is no number where all is masked.
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1) * mask

    def _scores(self, query: Tensor, key: Tensor) -> Tensor:
        return upcast(self._split(self.query(query)) @ self._split(self.key(key)).mT) * self.scale

    def _split(self, x: Tensor) -> Tensor:
        """[..., n, heads * numbers] to [..., heads, n, numbers]."""
        return x.unflatten(-1, (self.heads, -1)).movedim(-2, -3)


class TransformerLayer(nn.Module):
    """x ← x + attention(norm x);  x ← x + MLP(norm x), norms first (Xiong et al. 2020, arXiv:2002.04745).

    Args:
        width: numbers of a token.
        heads: of attention, which divide the width.
        hidden: of the MLP's one hidden layer.

    Raises:
        ValueError: heads do not divide the width.
    """

    def __init__(self, *, width: Annotated[int, Ge(1)], heads: Annotated[int, Ge(1)], hidden: Annotated[int, Ge(1)]) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} does not fall into {heads} heads; choose algo.width as a multiple of algo.heads")
        self.before, self.between = Norm(width, "layer"), Norm(width, "layer")
        self.attention = MultiHeadAttention(queries=width, keys=width, values=width, heads=heads, size=width // heads, outputs=width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor, others: Tensor | None = None, mask: Tensor | None = None, own: bool = False) -> Tensor:
        """Tokens x [..., n, width] after the layer, which have looked at ``others`` [..., m, width] as it finds them; None: at each other.

        ``mask``, ``own``: as of ``MultiHeadAttention``.
        """
        tokens = by_token(self.before, x)
        keys = tokens if others is None else by_token(self.before, others)
        x = x + self.attention(tokens, keys, keys, mask, own)
        return x + self.mlp(by_token(self.between, x))


def by_token(norm: Norm, x: Tensor) -> Tensor:
    """The norm of every token for itself, [..., width]."""
    return norm(x.flatten(0, -2)).view_as(x)
