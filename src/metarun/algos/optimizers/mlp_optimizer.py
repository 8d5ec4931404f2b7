"""A small multilayer perceptron, the same for every coordinate, turns a gradient and its running means into an update.
After Celo2 (Moudgil, Knyazev, Belilovsky 2026, arXiv:2602.19142), with the nominal term of Harrison et al. 2022, arXiv:2209.11208."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

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
SEEN = 2 * (1 + len(DECAYS)) + 2  # numbers that the net sees of a coordinate
CLOCK = 2  # and of the time
WARM = 0.9  # by which what it sees of the beginning fades
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
        R = √(mean of v̂ over the tensor),   n = m_1 / √(√v̂ R)
        (d, s, c) = MLP_ω(g/√v̂, m̂_j/√v̂, g/R, m̂_j/R; √v̂/R, θ over its root mean square in the tensor; p, .9^k)
        u = (n + d) exp(s),   θ ← θ − scale (1 − p) (u + decay exp(c) θ),   p = k / K the part of training that is over

    n, the ``nominal`` term, is partially adaptive momentum (Chen et al. 2018, arXiv:1806.06763, p = 1/4), half-way between Adam's step
    and that of SGD, and not freed of its bias, so that it warms up. Training of the rule begins near it, with weight decay as in AdamW
    and a rate that falls linearly. Nothing of the rule depends on the size of the loss, or on what the net is. K is ``horizon`` in
    meta-training and ``test_steps`` after it; who goes on for longer does so at the last rate. v̂ and mean squares that something is divided
    by have 1e-16 added, so the size of the loss counts where slopes come near 1e-8.

    Deviations from Celo2: (1) Neither orthogonalisation nor Adam for biases: its ``celo2-base``. (2) g/√v̂ and m̂_j/√v̂ are seen as they
    are, too: they tell noise from a slope. (3) u over its root mean square in the tensor only where ``normalise`` is set. (4) Trained by
    back-propagation unless ``optim.gradient=pes``, which is Celo2's, or ``es``; the slopes being constants, it is biased over many steps,
    and evolution is not. (5) No factored second moments, no adaptive clipping. (6) The
    nominal term, which Celo2 lacks. (7) The MLP sees the time, as in small_fc_lopt of Metz et al. 2022, arXiv:2203.11860, and so bends
    the schedule, which Celo2 has by hand alone. (8) Weight decay is learned, too: a third output.

    Args:
        net, problem, settings: as of ``LearnedOptimizer``.
        hidden: units of each of the two hidden layers.
        scale: of the updates.
        decay: of the weights, where the MLP says nothing of it; 0 for none ever.
        schedule: ``linear``, or ``constant``, without the factor 1 − p.
        normalise, nominal: see above.
    """

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        hidden: Annotated[int, Ge(1)],
        scale: Annotated[float, Gt(0)],
        decay: Annotated[float, Ge(0)],
        schedule: Literal["linear", "constant"],
        normalise: bool,
        nominal: bool,
        **settings: Any,
    ) -> None:
        super().__init__(net, problem, **settings)
        self.scale, self.decay, self.schedule, self.normalise, self.nominal = scale, decay, schedule, normalise, nominal
        self.mlp = nn.Sequential(
            nn.Linear(SEEN + CLOCK, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 3)
        )  # fmt: skip
        with torch.no_grad():
            for weight in self.mlp[-1].parameters():
                weight.mul_(0.03)  # so that training begins near the nominal term
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
        leaves = zip(fast.values(), grads.values(), gradients.values(), squares.values())
        seen, nominal = zip(*(self.seen(*leaf, k) for leaf in leaves))
        clock, left = self.clock(k)
        numbers = torch.cat(seen)
        numbers = torch.cat([numbers, clock.to(numbers).expand(len(numbers), CLOCK)], 1)
        direction, size, forgotten = self.mlp(numbers).unbind(-1)
        if self.nominal:
            direction = direction + torch.cat(nominal)
        parts = [w.numel() for w in fast.values()]
        updates, decays = (direction * size.exp()).split(parts), (self.decay * forgotten.exp()).split(parts)
        rate = self.scale * left.to(numbers)
        moved = {
            name: w - rate * ((by_size(update) if self.normalise else update).view(w.shape) + decay.view(w.shape) * w)
            for (name, w), update, decay in zip(fast.items(), updates, decays)
        }
        return moved, Means(gradients, squares)

    def clock(self, k: int | Tensor) -> tuple[Tensor, Tensor]:
        """What the net sees of the time before step k, [CLOCK], and the factor [] of the schedule, in float64."""
        done = torch.as_tensor(k, device=self.decays.device).double()
        steps = self.horizon if self.training else self.test_steps
        over = (done / steps).clamp(max=1 - 1 / steps)
        return torch.stack([over, WARM**done]), 1 - over if self.schedule == "linear" else torch.ones_like(over)

    def seen(self, weight: Tensor, gradient: Tensor, means: Tensor, square: Tensor, k: int | Tensor) -> tuple[Tensor, Tensor]:
        """What the net sees of a tensor, [coordinates, SEEN], and its nominal term [coordinates].

        ``means`` [decays, *shape], all others of the weight's shape.
        """
        age = k.double() + 1 if isinstance(k, Tensor) else k + 1
        means, square = means.reshape(len(means), -1), square.flatten() / (1 - SQUARES**age) + TINY
        slopes = torch.cat([gradient.flatten()[None], means / (1 - self.decays**age)[:, None]])
        root, common = square.rsqrt(), square.mean().rsqrt()
        nominal = means[0] * (root * common).sqrt()
        spread = (square.sqrt() * common)[None]
        return torch.cat([slopes * root, slopes * common, spread, by_size(weight.flatten())[None]]).T, nominal
