"""Small tables of numbers with a column of classes, drawn from a prior over how tables come about: what a prior-fitted net is trained on.
Random structural nets as in Hollmann, Müller, Eggensperger, Hutter 2023 (TabPFN), arXiv:2207.01848, section 4."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Le

from metarun.data.base import Dataset, TableForm
from metarun.data.episodes import Episodes, draws, episode_keys, normal_draws, task_keys
from metarun.errors import UserError
from metarun.problem import EpisodeSpec
from metarun.task import Batch, Context, Task

# Streams of draws, apart from those of other data; WEIGHTS, KEPT and NOISE and what follows them are one for each layer.
SHAPE, CAUSES, COLUMNS, LABELS, LOOKS, KINDS, CENTRES, WEIGHTS, KEPT, NOISE = 61, 62, 63, 64, 65, 66, 67, 70, 80, 90
SHARE = 0.5  # of the connections of a net that are there
LEAST, MOST = -2.0, -0.5  # decimal logarithms of the deviation of a unit's noise
CURVES: tuple[Callable[[np.ndarray], np.ndarray], ...] = (lambda x: x, np.tanh, lambda x: np.maximum(x, 0), np.sin)
NEAREST, FARTHEST = -0.7, 0.3  # decimal logarithms of how far centres of classes lie apart
LEVELS = (2, 6)  # fewest and most values of a column that has few


class Classes(NamedTuple):
    """Which classes B tables have."""

    number: np.ndarray  # [B], 2..way
    ends: np.ndarray  # [B, way - 1], where their shares end, from 1 : 3 to 3 : 1
    names: np.ndarray  # [B, way] int64, which label a class has

    def at(self, heights: np.ndarray) -> np.ndarray:
        """Classes [B, n] of heights [B, n] in 0..1."""
        return (heights[..., None] > self.ends[:, None]).sum(-1)


class Table(NamedTuple):
    """B tables of n rows, float64."""

    x: np.ndarray  # [B, n, columns], zeros beyond a table's own columns
    y: np.ndarray  # [B, n] int64, 0..way-1


class TableEpisodes(Episodes):
    """Tables of ``way * shot`` labelled rows and ``way * query`` others; a table has 2 to ``way`` classes, of different sizes.

    A net of random connections turns causes into units, layer by layer, and a table's columns are some of all units. Its classes come of
    another one, cut at some heights, or of several, the largest of which wins; or else classes come first, and the causes lie around a
    centre of theirs.

    Args:
        data: how nets are drawn.
        split: part of every episode's identity, as is the ``seed``.
        device: where tasks appear.
    """

    def __init__(self, data: Tables, split: str, spec: EpisodeSpec, seed: int, device: str | torch.device) -> None:
        self.data, self.split, self.spec, self.seed, self.device = data, split, spec, seed, device

    def drawn(self, indices: Sequence[int]) -> tuple[np.ndarray, Table]:
        """Keys [B] uint64 and the tables, those rows first that are labelled."""
        keys, rows = episode_keys(self.seed, self.split, indices), self.spec.way * (self.spec.shot + self.spec.query)
        shape = draws(keys, SHAPE, (7,))
        depth = 1 + np.floor(shape[:, 0] * self.data.layers).astype(int)
        classes, first = self._classes(keys), shape[:, 5] < self.data.clusters
        kinds = classes.at(draws(keys, KINDS, (rows,)))
        distance = first * 10 ** (NEAREST + (FARTHEST - NEAREST) * shape[:, 6])
        centres = distance[:, None, None] * normal_draws(keys, CENTRES, (self.spec.way, self.data.units))
        causes = normal_draws(keys, CAUSES, (rows, self.data.units)) + np.take_along_axis(centres, kinds[..., None], 1)
        units = self._units(keys, causes, shape[:, 1], shape[:, 2])
        layer = np.repeat(np.arange(self.data.layers + 1), self.data.units)
        first_of_last = (layer[None] == depth[:, None]).argmax(1)
        told, tells = self._told(classes, units, first_of_last, shape[:, 3] < 0.5)
        hidden = (layer[None] > depth[:, None]) | (tells & ~first[:, None])
        y = np.take_along_axis(classes.names, np.where(first[:, None], kinds, told), 1)
        return keys, Table(self._columns(keys, units, hidden, shape[:, 4]), y)

    def _units(self, keys: np.ndarray, causes: np.ndarray, curve: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """All units of every row, [B, rows, (layers + 1) * units], each of mean 0 and variance 1, from causes [B, rows, units]."""
        rows, size = causes.shape[1:]
        found = [_standard(causes)]
        curve = np.floor(curve * len(CURVES)).astype(int)
        deviation = 10 ** (LEAST + (MOST - LEAST) * spread)
        for i in range(self.data.layers):
            kept = draws(keys, KEPT + i, (size, size)) < SHARE
            weights = normal_draws(keys, WEIGHTS + i, (size, size)) * kept
            summed = _standard(found[-1] @ weights)
            for j, bend in enumerate(CURVES):
                summed[curve == j] = bend(summed[curve == j])
            # Uniform, of variance 1: most of the time goes into random numbers.
            noise = (draws(keys, NOISE + i, (rows, size)) - 0.5) * math.sqrt(12)
            found.append(_standard(summed + deviation[:, None, None] * noise))
        return np.concatenate(found, 2)

    def _classes(self, keys: np.ndarray) -> Classes:
        """How many there are, and their shares."""
        way = self.spec.way
        uniform = draws(keys, LABELS, (3, way))
        number = 2 + np.floor(uniform[:, 0, 0] * (way - 1)).astype(int)
        shares = (0.5 + uniform[:, 1]) * (np.arange(way) < number[:, None])
        return Classes(number, np.cumsum(shares, 1)[:, :-1] / shares.sum(1, keepdims=True), uniform[:, 2].argsort(1))

    def _told(self, classes: Classes, units: np.ndarray, first: np.ndarray, cut: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Classes [B, rows], and which units they come of [B, units]: from place ``first`` [B] on, one or, unless ``cut``, many."""
        way, rows, number = self.spec.way, *units.shape[1:]
        own = np.take_along_axis(units, first[:, None, None] + np.arange(way), 2)
        by_height = classes.at((own[..., 0].argsort(1).argsort(1) + 0.5) / rows)
        by_largest = np.where((np.arange(way) < classes.number[:, None])[:, None], own, -np.inf).argmax(-1)
        place = np.arange(number)[None] - first[:, None]
        return np.where(cut[:, None], by_height, by_largest), (place >= 0) & (place < np.where(cut, 1, classes.number)[:, None])

    def _columns(self, keys: np.ndarray, units: np.ndarray, hidden: np.ndarray, share: np.ndarray) -> np.ndarray:
        """Columns [B, rows, columns] from units that are not ``hidden``; some with few values, some of a skewed look."""
        columns = self.data.columns
        wanted = np.floor(2 * ((columns + 1) / 2) ** share).astype(int)  # 2..columns, few as often as many
        order = np.where(hidden, 2.0, draws(keys, COLUMNS, (hidden.shape[1],))).argsort(1)[:, :columns]
        there = (np.arange(columns) < wanted[:, None]) & ~np.take_along_axis(hidden, order, 1)
        x = np.take_along_axis(units, order[:, None], 2).swapaxes(1, 2)
        look, level = np.moveaxis(draws(keys, LOOKS, (2, columns)), 1, 0)
        few, skewed = look < 0.15, (look >= 0.15) & (look < 0.3)
        fewest, most = LEVELS
        levels = fewest + np.floor(level[few][:, None] * (most - fewest + 1))
        x[few] = np.floor((x[few].argsort(1).argsort(1) + 0.5) / x.shape[2] * levels)
        x[skewed] = np.exp(x[skewed])
        return (x * there[..., None]).swapaxes(1, 2)

    def batch(self, indices: Sequence[int]) -> Task:
        keys, (x, y) = self.drawn(indices)
        labelled = self.spec.way * self.spec.shot
        order = np.concatenate([y[:, :labelled].argsort(1, kind="stable"), np.tile(np.arange(labelled, y.shape[1]), (len(y), 1))], 1)
        rows = torch.from_numpy(np.take_along_axis(x, order[..., None], 1).astype(np.float32)).to(self.device)
        labels = torch.from_numpy(np.take_along_axis(y, order, 1)).to(self.device)
        support, query = (Batch(rows[:, part], labels[:, part]) for part in (slice(labelled), slice(labelled, None)))
        classes = torch.zeros(len(keys), self.spec.way, dtype=torch.int64, device=self.device)
        return Task(Context(support, classes, task_keys(keys).to(self.device), {}), query)

    def identity(self, indices: Sequence[int]) -> bytes:
        _, (x, y) = self.drawn(indices)
        return np.concatenate([x, y[..., None]], 2).astype("<f4").tobytes()

    def content(self) -> bytes:
        return b""  # tables are in their identity

    def bounds(self, n: int) -> dict[str, np.ndarray]:
        """The accuracy of whoever always names the class that most of the labelled rows have."""
        _, (_, y) = self.drawn(range(n))
        labelled, asked = np.split(y, [self.spec.way * self.spec.shot], 1)
        most = (labelled[..., None] == np.arange(self.spec.way)).sum(1).argmax(1)
        return {"trivial": (asked == most[:, None]).mean(1)}


class Tables(Dataset):
    """Endless tables.

    Args:
        seed: the run's; unused, since every episode is a function of the seed handed to ``episodes``.
        columns: the most that a table has; those of one with fewer are zeros beyond.
        layers: the most of a net, 10 or fewer.
        units: of a layer.
        clusters: part of the tables whose classes come first.

    Raises:
        UserError: episodes have more classes than a layer has units.
    """

    splits = ("train", "val", "test")  # independent streams of the same distribution
    form = TableForm(None, ("label",))

    def __init__(
        self,
        seed: int,
        *,
        columns: Annotated[int, Ge(2)],
        layers: Annotated[int, Ge(1), Le(KEPT - WEIGHTS)],
        units: Annotated[int, Ge(2)],
        clusters: Annotated[float, Ge(0), Le(1)] = 0.0,
    ) -> None:
        self.columns, self.layers, self.units, self.clusters = columns, layers, units, clusters
        self.input_shape = (columns,)

    def episodes(self, split: str, spec: EpisodeSpec, seed: int, device: str | torch.device = "cpu") -> TableEpisodes:
        self.check_split(split)
        if spec.way > self.units:
            raise UserError(f"way={spec.way} classes do not come of data.units={self.units} units: choose data.units={spec.way} or more")
        return TableEpisodes(self, split, spec, seed, device)

    def describe(self, split: str) -> str:
        return f"endless tables of up to {self.columns} columns"


def _standard(values: np.ndarray) -> np.ndarray:
    """With mean 0 and variance 1 over the rows, [B, rows, units]."""
    deviation = values.std(1, keepdims=True)
    standard: np.ndarray = (values - values.mean(1, keepdims=True)) / np.where(deviation > 0, deviation, 1)
    return standard
