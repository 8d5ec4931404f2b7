"""The episode sampler: (seed, split, index) -> Task, a pure function and nothing else.
Batch size, chunking, device, worker count and history cannot change an episode, so resume needs one integer."""

from __future__ import annotations

import copy
import hashlib
import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from metarun.data.leakage import digest
from metarun.errors import UserError
from metarun.problem import EpisodeSpec, Gaussian
from metarun.task import Batch, Context, Task, to_float

# Streams keep the draws of one episode independent of each other.
CLASSES, IMAGES, KEY, DISTRACTORS, UNLABELLED, ORDER, GROUP, SHOTS, TRAJECTORIES, WRONG, OTHERS = range(1, 12)
UNKNOWN, UNKNOWN_IMAGES = 21, 22  # apart from those of other samplers

_U64 = np.uint64


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection of uint64 that scatters all bits."""
    x = (x ^ (x >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> _U64(27))) * _U64(0x94D049BB133111EB)
    return x ^ (x >> _U64(31))


def episode_keys(seed: int, split: str, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """One uint64 key per episode [B], determined by the seed, the split's name and the episode's index."""
    with np.errstate(over="ignore"):
        base = mix(np.array(seed, dtype=np.int64).astype(_U64) * _U64(0x9E3779B97F4A7C15) + _U64(zlib.crc32(split.encode())))
        return mix(mix(base + np.asarray(indices, dtype=np.int64).astype(_U64)) + base)


def draws(keys: np.ndarray, stream: int, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform numbers in [0, 1), [B, *shape] float64: a counter-based generator, no state."""
    with np.errstate(over="ignore"):
        size = int(np.prod(shape))
        counter = np.arange(1, size + 1, dtype=_U64) * _U64(0x9E3779B97F4A7C15)
        start = mix(keys + _U64(stream) * _U64(0xD1342543DE82EF95))
        bits = mix(start[:, None] + counter)
        return ((bits >> _U64(11)) * 2.0**-53).reshape(len(keys), *shape)


def normal_draws(keys: np.ndarray, stream: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers [B, *shape] float64 (Box and Muller 1958), otherwise as ``draws``."""
    radius, angle = np.moveaxis(draws(keys, stream, (*shape, 2)), -1, 0)
    made: np.ndarray = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * math.pi * angle)
    return made


def choose(uniform: np.ndarray, n: np.ndarray | int, k: int) -> np.ndarray:
    """``k`` distinct integers of 0..n-1 in random order, for every leading index at once.

    Floyd's algorithm (Bentley & Floyd, CACM 1987) picks the set in k steps whatever n is, a sort of random keys
    puts it in order: every ordered sample is equally likely. ``uniform`` is [..., 2k], ``n`` broadcasts to [...];
    returns int64 [..., k]. Needs k <= n.
    """
    last = np.broadcast_to(np.asarray(n, dtype=np.int64), uniform.shape[:-1])
    chosen = np.empty((k, *last.shape), dtype=np.int64)
    for i in range(k):
        top = last - k + i
        pick = (uniform[..., i] * (top + 1)).astype(np.int64)
        chosen[i] = np.where((chosen[:i] == pick).any(0), top, pick)
    order = np.argsort(uniform[..., k:], axis=-1)
    return np.take_along_axis(np.moveaxis(chosen, 0, -1), order, axis=-1)


def choose_others(uniform: np.ndarray, n: np.ndarray | int, k: int, taken: np.ndarray) -> np.ndarray:
    """As ``choose``, but none of ``taken`` [..., t], which are distinct integers, those from n on for nothing; needs k + t <= n."""
    free = n - (taken < np.expand_dims(n, -1)).sum(-1)
    chosen = choose(uniform, free, k)
    for other in np.moveaxis(np.sort(taken, axis=-1), -1, 0):
        chosen += chosen >= other[..., None]  # in ascending order, so that each gap is jumped once
    return chosen


class Split(NamedTuple):
    """The images of one split, grouped by class; class c owns rows starts[c] .. starts[c] + counts[c] - 1."""

    images: Tensor  # [n, channels, height, width] uint8, 0..255; or other examples, [n, *input_shape]
    starts: np.ndarray  # [classes] int64
    counts: np.ndarray  # [classes] int64
    names: list[str]  # [classes], for reports and pictures
    attributes: Tensor = torch.empty(0, 0)  # [classes, attributes] float32, what is known of a class without its images; [0, 0]: nothing
    groups: np.ndarray | None = None  # [classes] int64; an episode takes all its classes from one group. None: from all classes
    files: list[str] | None = None  # [n], where the images come from, for reports; None: from no files of the user's

    @property
    def classes(self) -> int:
        return len(self.names)

    def sha256(self) -> bytes:
        """Digest of all that episodes are made of: images, how they are grouped, attributes. Names and places of files do not count."""
        found = hashlib.sha256(f"{list(self.images.shape)} {self.counts.tolist()} {list(self.attributes.shape)}".encode())
        found.update(self.images.contiguous().numpy().data)
        found.update(self.attributes.contiguous().numpy().data)
        return found.digest()

    def marks(self) -> list[str]:
        """Of every class a digest of its first and last image, [classes]: by which it is known under another name and in another split."""
        return [digest(self.images[[start, start + count - 1]].numpy()) for start, count in zip(self.starts, self.counts)]


class Episodes(ABC):
    """The endless list of episodes of one split."""

    length: int | None = None  # how many there are; None: endless
    same_classes: bool = False  # all hold the same classes, so that an interval over episodes says nothing of others

    @property
    def plain(self) -> Episodes:
        """The same episodes without augmentation."""
        return self

    @abstractmethod
    def batch(self, indices: Sequence[int]) -> Task:
        """The episodes of these indices, stacked, on the data's device."""

    @abstractmethod
    def identity(self, indices: Sequence[int]) -> bytes:
        """Bytes that determine these episodes (class and sample indices), one after the other, for ``sha256``."""

    @abstractmethod
    def content(self) -> bytes:
        """A digest of what ``identity`` only points at, such as the images whose indices it gives: other data, another digest."""

    def bounds(self, n: int) -> dict[str, np.ndarray]:
        """What scores mean: by name the scores [n] on episodes 0..n-1 of a ``trivial`` rule and of an ``oracle``, where these are known."""
        return {}

    def oracle(self, index: int, x: Tensor) -> Gaussian | None:
        """What one who knows how the data come about answers to x [n, *input_shape] in an episode; None where nobody knows."""
        return None

    def sha256(self, n: int, block: int = 256) -> str:
        """SHA-256 over the content and the identity of episodes 0..n-1: runs with equal ones, and as many support and query examples,
        may be compared pair by pair."""
        found = hashlib.sha256(self.content())
        for first in range(0, n, block):
            found.update(self.identity(range(first, min(first + block, n))))
        return found.hexdigest()


def task_keys(keys: np.ndarray) -> Tensor:
    """The random key handed to the learner, [B] int64, independent of the draws that made the episode."""
    with np.errstate(over="ignore"):
        return torch.from_numpy(mix(keys + _U64(KEY) * _U64(0xD1342543DE82EF95)).astype(np.int64))


def trajectory_keys(keys: np.ndarray, n: int) -> Tensor:
    """Keys of n trajectories of every episode, [B, n] int64; the first ones are the same whatever n is."""
    with np.errstate(over="ignore"):
        start = mix(keys + _U64(TRAJECTORIES) * _U64(0xD1342543DE82EF95))
        return torch.from_numpy(mix(start[:, None] + np.arange(n, dtype=_U64)).astype(np.int64))


class ClassEpisodes(Episodes):
    """N-way K-shot episodes over a ``Split``: distinct classes in random label order, disjoint support, query and unlabelled images.

    Where the data have ``groups``, each one with enough classes is as likely as another, and an episode's classes, distractors too, are
    of one of them. With ``shot`` 0 the support is the attribute vectors of the classes. Unlabelled images are in random order; asking
    for them leaves support and query of an episode as they are.

    With ``uneven`` (and more than one shot) every class has one image in the support, and the others are drawn one after the other from
    all images that the classes have left, beside their queries and unlabelled ones: large classes have more of them.

    With ``whole`` x of the support is rows [n] int64 of the images, which all tasks have in common as ``Context.shared``.

    Queries of ``unknown`` classes are in the episodes of ``open_set``, which are these with more queries.

    Args:
        data: the split's images.
        split: its name, part of every episode's identity.
        spec: way and distractors (classes), shot, query, clean and unlabelled (images per class), and what of the support is corrupt.
        seed: any integer.
        device: where the images lie once, and where tasks appear.

    Raises:
        UserError: more classes or images per class are asked for than there are.
    """

    def __init__(self, data: Split, split: str, spec: EpisodeSpec, seed: int, device: str | torch.device = "cpu") -> None:
        if spec.distractors and not spec.unlabelled:
            raise UserError(f"distractors={spec.distractors} are classes of unlabelled images, but unlabelled=0; choose unlabelled >= 1")
        asked, what, classes = _sum(spec, "way", "distractors", "unknown")
        members = [np.arange(data.classes)] if data.groups is None else [np.flatnonzero(data.groups == g) for g in np.unique(data.groups)]
        most = max(map(len, members))
        if classes > most:
            where = f"the {split} split" if data.groups is None else f"the largest group of classes in the {split} split"
            raise UserError(f"{asked} is larger than the {most} classes of {where}; choose {what} <= {most}")
        members = [found for found in members if len(found) >= classes]
        self.group_sizes = np.array([len(found) for found in members])
        self.group_members = np.stack([np.pad(found, (0, most - len(found))) for found in members])  # [groups, most]
        self.uneven = spec.uneven and spec.shot > 1
        one = int(self.uneven)  # that every class has in its support, whatever the others have
        asked, what, need = _sum(spec, *["shot"] * (not self.uneven), "query", "clean", "unlabelled")
        if need + one > data.counts.min():
            short = int(data.counts.argmin())
            raise UserError(
                f"{asked} images per class{' and one of support' * one}, but class '{data.names[short]}' of the {split} split "
                f"has {data.counts[short]}; choose {what} <= {data.counts[short] - one}"
            )
        asked, what, need = _sum(spec, "shot", "query", "clean", "unlabelled")
        there = int(np.sort(data.counts)[: spec.way].sum())
        if need * spec.way > there:
            raise UserError(
                f"{asked} images per class are {need * spec.way} in an episode, but the {spec.way} smallest classes of the {split} split "
                f"have {there}; choose {what} <= {there // spec.way}"
            )
        self.data, self.split, self.spec, self.seed = data, split, spec, seed
        self.asks_unknown = False
        self.same_classes = len(members) == 1 and len(members[0]) == spec.way
        self.images, self.attributes = data.images.to(device), data.attributes.to(device)
        spread = torch.arange(spec.way, device=device)
        self.corruption = Corrupted(spec, len(data.images))
        kept = torch.from_numpy(self.corruption.kept).to(device)
        self.support_y = spread.repeat_interleave(spec.shot)[kept] if spec.shot else spread
        self.query_y, self.clean_y = spread.repeat_interleave(spec.query), spread.repeat_interleave(spec.clean)
        if self.corruption.noisy:
            self.images = torch.cat([self.images, noise_like(data.images, self.corruption.wrong, seed, split).to(device)])

    def indices(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Keys [B] uint64, classes [B, way] and image rows [B, way, shot + query + clean] of these episodes, nothing of them corrupt.

        Of uneven ones there are more places than ``shot``; those that a class leaves empty hold the row behind its last.
        """
        way, need = self.spec.way, self.spec.shot + self.spec.query + self.spec.clean
        keys = episode_keys(self.seed, self.split, indices)
        group = self.group(keys)
        members = choose(draws(keys, CLASSES, (2 * way,)), self.group_sizes[group], way)
        classes = self.group_members[group[:, None], members]
        counts = self.data.counts[classes]
        samples = self._unevenly(keys, counts) if self.uneven else choose(draws(keys, IMAGES, (way, 2 * need)), counts, need)
        return keys, classes, self.data.starts[classes][..., None] + samples

    def _unevenly(self, keys: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Which of the ``counts`` [B, way] images of each class are support and query, [B, way, places + query]; empty: the count."""
        spec, episode = self.spec, np.arange(len(keys))
        shots, left = np.ones_like(counts), counts - spec.query - spec.unlabelled - 1
        for uniform in draws(keys, SHOTS, (spec.way * (spec.shot - 1),)).T:
            c = (left.cumsum(-1) <= (uniform * left.sum(-1))[:, None]).sum(-1)  # of the class that the image drawn belongs to
            shots[episode, c] += 1
            left[episode, c] -= 1
        most = int(self.data.counts.max())
        there = np.arange(most) < counts[..., None]
        query, support = np.split(np.where(there, draws(keys, IMAGES, (spec.way, most)), 1.0).argsort(-1), [spec.query], axis=-1)
        support = support[..., : spec.way * (spec.shot - 1) + 1]
        support = np.where(np.arange(support.shape[-1]) < shots[..., None], support, counts[..., None])
        return np.concatenate([support, query], -1)

    def group(self, keys: np.ndarray) -> np.ndarray:
        """The group of classes of every episode, [B]."""
        return (draws(keys, GROUP, ()) * len(self.group_sizes)).astype(np.int64)

    def unlabelled(self, keys: np.ndarray, classes: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Image rows [B, (way + distractors) * unlabelled] in random order, beside what ``indices`` says of these episodes."""
        further, each = self.spec.distractors, self.spec.unlabelled
        others = self._others(keys, classes, DISTRACTORS, further)
        uniform = draws(keys, UNLABELLED, (self.spec.way + further, 2 * each))
        known, unknown = np.split(uniform, [self.spec.way], axis=1)
        starts, counts = self.data.starts, self.data.counts
        own = choose_others(known, counts[classes], each, rows - starts[classes][..., None]) + starts[classes][..., None]
        foreign = choose(unknown, counts[others], each) + starts[others][..., None]
        found = np.concatenate([own, foreign], 1).reshape(len(keys), -1)
        return np.take_along_axis(found, draws(keys, ORDER, found.shape[1:]).argsort(-1), axis=-1)

    def _others(self, keys: np.ndarray, classes: np.ndarray, stream: int, n: int) -> np.ndarray:
        """``n`` classes [B, n] of the episodes' groups that are none of ``classes`` [B, …]."""
        group = self.group(keys)
        taken = (self.group_members[group][:, None] == classes[..., None]).argmax(-1)
        return self.group_members[group[:, None], choose_others(draws(keys, stream, (2 * n,)), self.group_sizes[group], n, taken)]

    def unknown(self, keys: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Image rows [B, unknown * query] of classes that are neither among ``classes`` [B, way] nor distractors."""
        spec = self.spec
        known = np.concatenate([classes, self._others(keys, classes, DISTRACTORS, spec.distractors)], 1)
        others = self._others(keys, known, UNKNOWN, spec.unknown)
        found = choose(draws(keys, UNKNOWN_IMAGES, (spec.unknown, 2 * spec.query)), self.data.counts[others], spec.query)
        rows: np.ndarray = (found + self.data.starts[others][..., None]).reshape(len(keys), -1)
        return rows

    def open_set(self) -> ClassEpisodes:
        """The same episodes with the queries of unknown classes after the others, whose y is −1."""
        other = copy.copy(self)
        other.asks_unknown = self.spec.unknown > 0
        return other

    def of_features(self, features: Tensor) -> ClassEpisodes:
        """The same episodes with features [n, d] in place of the n images they were computed from."""
        other = copy.copy(self)
        other.images = features
        return other

    def batch(self, indices: Sequence[int]) -> Task:
        keys, classes, rows = self.indices(indices)
        n, device = len(keys), self.images.device

        def gather(part: np.ndarray) -> Tensor:
            flat = torch.from_numpy(np.ascontiguousarray(part).reshape(-1)).to(device)
            return to_float(self.images.index_select(0, flat)).reshape(n, -1, *self.images.shape[1:])

        known = torch.from_numpy(classes).to(device)
        last = rows.shape[-1] - self.spec.clean
        support, query, clean = np.split(rows, [last - self.spec.query, last], axis=-1)
        support_y = self.support_y.expand(n, -1)
        corrupt: Tensor | tuple[()] = ()
        if self.uneven:
            there = support < (self.data.starts + self.data.counts)[classes][..., None]
            support_y = torch.from_numpy(there.nonzero()[1].reshape(n, -1)).to(device)
            support = support[there].reshape(n, -1)
        elif self.spec.shot:
            support, moved = self.corruption(keys, support.reshape(n, -1))
            support_y = (support_y + torch.from_numpy(moved).to(device)) % self.spec.way
            corrupt = self.corruption.marks(support, moved, device)
        extras = {"unlabelled": gather(self.unlabelled(keys, classes, rows))} if self.spec.unlabelled else {}
        if self.spec.clean:
            extras |= {"clean_x": gather(clean), "clean_y": self.clean_y.expand(n, -1)}
        if self.spec.whole:
            support_x = torch.from_numpy(support).to(device)
        else:
            support_x = gather(support) if self.spec.shot else self.attributes[known]
        shared = self.images if self.spec.whole else ()
        context = Context(Batch(support_x, support_y), known, task_keys(keys).to(device), extras, shared)
        query_x, query_y = gather(query), self.query_y.expand(n, -1)
        if self.asks_unknown:
            more = gather(self.unknown(keys, classes))
            query_x, query_y = torch.cat([query_x, more], 1), torch.cat([query_y, query_y.new_full(more.shape[:2], -1)], 1)
        return Task(context, Batch(query_x, query_y), corrupt=corrupt)

    def identity(self, indices: Sequence[int]) -> bytes:
        keys, classes, rows = self.indices(indices)
        parts = [classes, rows.reshape(len(rows), -1)]
        if self.spec.unknown:
            parts.append(self.unknown(keys, classes))
        if self.spec.corrupt != "none":
            support = rows[..., : self.spec.shot].reshape(len(rows), -1)
            parts += [np.full((len(rows), 1), self.seed), *self.corruption(keys, support)]  # the seed is that of noise
        if self.spec.unlabelled:
            parts.append(self.unlabelled(keys, classes, rows))
        return np.concatenate(parts, 1).astype("<i8").tobytes()

    def content(self) -> bytes:
        return self.data.sha256()


class Corrupted:
    """What becomes of a support's images, n = way * shot of them grouped by class, by the ``corrupt`` and ``rate`` of a spec.

    Attributes:
        kept: which of them there are at all, [m] int64; the same in all episodes, so that tasks can be stacked.
        wrong: how many of these are corrupt.
        noisy: whether they are noise, which has rows of its own, behind those of the images.
    """

    def __init__(self, spec: EpisodeSpec, images: int) -> None:
        self.way, self.images, self.noisy = spec.way, images, spec.corrupt == "noise"
        part = spec.rate ** (np.arange(spec.way) / max(1, spec.way - 1)) if spec.corrupt == "imbalance" else np.ones(spec.way)
        each = np.maximum(1, np.round(spec.shot * part)).astype(np.int64)
        self.kept = np.flatnonzero(np.arange(spec.shot) < each[:, None])
        self.wrong = round(spec.rate * len(self.kept)) if spec.corrupt in ("labels", "noise") else 0

    def __call__(self, keys: np.ndarray, support: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows [B, m] in place of those of ``support`` [B, n], and by how many classes each label is moved on, [B, m]."""
        found = support[:, self.kept]
        moved = np.zeros(found.shape, dtype=np.int64)
        if self.wrong:
            places = draws(keys, WRONG, found.shape[1:]).argsort(-1)[:, : self.wrong]
            uniform = draws(keys, OTHERS, (self.wrong,))
            if self.noisy:
                np.put_along_axis(found, places, self.images + uniform.argsort(-1), -1)
            else:
                np.put_along_axis(moved, places, 1 + (uniform * (self.way - 1)).astype(np.int64), -1)
        return found, moved

    def marks(self, rows: np.ndarray, moved: np.ndarray, device: torch.device) -> Tensor | tuple[()]:
        """Which of the support are corrupt, [B, m] bool, of what came of a call; () where nothing is."""
        return torch.from_numpy(rows >= self.images if self.noisy else moved != 0).to(device) if self.wrong else ()


def noise_like(images: Tensor, n: int, seed: int, split: str) -> Tensor:
    """n images [n, channels, height, width] uint8 of Gaussian pixels with the mean and standard deviation of these, by channel.

    Those of a split are its own: else what is meta-learned could have the noise of the test by heart.
    """
    pixels = images[:: max(1, len(images) // 1000)].double()
    mean, spread = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))
    normal = np.random.default_rng([seed, *split.encode()]).standard_normal((n, *images.shape[1:]))
    return (mean[:, None, None] + spread[:, None, None] * torch.from_numpy(normal)).clamp(0, 255).round().to(torch.uint8)


def _sum(spec: EpisodeSpec, *names: str) -> tuple[str, str, int]:
    """What a message says of keys that add up: ``way=5 + distractors=2 = 7``, ``way + distractors``, and the sum; zeros are left out."""
    values = {name: value for name in names if (value := getattr(spec, name))}
    total = sum(values.values())
    asked = " + ".join(f"{name}={value}" for name, value in values.items())
    return f"{asked} = {total}" if len(values) > 1 else asked, " + ".join(values), total
