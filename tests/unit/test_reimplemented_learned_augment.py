"""Learned augmentation around MAML against its equations written out a second time: loss, gradients in all parameters, answers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import in_float64, small
from reimplemented import Weights, close, jittered, parameters, same_objective
from torch import Tensor

from metarun import inner
from metarun.contract.measures import answers
from metarun.task import select

NAMES = ["rotate", "scale", "shear", "shift", "flip", "thickness", "contrast", "brightness"]
SIDE, TEMPERATURE = 16, 0.5


def read(image: Tensor, across: Tensor, along: Tensor) -> Tensor:
    """An image [channels, SIDE, SIDE] at places in -1..1, between its pixels' centres linearly, beyond its border as there."""
    column, row = ((((place + 1) * SIDE - 1) / 2).clamp(0, SIDE - 1) for place in (across, along))
    left, top = column.detach().floor().long(), row.detach().floor().long()
    right, bottom = (left + 1).clamp(max=SIDE - 1), (top + 1).clamp(max=SIDE - 1)
    a, b = column - left, row - top
    upper = (1 - a) * image[:, top, left] + a * image[:, top, right]
    return (1 - b) * upper + b * ((1 - a) * image[:, bottom, left] + a * image[:, bottom, right])


def changed(w: Weights, image: Tensor, noise: Tensor) -> Tensor:
    """Mirrored, moved, thickened and relit by ``noise`` [17]: a gate of every operation, its amount, and the second one of a shift."""
    gate, amount = {}, {}
    most = {
        "rotate": math.pi / 4,
        "scale": 0.5,
        "shear": 0.5,
        "shift": 0.25,
        "flip": 1.0,
        "thickness": 1.0,
        "contrast": 1.0,
        "brightness": 1.0,
    }
    for i, name in enumerate(NAMES):
        odds = w["policy.probability"][i] + torch.log(noise[i] / (1 - noise[i]))
        gate[name] = 1 / (1 + torch.exp(-odds / TEMPERATURE))
        strength = most[name] / (1 + torch.exp(-w["policy.strength"][i]))
        amount[name] = gate[name] * strength * (2 * noise[8 + i] - 1)
        if name == "scale":
            amount[name] = gate[name] * torch.log(1 + strength) * (2 * noise[8 + i] - 1)
        if name == "shift":
            down = gate[name] * strength * (2 * noise[16] - 1)
    image = (1 - gate["flip"]) * image + gate["flip"] * image.flip(2)
    cos, sin = torch.cos(amount["rotate"]), torch.sin(amount["rotate"])
    places = (torch.arange(SIDE, dtype=torch.float64) + 0.5) / SIDE * 2 - 1
    along, across = torch.meshgrid(places, places, indexing="ij")
    slanted = across + amount["shear"] * along
    size = torch.exp(-amount["scale"])
    image = read(image, size * (cos * slanted - sin * along) + 2 * amount["shift"], size * (sin * slanted + cos * along) + 2 * down)
    around = F.pad(image[None], (1, 1, 1, 1), mode="replicate")[0].unfold(1, 3, 1).unfold(2, 3, 1).flatten(3)
    thick = amount["thickness"]
    image = (1 - thick) * image + thick * around.max(3)[0] if thick > 0 else (1 + thick) * image - thick * around.min(3)[0]
    image = (image.mean() + (1 + amount["contrast"]) * (image - image.mean())) * (1 + amount["brightness"])
    return image.clamp(0, 1)


@pytest.mark.parametrize("keep", ["true", "false"])
def test_every_inner_step_sees_a_support_changed_anew(keep: str) -> None:
    words = ["net=mlp", "net.sizes=[7]", "net.norm=none", "net.activation=tanh", "algo@algo.member=maml", "algo.copies=2"]
    algorithm, tasks = in_float64(small("algo=learned_augment", *words, f"algo.keep={keep}", f"algo.temperature={TEMPERATURE}"), tasks=1)
    jittered(algorithm)
    task, lr = select(tasks, 0), algorithm.member.inner_lr
    (x, y), (query_x, query_y), key = task.context.support, task.query, task.context.key

    def logits(weights: list[Tensor], x: Tensor) -> Tensor:
        hidden = torch.tanh(x.flatten(1) @ weights[0].T + weights[1])
        return hidden @ weights[2].T + weights[3]

    def surprise(weights: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        return -torch.log(logits(weights, x).softmax(1)[torch.arange(len(y)), y]).mean()

    def adapted(w: Weights, steps: int) -> list[Tensor]:
        weights = [p for name, p in w.items() if not name.startswith("policy.")]
        for k in range(steps):
            noise = algorithm.policy.noise(inner.fold_in(key, k + 1), 2 * len(y)).double()
            rows = [*x] * (keep == "true") + [changed(w, image, row) for image, row in zip([*x, *x], noise, strict=True)]
            grads = torch.autograd.grad(surprise(weights, torch.stack(rows), y.repeat(len(rows) // len(y))), weights, create_graph=True)
            weights = [p - lr * g for p, g in zip(weights, grads)]
        return weights

    same_objective(algorithm, tasks, lambda w: surprise(adapted(w, algorithm.inner_steps), query_x, query_y))
    [found] = answers(algorithm, task.context, query_x)
    close(found, logits(adapted(parameters(algorithm), algorithm.test_steps), query_x).detach())
