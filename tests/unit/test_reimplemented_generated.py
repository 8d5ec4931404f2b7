"""MetaGAN and imaginary data against their equations written out a second time: losses, gradients in all parameters, answers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from helpers import in_float64, small
from reimplemented import Weights, close, jittered, parameters, same_objective
from torch import Tensor

from metarun import inner
from metarun.algos.generated import imaginary, metagan
from metarun.contract.measures import answers
from metarun.task import select

MLP = ["net=mlp", "net.sizes=[7]", "net.norm=none", "net.activation=tanh", "algo@algo.member=protonet"]


def features(w: Weights, x: Tensor) -> Tensor:
    return torch.tanh(x.flatten(1) @ w["net.linears.0.weight"].T + w["net.linears.0.bias"])


def scores(z: Tensor, support: Tensor, y: Tensor) -> Tensor:
    """Minus squared distances to the mean of every class."""
    means = torch.stack([support[y == c].sum(0) / int((y == c).sum()) for c in range(3)])
    return -torch.stack([((z - mean) ** 2).sum(1) for mean in means], 1)


def surprise(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy."""
    return -torch.log(logits.softmax(1)[torch.arange(len(y)), y]).mean()


def painted(w: Weights, z: Tensor, support_x: Tensor) -> Tensor:
    """G(z, T): T the mean over images and places of two convolutions with stride 2; nearest neighbours make maps grow."""

    def convolved(name: str, x: Tensor, stride: int) -> Tensor:
        return F.conv2d(x, w[f"generator.{name}.weight"], w[f"generator.{name}.bias"], stride=stride, padding=1)

    seen = convolved("look.2", convolved("look.0", support_x, 2).clamp(min=0), 2).clamp(min=0).mean(dim=(0, 2, 3))
    given = torch.cat([z, seen[None].repeat(len(z), 1)], 1)
    maps = (given @ w["generator.first.weight"].T + w["generator.first.bias"]).clamp(min=0).reshape(len(z), -1, 4, 4)
    maps = convolved("second", F.interpolate(maps, scale_factor=2, mode="nearest"), 1).clamp(min=0)
    return 1 / (1 + torch.exp(-convolved("last", F.interpolate(maps, scale_factor=2, mode="nearest"), 1)))


def test_two_players_descend_their_losses_of_a_task() -> None:
    """P(fake) = σ(−s): the learner calls queries real and paintings fake, the generator wants paintings called real (section 3)."""
    words = ["algo.fakes=4", "algo.weight=0.3", "algo.noise=5", "algo.hidden=6"]
    algorithm, tasks = in_float64(small("algo=metagan", *MLP, *words), tasks=1)
    jittered(algorithm)
    task = select(tasks, 0)
    (x, y), (query_x, query_y) = task.context.support, task.query
    z = inner.normal(task.context.key, (4, 5), metagan.STREAM).double()

    def real(w: Weights, x_: Tensor) -> Tensor:
        """1 − P(fake)."""
        odds = torch.exp(scores(features(w, x_), features(w, x), y)).sum(1) ** torch.exp(w["log_slope"]) * torch.exp(w["offset"])
        return odds / (1 + odds)

    def loss(weights: Weights) -> Tensor:
        w = {name.removeprefix("member."): p for name, p in weights.items()}
        held = {name: p.detach() for name, p in w.items()}
        own = {name: p if name.startswith("generator.") else held[name] for name, p in w.items()}
        logits = scores(features(w, query_x), features(w, x), y)
        told = torch.log(real(w, query_x)).mean() + torch.log(1 - real(w, painted(held, z, x))).mean()
        learner = surprise(logits, query_y) - 0.3 * told
        return learner - torch.log(real(held, painted(own, z, x))).mean()

    same_objective(algorithm, tasks, loss)
    w = parameters(algorithm)
    [found] = answers(algorithm, task.context, query_x)
    close(found, scores(features(w, query_x), features(w, x), y).detach())


def test_what_is_imagined_of_a_support_learns_from_the_queries() -> None:
    """G(x, z) for every example and draw of z, in prototypes with what was seen (arXiv:1801.05401, section 4)."""
    algorithm, tasks = in_float64(small("algo=imaginary", *MLP, "algo.generated=4", "algo.noise=5", "algo.hidden=6"), tasks=1)
    jittered(algorithm, 0.3)
    task = select(tasks, 0)
    (x, y), (query_x, query_y) = task.context.support, task.query
    draws = inner.normal(task.context.key, (4, 5), imaginary.STREAM).double()

    def logits(w: Weights) -> Tensor:
        rows, labels = [*features(w, x)], [*y]
        for seen, label in zip([*rows], y):
            for z in draws:
                hidden = (w["generator.of_x.weight"] @ seen + w["generator.of_x.bias"] + w["generator.of_z.weight"] @ z).clamp(min=0)
                hidden = (w["generator.second.weight"] @ hidden + w["generator.second.bias"]).clamp(min=0)
                rows.append(seen + w["generator.last.weight"] @ hidden + w["generator.last.bias"])
                labels.append(label)
        return scores(features(w, query_x), torch.stack(rows), torch.stack(labels))

    same_objective(algorithm, tasks, lambda w: surprise(logits(w), query_y))
    [found] = answers(algorithm, task.context, query_x)
    close(found, logits(parameters(algorithm)).detach())
