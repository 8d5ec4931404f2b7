"""Task augmentation: of every training episode another task is made, so that there are more of them than the classes of the data give.
Ni, Goldblum, Sharaf, Kong, Goldstein 2021, arXiv:2010.07092; Yao, Zhang, Finn 2022 (MLTI), arXiv:2106.02695;
Rajendran, Irpan, Jang 2020, arXiv:2007.05549.

rotations: every class is turned by 0, 90, 180 or 270 degrees, all its images alike: four classes of one (Santoro et al. 2016).
mixup: the images of every class are mixed with those of another one, all of an episode in the same proportion: a class between the two.
    Deviations from MLTI: (1) pixels are mixed, not hidden layers; (2) the part is uniform, not Beta distributed. Regression: the points of
    two tasks are mixed, x and y alike.
label_noise: labels of the support are wrong at a rate, so that a learner comes to distrust them; of a regression all targets, support and
    query alike, are shifted by a number of the task's own, so that they cannot be known without the support (Rajendran et al.).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from metarun import inner
from metarun.errors import UserError
from metarun.problem import EpisodeSpec, Kind
from metarun.task import Batch, Task

TaskAugment = Literal["none", "rotations", "mixup", "label_noise"]
TURNS = 4
APART = 2**40  # from an episode to the one that it is mixed with, which no training comes to
TURN, PART, WRONG, SHIFT = 103, 104, 105, 106  # streams of the episode's key: no learner draws from them


def refuse(tasks: TaskAugment, noise: float, kind: Kind, input_shape: tuple[int, ...], spec: EpisodeSpec, data: str) -> None:
    """Is this possible with such data and training episodes?

    Raises:
        UserError: it is not.
    """
    classes, image = kind.name == "classification", len(input_shape) == 3
    what = f"augment.tasks={tasks} is not possible"
    if tasks == "rotations" and not (classes and image and input_shape[-1] == input_shape[-2]):
        raise UserError(f"{what}: it turns square images, and those of data={data} are {list(input_shape)}; choose mixup or none")
    if tasks == "mixup" and not ((classes and image) or kind.name == "regression"):
        raise UserError(f"{what}: it mixes images, or points of a regression, and data={data} has neither; choose none")
    if tasks == "label_noise" and not (classes or kind.name in ("regression", "density")):
        raise UserError(f"{what}: data={data} has neither labels of classes nor targets of a regression; choose none")
    if tasks == "label_noise" and classes and noise > 1:
        raise UserError(f"augment.noise={noise:g} is not possible: it is the part of the labels that are wrong, 0 to 1")
    if tasks in ("rotations", "mixup") and (spec.unlabelled or spec.uneven):
        key = "unlabelled" if spec.unlabelled else "uneven"
        raise UserError(f"{what} with episode.train.{key}: it goes by the classes of images, in the same places of all episodes")


def uniform(tasks: Task, n: int, stream: int) -> Tensor:
    """Uniform numbers [tasks, n] by the keys of stacked tasks."""
    return torch.vmap(lambda key: inner.uniform(key, (n,), stream))(tasks.context.key)


def replaced(tasks: Task, support: Batch, query: Batch, clean_x: Tensor | None = None) -> Task:
    """The tasks with other examples."""
    extras = tasks.context.extras | ({} if clean_x is None else {"clean_x": clean_x})
    return tasks._replace(context=tasks.context._replace(support=support, extras=extras), query=query)


def rotated(tasks: Task, classes: int) -> Task:
    """Classification tasks, stacked, whose classes are turned; ``classes`` is how many the data have, so that turned ones get new ids."""
    context, query = tasks.context, tasks.query
    turns = (TURNS * uniform(tasks, context.classes.shape[1], TURN)).long()

    def turned(x: Tensor, y: Tensor) -> Tensor:
        if x.shape[2:] != query.x.shape[2:]:
            return x  # attributes of classes
        turn = turns.gather(1, y)[..., None, None, None]
        x = torch.where(turn % 2 == 1, x.rot90(1, (-2, -1)), x)
        return torch.where(turn >= 2, x.rot90(2, (-2, -1)), x)

    clean = turned(context.extras["clean_x"], context.extras["clean_y"]) if "clean_x" in context.extras else None
    support = Batch(turned(*context.support), context.support.y)
    tasks = replaced(tasks, support, Batch(turned(*query), query.y), clean)
    return tasks._replace(context=tasks.context._replace(classes=context.classes + classes * turns))


def mixed(tasks: Task, others: Task, most: float) -> Task:
    """Tasks, stacked, mixed with ``others`` of the same form: up to ``most`` of every class is another one; ids of classes stay."""
    part = most * uniform(tasks, 1, PART)[:, 0]

    def mix(a: Tensor, b: Tensor) -> Tensor:
        return torch.lerp(a, b, part.to(a.dtype).view(-1, *[1] * (a.dim() - 1))) if a.is_floating_point() else a  # labels stay

    def both(a: Batch, b: Batch) -> Batch:
        return Batch(mix(a.x, b.x), mix(a.y, b.y))

    here, there = tasks.context, others.context
    clean = mix(here.extras["clean_x"], there.extras["clean_x"]) if "clean_x" in here.extras else None
    return replaced(tasks, both(here.support, there.support), both(tasks.query, others.query), clean)


def with_label_noise(tasks: Task, noise: float) -> Task:
    """Classification tasks, stacked, with wrong labels of the support at the rate ``noise``; or regression, shifted by N(0, noise²)."""
    context, query = tasks.context, tasks.query
    y = context.support.y
    if y.is_floating_point():
        outputs = y.shape[-1]
        shift = noise * torch.vmap(lambda key: inner.normal(key, (1, outputs), SHIFT))(context.key).to(y.dtype)
        return replaced(tasks, context.support._replace(y=y + shift), query._replace(y=query.y + shift))
    way, n = context.classes.shape[1], y.shape[1]
    wrong, on = uniform(tasks, 2 * n, WRONG).split(n, 1)
    moved = (y + 1 + (on * (way - 1)).long()) % way
    return replaced(tasks, context.support._replace(y=torch.where(wrong < noise, moved, y)), query)
