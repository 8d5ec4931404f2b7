"""Augmentation: every image of a training episode is moved, bent and thickened a little, by noise that the episode's key determines; or
the episode as a whole becomes another task. Development and test episodes stay as they are, and so do the hashes of all episodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Le, Lt
from torch import Tensor

from metarun import inner
from metarun.data.changes import affine, relight, thickening, warp
from metarun.data.episodes import Episodes
from metarun.data.task_augment import APART, TURNS, TaskAugment, mixed, refuse, rotated, with_label_noise
from metarun.errors import UserError
from metarun.problem import EpisodeSpec, Kind
from metarun.task import Batch, Task

STREAM = 101  # of the episode's key: no learner draws from it
NOISE = 9  # numbers per image


class Augment:
    """Random changes of an image that leave its class as it is, and of a task that make another one of it; every argument 0, false or none
    changes nothing.

    Args:
        rotate: largest angle, degrees, either way.
        scale: largest factor of size is 1 + scale, the smallest its inverse.
        shear: largest tangent of the slant, either way.
        shift: largest move along each axis, as a fraction of the image's side.
        flip: mirror every other image, left to right.
        thickness: of strokes; 1 grows or shrinks what is bright by up to one pixel all around.
        contrast: largest relative change of the distance from the image's mean.
        brightness: largest relative change of all values.
        tasks: ``rotations``, ``mixup`` or ``label_noise``, see ``task_augment``.
        mix: largest part of the other class (``mixup``).
        noise: part of the labels that are wrong, or standard deviation of a regression's shift (``label_noise``).
    """

    def __init__(
        self,
        *,
        rotate: Annotated[float, Ge(0), Le(180)] = 0.0,
        scale: Annotated[float, Ge(0), Le(1)] = 0.0,
        shear: Annotated[float, Ge(0), Le(1)] = 0.0,
        shift: Annotated[float, Ge(0), Lt(1)] = 0.0,
        flip: bool = False,
        thickness: Annotated[float, Ge(0), Le(1)] = 0.0,
        contrast: Annotated[float, Ge(0), Le(1)] = 0.0,
        brightness: Annotated[float, Ge(0), Le(1)] = 0.0,
        tasks: TaskAugment = "none",
        mix: Annotated[float, Ge(0), Lt(1)] = 0.5,
        noise: Annotated[float, Ge(0)] = 0.1,
    ) -> None:
        self.rotate, self.scale, self.shear, self.shift, self.flip = rotate, scale, shear, shift, flip
        self.thickness, self.contrast, self.brightness = thickness, contrast, brightness
        self.tasks, self.mix, self.rate = tasks, mix, noise

    @property
    def images(self) -> bool:
        """Whether images are changed one by one."""
        moved = (self.rotate, self.scale, self.shear, self.shift, self.flip)
        return any((*moved, self.thickness, self.contrast, self.brightness))

    def __bool__(self) -> bool:
        """Whether anything is changed."""
        return self.images or self.tasks != "none"

    @property
    def versions(self) -> int:
        """How many classes become of one."""
        return TURNS if self.tasks == "rotations" else 1

    def refuse(self, kind: Kind, input_shape: tuple[int, ...], spec: EpisodeSpec, data: str) -> None:
        """Is this augmentation possible with such data and training episodes?

        Raises:
            UserError: it is not.
        """
        if self.images and len(input_shape) != 3:
            raise UserError(f"augment changes images, and data={data} has none: leave it at augment=none")
        if self and spec.whole:
            raise UserError("augment changes the images of an episode, and a whole training set lies outside it: leave augment=none")
        refuse(self.tasks, self.rate, kind, input_shape, spec, data)

    @staticmethod
    def noise(key: Tensor, n: int) -> Tensor:
        """What n images of the episode with this key [] int64 are changed by, [n, 9] uniform in 0..1."""
        return inner.uniform(key, (n, NOISE), STREAM)

    def __call__(self, x: Tensor, noise: Tensor) -> Tensor:
        """Images x [n, channels, height, width] in 0..1 changed by ``noise`` [n, 9], uniform in 0..1; same shape and range."""
        spread = 2 * noise - 1
        angle, size, slant, right, down, mirror = spread.T[:6]
        thicker, contrast, brightness = spread[:, 6:, None, None, None].unbind(1)
        if self.rotate or self.scale or self.shear or self.shift or self.flip:
            side = torch.where(mirror < 0, -1.0, 1.0) if self.flip else torch.ones_like(mirror)
            angle, size = angle * math.radians(self.rotate), torch.exp(-size * math.log1p(self.scale))
            x = warp(x, affine(angle, size, slant * self.shear, self.shift * right, self.shift * down, side, x.shape[-2] / x.shape[-1]))
        if self.thickness:
            x = x + self.thickness * thickening(x, thicker)
        if self.contrast or self.brightness:
            x = relight(x, self.contrast * contrast, self.brightness * brightness)
        return x.clamp(0, 1)

    def task(self, task: Task, other: Task | None, classes: int) -> Task:
        """Other tasks in place of stacked ones; ``other``: those that ``mixup`` mixes them with; ``classes``: how many the data have."""
        if self.tasks == "rotations":
            return rotated(task, classes)
        if self.tasks == "mixup" and other is not None:
            return mixed(task, other, self.mix)
        return with_label_noise(task, self.rate) if self.tasks == "label_noise" else task


class Augmented(Episodes):
    """The episodes of ``plain``, made other tasks, and their images changed; support, query and unlabelled alike, each image by itself;
    attributes stay.

    Args:
        plain: the episodes.
        augment: what becomes of them.
        classes: how many the data have.
    """

    def __init__(self, plain: Episodes, augment: Augment, classes: int = 0) -> None:
        self.source, self.augment, self.classes, self.length = plain, augment, classes, plain.length

    @property
    def plain(self) -> Episodes:
        return self.source

    def batch(self, indices: Sequence[int]) -> Task:
        task = self.augment.task(self.plain.batch(indices), self.others(indices), self.classes)
        return self.of_images(task) if self.augment.images else task

    def others(self, indices: Sequence[int]) -> Task | None:
        """The episodes that those of these indices are mixed with; None where they are not."""
        if self.augment.tasks != "mixup":
            return None
        length = self.length
        return self.plain.batch([index + APART if length is None else (index + 1) % length for index in indices])

    def of_images(self, task: Task) -> Task:
        """Stacked tasks whose images are changed."""
        context, query = task.context, task.query
        parts = {"support": context.support.x, "query": query.x, **context.extras}
        parts = {name: x for name, x in parts.items() if x.shape[2:] == query.x.shape[2:]}
        images = torch.cat(list(parts.values()), 1)
        noise = torch.vmap(lambda key: self.augment.noise(key, images.shape[1]))(context.key)
        images = self.augment(images.flatten(0, 1), noise.flatten(0, 1)).view_as(images)
        changed = dict(zip(parts, images.split([x.shape[1] for x in parts.values()], 1)))
        support_x, query_x = changed.pop("support", context.support.x), changed.pop("query")
        support = Batch(support_x, context.support.y)
        return task._replace(context=context._replace(support=support, extras=changed), query=Batch(query_x, query.y))

    def identity(self, indices: Sequence[int]) -> bytes:
        return self.plain.identity(indices)

    def content(self) -> bytes:
        return self.plain.content()
