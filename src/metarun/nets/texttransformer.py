"""A text as the sum of its words after a small Transformer; a word is the sum of its hashed n-grams, so that none is unknown.
Transformer: Vaswani et al. 2017, arXiv:1706.03762; words of n-grams: Bojanowski, Grave, Joulin, Mikolov 2017, arXiv:1607.04606."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

from metarun.nets.attention import TransformerLayer
from metarun.nets.base import Net
from metarun.nets.textbag import NGrams

SCALE = 3.0  # length of features at the beginning


class TextTransformer(Net):
    """A Transformer over the words of a text.

        t_i = p_i + Σ w_b e_b over the n-grams that begin in word i, or in the space before it        (w: rarity as in ``NGrams``)
        h_1, …, h_m = layers(t_1, …, t_m),   u = Σ h_i,   f(x) = s u / ‖u‖                            (learned: e, p, s, layers)

    Places behind the last word are masked, and words in which no n-gram begins; a text without any has features of zero. Layers normalise
    what they read (ε = 1e-5), with GELU in the MLP, and nothing normalises their last output.

    Deviations: (1) the layers' last matrices are zero at the beginning, so that an untrained net is a random projection of the bag of
    n-grams, which compares texts as that bag does, and training can only leave it for something better. (2) Features have a learned
    length, the temperature of methods that compare by distances. (3) Positions are learned, and no dropout.

    Args:
        input_shape: (length,), the bytes of a text.
        buckets, shortest, longest, tfidf: of the n-grams, as of ``TextBag``.
        words: most words of a text; further ones are added to the last.
        width: numbers of a word, and features.
        heads: of attention, which divide the width.
        hidden: of the layers' MLP.
        depth: layers; 0: u is the projected bag.

    Raises:
        ValueError: examples are no rows of numbers, or too short, ``longest`` is below ``shortest``, or heads do not divide the width.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        *,
        buckets: Annotated[int, Ge(16), Le(2**20)],
        shortest: Annotated[int, Ge(1)],
        longest: Annotated[int, Ge(1), Le(8)],
        tfidf: bool,
        words: Annotated[int, Ge(1)],
        width: Annotated[int, Ge(1)],
        heads: Annotated[int, Ge(1)],
        hidden: Annotated[int, Ge(1)],
        depth: Annotated[int, Ge(0)],
    ) -> None:
        super().__init__()
        if len(input_shape) != 1 or input_shape[0] < longest:
            raise ValueError(
                f"net=texttransformer needs texts, these examples have shape {list(input_shape)}; use data=text, or another net"
            )
        if longest < shortest:
            raise ValueError(f"net.longest={longest} is below net.shortest={shortest}: make it as large at least")
        if width % heads:
            raise ValueError(f"net.width={width} does not fall into net.heads={heads}: choose a multiple")
        self.norm, self.modulated, self.tfidf, self.words = "none", "", tfidf, words
        self.grams = NGrams(buckets, shortest, longest)
        self.embedding = nn.Parameter(torch.randn(buckets, width) / math.sqrt(width))
        self.position = nn.Parameter(torch.randn(words, width) / math.sqrt(width))
        layers = [TransformerLayer(width=width, heads=heads, hidden=hidden) for _ in range(depth)]
        for layer in layers:
            for last in closing(layer):
                nn.init.zeros_(last)
        self.stack = nn.ModuleList(layers)
        self.scale = nn.Parameter(torch.tensor(SCALE))
        self.features, self.map_shape = width, (width, 1, 1)

    def layers(self, x: Tensor, n_support: int | None) -> Tensor:
        tokens, there = self.tokens(x)
        for layer in self.stack:
            tokens = layer(tokens, mask=there[:, None])
        return self.scale * F.normalize((tokens * there[..., None]).sum(1), dim=-1)

    def tokens(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """t [n, words, width] of texts [n, length], and which of them are there, [n, words] bool."""
        places, text = self.grams.places(x)
        spaces = text.eq(ord(" ")).cumsum(1)
        word = (spaces - 1).minimum(spaces[:, -1:] - 2).clamp(0, self.words - 1)  # the space behind the text begins no word
        weights = F.pad(self.grams.rarity, (0, 1)).to(self.embedding.dtype)[places]  # zero where there is no n-gram
        vectors = (F.embedding(places.clamp(max=self.grams.buckets - 1), self.embedding) * weights[..., None]).sum(2)
        shape = (len(x), self.words)
        tokens = vectors.new_zeros(*shape, vectors.shape[-1]).scatter_add(1, word[..., None].expand_as(vectors), vectors)
        there = weights.new_zeros(shape).scatter_add(1, word, weights.sum(2)) > 0
        return tokens + self.position, there

    def draw(self, key: Tensor) -> dict[str, Tensor]:
        last = {id(w) for layer in self.stack if isinstance(layer, TransformerLayer) for w in closing(layer)}
        names = {name for name, w in self.named_parameters() if id(w) in last}
        return {name: torch.zeros_like(w) if name in names else w for name, w in super().draw(key).items()}

    def observe(self, examples: Tensor) -> None:
        if self.tfidf:
            self.grams.observe(examples)


def closing(layer: TransformerLayer) -> Iterator[nn.Parameter]:
    """The parameters of a layer's last matrices, of attention and of the MLP."""
    yield from layer.attention.output.parameters()
    yield from layer.mlp[-1].parameters()
