"""Images as features: where tasks leave the net alone, evaluation takes each image through it once, however many episodes it is in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from metarun.data.episodes import ClassEpisodes, Episodes
from metarun.nets.base import Net

FEATURE_BYTES = 2**30  # of the features of a split that are kept
IMAGES = 512  # whose features are computed at a time

Encode = Callable[[Sequence[Tensor]], Iterable[Tensor]]  # batches of images as they are stored, uint8 or float, to features


def of_images(episodes: Episodes, net: Net, n: int, encode: Encode) -> Episodes | None:
    """Episodes 0..n-1 with features [features] in place of images; None where that is not the same, or no less work."""
    if not isinstance(episodes, ClassEpisodes) or net.norm == "support" or net.transductive:
        return None
    images = episodes.images
    if len(images) > n * episodes.spec.images or len(images) * net.features * 4 > FEATURE_BYTES:
        return None
    return episodes.of_features(torch.cat(list(encode(images.split(IMAGES)))))
