"""A text as the bag of its n-grams: short runs of letters, counted in hashed buckets, weighted by how rare they are, and projected.
Hashing: Weinberger, Dasgupta, Langford, Smola, Attenberg 2009, arXiv:0902.2206. Rarity: Spärck Jones 1972."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

from metarun.nets.base import Net

PRIME, MIX = 1_000_003, -7_046_029_254_386_353_131  # of the hash; all of it wraps around at 64 bits
EXAMPLES = 1000  # texts counted at a time


class NGrams(nn.Module):
    """v [n, buckets] of texts [n, length], bytes / 255 with zeros behind the end; each of length 1.

        c_b = number of n-grams in bucket b,   v = w ∘ log(1 + c) / ‖w ∘ log(1 + c)‖
        w_b = 1 + log((1 + N) / (1 + number of texts with bucket b))    of the N texts of training, or 1

    A space stands before the text and behind it, so that the beginning of a word is another n-gram than its middle.
    """

    def __init__(self, buckets: int, shortest: int, longest: int) -> None:
        super().__init__()
        self.buckets, self.sizes = buckets, range(shortest, longest + 1)
        self.register_buffer("rarity", torch.ones(buckets))
        self.rarity: Tensor

    def places(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Which n-grams begin where: buckets [n, length + 2, sizes], ``buckets`` where there is none, and the letters [n, length + 2].

        What reaches beyond the end is none.
        """
        letters = (x * 255).round().long()
        rest = F.pad(letters, (0, max(self.sizes)))  # so that every n-gram has room
        before = torch.cat([torch.full_like(letters[:, :1], ord(" ")), rest], 1)
        end = before.eq(0) & before.roll(1, 1).ne(0)  # the place right behind the text
        text = torch.where(end, ord(" "), before)
        found, places = [], letters.shape[1] + 2
        for size in self.sizes:
            pieces = text.unfold(1, size, 1)[:, :places]
            code = torch.full_like(pieces[..., 0], size)
            for letter in pieces.unbind(-1):
                code = (code * PRIME) ^ letter
            bucket = ((code * MIX) >> 33) % self.buckets
            found.append(torch.where(pieces[..., -1] > 0, bucket, self.buckets))
        return torch.stack(found, -1), text[:, :places]

    def counts(self, x: Tensor) -> Tensor:
        """c [n, buckets]."""
        places = self.places(x)[0].flatten(1)
        return x.new_zeros(len(x), self.buckets + 1).scatter_add(1, places, x.new_ones(()).expand(places.shape))[:, : self.buckets]

    @torch.no_grad()
    def observe(self, examples: Tensor) -> None:
        """Count in how many of the texts [n, length] uint8 each bucket is."""
        texts = torch.zeros_like(self.rarity)
        for part in examples.split(EXAMPLES):
            texts += (self.counts(part.to(texts.device) / 255) > 0).sum(0)
        self.rarity.copy_(1 + torch.log((1 + len(examples)) / (1 + texts)))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.rarity * torch.log1p(self.counts(x)), dim=-1)


class TextBag(Net):
    """The features of a text: f(x) = (v, W v) with v of ``NGrams`` and learned W; untrained, v is what decides.

    Args:
        input_shape: (length,), the bytes of a text.
        buckets: of the hash; n-grams that share one are not told apart.
        shortest, longest: how many letters an n-gram has. A letter beyond ASCII has several bytes and counts as several.
        tfidf: whether n-grams weigh by how rare they are among the texts of training; it is counted before meta-training and then kept.
        size: rows of W; 0: nothing is learned here, and features are v alone.
        keep: whether v is among the features; false: W v alone, for methods that take short features.

    Raises:
        ValueError: examples are no rows of numbers that are long enough, no features are left, or ``longest`` is below ``shortest``.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        *,
        buckets: Annotated[int, Ge(16), Le(2**20)],
        shortest: Annotated[int, Ge(1)],
        longest: Annotated[int, Ge(1), Le(8)],
        tfidf: bool,
        size: Annotated[int, Ge(0)],
        keep: bool,
    ) -> None:
        super().__init__()
        if len(input_shape) != 1 or input_shape[0] < longest:
            raise ValueError(f"net=textbag needs texts, these examples have shape {list(input_shape)}; use data=text, or another net")
        if longest < shortest:
            raise ValueError(f"net.longest={longest} is below net.shortest={shortest}: make it as large at least")
        if not (size or keep):
            raise ValueError("net.size=0 and net.keep=false leave no features: change one of them")
        self.norm, self.modulated, self.tfidf, self.keep = "none", "linear" if size else "", tfidf, keep
        self.grams = NGrams(buckets, shortest, longest)
        self.linear = nn.Linear(buckets, size) if size else None
        self.features = buckets * keep + size
        self.map_shape = (self.features, 1, 1)

    def layers(self, x: Tensor, n_support: int | None) -> Tensor:
        v = self.grams(x)
        if self.linear is None:
            return v
        return torch.cat([v, self.linear(v).to(v.dtype)], -1) if self.keep else self.linear(v)

    def observe(self, examples: Tensor) -> None:
        if self.tfidf:
            self.grams.observe(examples)
