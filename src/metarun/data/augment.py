"""Augmentation: every image of a training episode is moved, bent and thickened a little, by noise that the episode's key determines.
Development and test episodes stay as they are, and so do the hashes of all episodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le, Lt
from torch import Tensor

from metarun import inner
from metarun.data.episodes import Episodes
from metarun.task import Batch, Task

STREAM = 101  # of the episode's key: no learner draws from it
NOISE = 9  # numbers per image


class Augment:
    """Random changes of an image that leave its class as it is; every argument 0 or false changes nothing.

    Args:
        rotate: largest angle, degrees, either way.
        scale: largest factor of size is 1 + scale, the smallest its inverse.
        shear: largest tangent of the slant, either way.
        shift: largest move along each axis, as a fraction of the image's side.
        flip: mirror every other image, left to right.
        thickness: of strokes; 1 grows or shrinks what is bright by up to one pixel all around.
        contrast: largest relative change of the distance from the image's mean.
        brightness: largest relative change of all values.
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
    ) -> None:
        self.rotate, self.scale, self.shear, self.shift, self.flip = rotate, scale, shear, shift, flip
        self.thickness, self.contrast, self.brightness = thickness, contrast, brightness

    def __bool__(self) -> bool:
        """Whether anything is changed."""
        return any(vars(self).values())

    @staticmethod
    def noise(key: Tensor, n: int) -> Tensor:
        """What n images of the episode with this key [] int64 are changed by, [n, 9] uniform in 0..1."""
        return inner.uniform(key, (n, NOISE), STREAM)

    def __call__(self, x: Tensor, noise: Tensor) -> Tensor:
        """Images x [n, channels, height, width] in 0..1 changed by ``noise`` [n, 9], uniform in 0..1; same shape and range."""
        spread = 2 * noise - 1
        if self.rotate or self.scale or self.shear or self.shift or self.flip:
            grid = F.affine_grid(self.affine(spread, x.shape[-2] / x.shape[-1]), list(x.shape), align_corners=False)
            x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
        thicker, contrast, brightness = spread[:, 6:, None, None, None].unbind(1)
        if self.thickness:
            grown, shrunk = F.max_pool2d(x, 3, 1, 1), -F.max_pool2d(-x, 3, 1, 1)
            x = x + self.thickness * (thicker.relu() * (grown - x) - (-thicker).relu() * (x - shrunk))
        if self.contrast or self.brightness:
            mean = x.mean((1, 2, 3), keepdim=True)
            x = (mean + (1 + self.contrast * contrast) * (x - mean)) * (1 + self.brightness * brightness)
        return x.clamp(0, 1)

    def affine(self, spread: Tensor, aspect: float) -> Tensor:
        """Where each pixel of the result is read, [n, 2, 3] in the coordinates of ``F.affine_grid``: x and y in -1..1.

        Args:
            spread: [n, 6 or more] uniform in -1..1.
            aspect: height / width, so that an angle is an angle.
        """
        angle, size, slant, right, down, mirror = spread.T[:6]
        angle, size = angle * math.radians(self.rotate), torch.exp(-size * math.log1p(self.scale))
        side = torch.where(mirror < 0, -1.0, 1.0) if self.flip else torch.ones_like(mirror)
        cos, sin = size * angle.cos(), size * angle.sin()
        slant = slant * self.shear
        first = torch.stack([side * cos, side * (slant * cos - sin) * aspect, 2 * self.shift * right], -1)
        second = torch.stack([sin / aspect, slant * sin + cos, 2 * self.shift * down], -1)
        return torch.stack([first, second], 1)


class Augmented(Episodes):
    """The episodes of ``plain``, their images changed; support, query and unlabelled alike, each image by itself; attributes stay."""

    def __init__(self, plain: Episodes, augment: Augment) -> None:
        self.source, self.augment, self.length = plain, augment, plain.length

    @property
    def plain(self) -> Episodes:
        return self.source

    def batch(self, indices: Sequence[int]) -> Task:
        task = self.plain.batch(indices)
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
