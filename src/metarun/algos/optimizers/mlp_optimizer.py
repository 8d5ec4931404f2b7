"""A small multilayer perceptron, the same for every coordinate, turns a gradient and its running means into an update.
After Celo2 (Moudgil, Knyazev, Belilovsky 2026, arXiv:2602.19142), with the nominal term of Harrison et al. 2022, arXiv:2209.11208."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from metarun.algos.optimizers._learned import LearnedOptimizer
from metarun.algos.optimizers._scratch import Fast
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.runtime.private import tree_map

DECAYS = (0.9, 0.99, 0.999)  # of the running means of gradients
SQUARES = 0.999  # of that of their squares
SEEN = 6 + 1 + len(DECAYS)  # numbers that the net sees of a coordinate
NOMINAL = 1  # where among these Adam's step stands
TINY = 1e-16  # below which a mean square is none


class Means(NamedTuple):
    """Running means, of every weight by name."""

    gradients: Fast  # [decays, *shape]
    squares: Fast


def by_size(values: Tensor) -> Tensor:
    """Values [..., coordinates] over their root mean square: the same whatever the size of the loss, or of the net."""
    return values * (values.square().mean(-1, keepdim=True) + TINY).rsqrt()


class MLPOptimizer(LearnedOptimizer):
    """MLP optimizer.

        m_j ← β_j m_j + (1 − β_j) g  for β = .9, .99, .999,   v ← .999 v + .001 g²,   hats: without their bias towards 0, as Adam's
        (d, s) = MLP_ω(g/√v̂, m̂_j/√v̂; θ, g, m̂_j, 1/√v̂, each over its root mean square in the tensor)
        u = (m̂_1/√v̂ + d) exp(s),   θ ← θ − scale · u,   or u over its root mean square in the tensor where ``normalise`` is set

    m̂_1/√v̂, Adam's step, is the ``nominal`` term: training begins near Adam at the rate ``scale``. Nothing of the rule depends on the
    size of the loss, or on what the net is.

    Deviations from Celo2: (1) Neither orthogonalisation nor Adam for biases: its ``celo2-base``. (2) g/√v̂ and m̂_j/√v̂ are seen as they
    are, too: they tell noise from a slope, so that steps can shrink without a schedule. (3) ``normalise`` is off, as a step of one
    length cannot end, where Celo2 has a schedule by hand. (4) Trained by back-propagation unless ``optim.gradient=pes``, which is
    Celo2's. (5) No factored second moments, no adaptive clipping. (6) The nominal term, which Celo2 lacks.

    Args:
        net, problem, settings: as of ``LearnedOptimizer``.
        hidden: units of each of the two hidden layers.
        scale: of the updates.
        normalise, nominal: see above.
    """

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        hidden: Annotated[int, Ge(1)],
        scale: Annotated[float, Gt(0)],
        normalise: bool,
        nominal: bool,
        **settings: Any,
    ) -> None:
        super().__init__(net, problem, **settings)
        self.scale, self.normalise, self.nominal = scale, normalise, nominal
        self.mlp = nn.Sequential(
            nn.Linear(SEEN, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2)
        )  # fmt: skip
        with torch.no_grad():
            for weight in self.mlp[-1].parameters():
                weight.mul_(0.1)  # so that training begins with small steps
        self.register_buffer("decays", torch.tensor(DECAYS), persistent=False)
        self.decays: Tensor

    def remember(self, fast: Fast) -> Means:
        return Means(tree_map(lambda w: w.new_zeros(len(DECAYS), *w.shape), fast), tree_map(torch.zeros_like, fast))

    def advance(self, fast: Fast, grads: Fast, memory: Means, k: int | Tensor) -> tuple[Fast, Means]:
        def mean(old: Tensor, g: Tensor) -> Tensor:
            decays = self.decays.view(-1, *[1] * g.dim())
            return decays * old + (1 - decays) * g

        gradients = tree_map(mean, memory.gradients, grads)
        squares = tree_map(lambda old, g: SQUARES * old + (1 - SQUARES) * g * g, memory.squares, grads)
        seen = [self.seen(*leaves, k) for leaves in zip(fast.values(), grads.values(), gradients.values(), squares.values())]
        numbers = torch.cat(seen)
        direction, size = self.mlp(numbers).unbind(-1)
        if self.nominal:
            direction = direction + numbers[:, NOMINAL]
        updates = (direction * size.exp()).split([w.numel() for w in fast.values()])
        moved = {
            name: w - self.scale * (by_size(update) if self.normalise else update).view(w.shape)
            for (name, w), update in zip(fast.items(), updates)
        }
        return moved, Means(gradients, squares)

    def seen(self, weight: Tensor, gradient: Tensor, means: Tensor, square: Tensor, k: int | Tensor) -> Tensor:
        """What the net sees of a tensor, [coordinates, SEEN]; ``means`` [decays, *shape], all others of the weight's shape."""
        age = k.double() + 1 if isinstance(k, Tensor) else k + 1
        means = means.flatten(1) / (1 - self.decays**age)[:, None]
        root = (square.flatten() / (1 - SQUARES**age) + TINY).rsqrt()
        slopes = torch.cat([gradient.flatten()[None], means])
        sized = by_size(torch.cat([weight.flatten()[None], slopes, root[None]]))
        return torch.cat([slopes * root, sized]).T
