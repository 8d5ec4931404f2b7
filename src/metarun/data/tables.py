"""Small tables of numbers with a column of classes, drawn from a prior over how tables come about: what a prior-fitted net is trained on.
Random structural nets as in Hollmann, Müller, Eggensperger, Hutter 2023 (TabPFN), arXiv:2207.01848, section 4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
import torch
from annotated_types import Ge

from metarun.data.base import Dataset, TableForm
from metarun.data.episodes import Episodes, draws, episode_keys, normal_draws, task_keys
from metarun.errors import UserError
from metarun.problem import EpisodeSpec
from metarun.task import Batch, Context, Task

# Streams of draws, apart from those of other data; WEIGHTS, KEPT and NOISE and what follows them are one for each layer.
SHAPE, CAUSES, COLUMNS, LABELS, LOOKS, WEIGHTS, KEPT, NOISE = 61, 62, 63, 64, 65, 70, 80, 90
SHARE = 0.5  # of the connections of a net that are there
LEAST, MOST = -2.0, -0.5  # decimal logarithms of the deviation of a unit's noise
CURVES = (lambda x: x, np.tanh, lambda x: np.maximum(x, 0), np.sin)
LEVELS = (2, 6)  # fewest and most values of a column that has few


class Table(NamedTuple):
    """B tables of n rows, float64."""

    x: np.ndarray  # [B, n, columns], zeros beyond a table's own columns
    y: np.ndarray  # [B, n] int64, 0..way-1


class TableEpisodes(Episodes):
    """Tables of ``way * shot`` labelled rows and ``way * query`` others; a table has 2 to ``way`` classes, of different sizes.

    A net of random connections turns causes into units, layer by layer; a table's columns are some of all units, and its classes come of
    another one, cut at some heights, or of several, the largest of which wins.

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
        shape = draws(keys, SHAPE, (5,))
        depth = 1 + np.floor(shape[:, 0] * self.data.layers).astype(int)
        units = self._units(keys, rows, depth, shape[:, 1], shape[:, 2])
        layer = np.repeat(np.arange(self.data.layers + 1), self.data.units)
        first_of_last = (layer[None] == depth[:, None]).argmax(1)
        y, told = self._classes(keys, units, first_of_last, shape[:, 3] < 0.5)
        hidden = (layer[None] > depth[:, None]) | told
        return keys, Table(self._columns(keys, units, hidden, shape[:, 4]), y)

    def _units(self, keys: np.ndarray, rows: int, depth: np.ndarray, curve: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """All units of every row, [B, rows, (layers + 1) * units], each of mean 0 and variance 1; those beyond ``depth`` mean nothing."""
        size = self.data.units
        found = [normal_draws(keys, CAUSES, (rows, size))]
        curve = np.floor(curve * len(CURVES)).astype(int)
        deviation = 10 ** (LEAST + (MOST - LEAST) * noise)
        for i in range(self.data.layers):
            kept = draws(keys, KEPT + i, (size, size)) < SHARE
            weights = normal_draws(keys, WEIGHTS + i, (size, size)) * kept
            summed = _standard(found[-1] @ weights)
            bent = np.select([(curve == j)[:, None, None] for j in range(len(CURVES))], [bend(summed) for bend in CURVES])
            found.append(_standard(bent + deviation[:, None, None] * normal_draws(keys, NOISE + i, (rows, size))))
        return np.concatenate(found, 2)

    def _classes(self, keys: np.ndarray, units: np.ndarray, first: np.ndarray, cut: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels [B, rows], and which units they come of [B, units]: from place ``first`` [B] on, one or, unless ``cut``, many."""
        way, rows, number = self.spec.way, *units.shape[1:]
        uniform = draws(keys, LABELS, (3, way))
        classes = 2 + np.floor(uniform[:, 0, 0] * (way - 1)).astype(int)
        takes_part = np.arange(way) < classes[:, None]
        # By heights: shares of the classes from 1 : 3 to 3 : 1 decide where the ranks of a unit are cut.
        shares = (0.5 + uniform[:, 1]) * takes_part
        ends = np.cumsum(shares, 1)[:, :-1] / shares.sum(1, keepdims=True)
        own = np.take_along_axis(units, first[:, None, None] + np.arange(way), 2)
        ranks = (own[..., 0].argsort(1).argsort(1) + 0.5) / rows
        by_height = (ranks[..., None] > ends[:, None]).sum(-1)
        by_largest = np.where(takes_part[:, None], own, -np.inf).argmax(-1)
        named = uniform[:, 2].argsort(1)  # which label a class has
        y = np.take_along_axis(named, np.where(cut[:, None], by_height, by_largest), 1)
        many = np.where(cut, 1, classes)
        place = np.arange(number)[None] - first[:, None]
        return y, (place >= 0) & (place < many[:, None])

    def _columns(self, keys: np.ndarray, units: np.ndarray, hidden: np.ndarray, share: np.ndarray) -> np.ndarray:
        """Columns [B, rows, columns] from units that are not ``hidden``; some with few values, some of a skewed look."""
        columns, wanted = self.data.columns, 2 + np.floor(share * (self.data.columns - 1)).astype(int)
        order = np.where(hidden, 2.0, draws(keys, COLUMNS, (hidden.shape[1],))).argsort(1)[:, :columns]
        there = (np.arange(columns) < wanted[:, None]) & ~np.take_along_axis(hidden, order, 1)
        x = np.take_along_axis(units, order[:, None], 2)
        look, level = np.moveaxis(draws(keys, LOOKS, (2, 1, columns)), 1, 0)
        fewest, most = LEVELS
        levels = fewest + np.floor(level * (most - fewest + 1))
        few = np.floor((x.argsort(1).argsort(1) + 0.5) / x.shape[1] * levels)
        return np.select([look < 0.15, look < 0.3], [few, np.exp(x)], x) * there[:, None]

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
        layers: the most of a net.
        units: of a layer.

    Raises:
        UserError: episodes have more classes than a layer has units.
    """

    splits = ("train", "val", "test")  # independent streams of the same distribution
    form = TableForm(None, ("label",))

    def __init__(self, seed: int, *, columns: Annotated[int, Ge(2)], layers: Annotated[int, Ge(1)], units: Annotated[int, Ge(2)]) -> None:
        self.columns, self.layers, self.units = columns, layers, units
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
