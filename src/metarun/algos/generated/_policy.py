"""A learned augmentation: for every operation how often it is applied, and how strongly."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from metarun import inner
from metarun.data.changes import affine, relight, thickening, warp

Operation = Literal["rotate", "scale", "shear", "shift", "flip", "thickness", "contrast", "brightness"]
# The strongest that can be learned, as the keys of the same names in conf/augment have it: degrees, factors, fractions of the side.
STRONGEST = {
    "rotate": 45.0, "scale": 0.5, "shear": 0.5, "shift": 0.25, "flip": 1.0, "thickness": 1.0, "contrast": 1.0, "brightness": 1.0,
}  # fmt: skip
PLACES = len(get_args(Operation))
STREAM = 108  # of the episode's key: no member and no augmentation draws from it


class Policy(nn.Module):
    """Operations on images, each with a probability p and a strength s, both learned.

        gate ~ Bernoulli(p),   amount = gate · s · u,   u ~ U(−1, 1)                 (``flip``: x + gate · (mirrored x − x))

    The gate is a relaxed one, σ((logit p + logit v) / T) with v uniform in 0..1 (Maddison, Mnih, Teh 2017, arXiv:1611.00712); or,
    ``straight``, 0 or 1 with the derivatives of the relaxed one (Bengio, Léonard, Courville 2013, arXiv:1308.3432).

    Args:
        operations: which ones.
        probability: p of all at first.
        strength: s of all at first, as a part of the strongest there is.
        straight: see above.
        temperature: T.
    """

    def __init__(self, operations: list[Operation], probability: float, strength: float, straight: bool, temperature: float) -> None:
        super().__init__()
        self.operations, self.straight, self.temperature = operations, straight, temperature
        self.probability = nn.Parameter(torch.full((len(operations),), logit(probability)))  # by their logits, as strengths are
        self.strength = nn.Parameter(torch.full((len(operations),), logit(strength)))

    def noise(self, key: Tensor, n: int) -> Tensor:
        """What n images are changed by, [n, 17] uniform in 0..1: a gate of every operation, its amount, and a second one of ``shift``."""
        return inner.uniform(key, (n, 2 * PLACES + 1), STREAM)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """Images x [n, channels, height, width] in 0..1 changed by ``noise`` [n, 17], uniform in 0..1; same shape and range."""
        gates, spread = noise[:, :PLACES].to(x.dtype), 2 * noise[:, PLACES:].to(x.dtype) - 1
        column = {name: i for i, name in enumerate(get_args(Operation))}
        gate = {name: self.gate(gates[:, column[name]], logit) for name, logit in zip(self.operations, self.probability)}
        strength = {name: STRONGEST[name] * part for name, part in zip(self.operations, self.strength.sigmoid())}
        if "scale" in strength:
            strength["scale"] = torch.log1p(strength["scale"])  # so that the largest factor is the smallest one's inverse

        def amount(name: str, second: bool = False) -> Tensor:
            """Of an operation [n]; none of one that is not among them."""
            u = spread[:, -1 if second else column[name]]
            return gate[name] * strength[name] * u if name in gate else torch.zeros_like(u)

        if "flip" in gate:
            x = x + gate["flip"][:, None, None, None] * (x.flip(-1) - x)
        if gate.keys() & {"rotate", "scale", "shear", "shift"}:
            size = torch.exp(-amount("scale"))
            moved = amount("shear"), amount("shift"), amount("shift", second=True), torch.ones_like(size)
            x = warp(x, affine(amount("rotate") * (math.pi / 180), size, *moved, x.shape[-2] / x.shape[-1]))
        if "thickness" in gate:
            x = x + thickening(x, amount("thickness")[:, None, None, None])
        if gate.keys() & {"contrast", "brightness"}:
            x = relight(x, amount("contrast")[:, None, None, None], amount("brightness")[:, None, None, None])
        return x.clamp(0, 1)

    def gate(self, uniform: Tensor, logit: Tensor) -> Tensor:
        """Of one operation, [n], from numbers [n] uniform in 0..1."""
        soft = torch.sigmoid((logit + torch.log(uniform) - torch.log1p(-uniform)) / self.temperature)
        return (soft > 0.5).to(soft.dtype) + soft - soft.detach() if self.straight else soft

    def table(self) -> dict[str, dict[str, float]]:
        """By operation its probability, its strength, and the strongest there is, which a mirror image always has."""
        found: dict[str, dict[str, float]] = {}
        for name, p, s in zip(self.operations, self.probability.sigmoid().tolist(), self.strength.sigmoid().tolist()):
            most = STRONGEST[name]
            found[name] = {"probability": p, "strength": most if name == "flip" else s * most, "strongest": most}
        return found


def logit(part: float) -> float:
    """The inverse of the sigmoid, of a number between 0 and 1."""
    return math.log(part / (1 - part))
