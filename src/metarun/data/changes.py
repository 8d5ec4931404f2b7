"""What can be done to images without making other classes of them: moved, thickened, lit otherwise; differentiable in every amount.
Images are [n, channels, height, width] in 0..1, amounts [n] or one number for all."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def warp(x: Tensor, theta: Tensor) -> Tensor:
    """Images moved as ``affine`` says: theta [n, 2, 3]; what lies outside goes on as the border is."""
    height, width = x.shape[-2:]
    across, along = (torch.linspace(-1, 1, n, dtype=x.dtype, device=x.device) * (n - 1) / n for n in (width, height))
    places = torch.stack([across.expand(height, width), along[:, None].expand(height, width), torch.ones_like(x[0, 0])], -1)
    # As F.affine_grid, which torch.vmap has no rule for.
    grid = (places.flatten(0, 1) @ theta.to(x.dtype).transpose(1, 2)).unflatten(1, (height, width))
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def affine(angle: Tensor, size: Tensor, slant: Tensor, right: Tensor, down: Tensor, side: Tensor, aspect: float) -> Tensor:
    """Where each pixel of the result is read, [n, 2, 3] in the coordinates of ``F.affine_grid``: x and y in -1..1.

    Args:
        angle: of the turn, radians [n].
        size: factor on what is read, so that 2 makes things half as large, [n].
        slant: its tangent, [n].
        right, down: how far off it is read, as a fraction of the image's side, [n].
        side: 1, or -1 for the mirror image, [n].
        aspect: height / width, so that an angle is an angle.
    """
    cos, sin = size * angle.cos(), size * angle.sin()
    first = torch.stack([side * cos, side * (slant * cos - sin) * aspect, 2 * right], -1)
    second = torch.stack([sin / aspect, slant * sin + cos, 2 * down], -1)
    return torch.stack([first, second], 1)


def thickening(x: Tensor, towards: Tensor) -> Tensor:
    """What makes what is bright grow by a pixel all around where ``towards`` [n, 1, 1, 1] is 1, and shrink as much where it is -1."""
    grown, shrunk = F.max_pool2d(x, 3, 1, 1), -F.max_pool2d(-x, 3, 1, 1)
    return towards.relu() * (grown - x) - (-towards).relu() * (x - shrunk)


def relight(x: Tensor, contrast: Tensor, brightness: Tensor) -> Tensor:
    """The distance from the image's mean changes by the part ``contrast``, then all values by ``brightness``, both [n, 1, 1, 1]."""
    mean = x.mean((1, 2, 3), keepdim=True)
    return (mean + (1 + contrast) * (x - mean)) * (1 + brightness)
