"""Images as features: where tasks leave the net alone, evaluation takes each image through it once, however many episodes it is in.
Those of a frozen net never change: they are kept on disk, and serve training as well."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from metarun.data.episodes import ClassEpisodes, Episodes
from metarun.data.feature_store import Store, fingerprint, stored_marks
from metarun.nets.base import Net

FEATURE_BYTES = 2**30  # of the features of a split that are kept
IMAGES = 512  # whose features are computed at a time
FROZEN_IMAGES = 32  # of a frozen net, which is larger
BLOCK = 2048  # images that are looked up at a time; what a killed run loses

Encode = Callable[[Sequence[Tensor]], Iterable[Tensor]]  # batches of images as they are stored, uint8 or float, to features


def of_images(episodes: Episodes, net: Net, n: int, encode: Encode) -> Episodes | None:
    """Episodes 0..n-1 with features [features] in place of images; None where that is not the same, or no less work."""
    if not isinstance(episodes, ClassEpisodes) or net.norm == "support" or net.transductive:
        return None
    images = episodes.images
    if len(images) > n * episodes.spec.images or len(images) * net.features * 4 > FEATURE_BYTES:
        return None
    return episodes.of_features(torch.cat(list(encode(images.split(IMAGES)))))


def of_frozen(episodes: Episodes, net: Net, encode: Encode, computed_by: str) -> Episodes | None:
    """The same episodes with features [features] of a frozen net in place of images; None where images change, or are features already.

    Args:
        computed_by: what beside net and image decides the features' last digits, such as the kind of device.
    """
    if not isinstance(episodes, ClassEpisodes) or episodes.images.shape[1:] == (net.features,):
        return None
    store = Store(fingerprint(net, computed_by), net.features)
    return episodes.of_features(kept(episodes.images, store, encode))


def kept(images: Tensor, store: Store, encode: Encode) -> Tensor:
    """Features [n, features] of images [n, channels, height, width] as they are kept in memory, from the store where it has them."""
    found = []
    for block in images.split(BLOCK):
        marks = stored_marks(block)
        known = store.find(marks)
        first = {mark: i for i, mark in reversed(list(enumerate(marks))) if mark not in known}  # a copy is computed once
        rows = sorted(first.values())
        if rows:
            made = torch.cat(list(encode(block[rows].split(FROZEN_IMAGES)))).float().cpu().numpy()
            new = {marks[row]: vector for row, vector in zip(rows, made, strict=True)}
            store.keep(new)
            known |= new
        found.append(torch.stack([torch.from_numpy(known[mark].copy()) for mark in marks]))
    return torch.cat(found).to(images.device)
