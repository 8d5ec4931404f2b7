"""A table of numbers with a column of classes: each row is an example, and classes, never rows, are divided between the splits."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge

from metarun.data.base import ImageDataset, Scaling, TableForm
from metarun.data.division import Share
from metarun.data.episodes import Split
from metarun.data.leakage import refuse_shared
from metarun.data.numbers import chosen, gather, in_splits, refuse_unnamed
from metarun.errors import UserError


class CsvClasses(ImageDataset):
    """Rows of numbers [columns] float32 in classes.

    Args:
        seed: the run's; unused, so that all runs share one division into splits.
        root: a table, or a folder with ``train``, ``val`` and ``test`` as tables, see ``numbers.gather``.
        label: the column of classes.
        ignore: columns that count for nothing, as a running number.
        standardise: bring every column to mean 0 and deviation 1 over the training rows.
        val_fraction, test_fraction, split_seed, fold: as of ``data=folder``.
        min_rows: fewest rows of a class; classes with fewer are left out, and named.

    Raises:
        UserError: the table is not as described.
    """

    def __init__(
        self,
        seed: int,
        *,
        root: str | None,
        label: str,
        ignore: list[str],
        standardise: bool,
        val_fraction: Share,
        test_fraction: Share,
        split_seed: int,
        fold: Annotated[int, Ge(0)],
        min_rows: Annotated[int, Ge(2)],
    ) -> None:
        def pick(columns: list[str]) -> list[str]:
            dropped = chosen("ignore", columns, ignore)
            left = [column for column in columns if column not in dropped]
            refuse_unnamed(f"data.root={root}", left)
            if not left:
                raise UserError(f"data.root={root} has no column of numbers beside {label}")
            return left

        tables, whole = gather(root, "csv", label, pick)
        parts = in_splits(tables, whole, "classes", min_rows, val_fraction, test_fraction, split_seed, fold)
        refuse_shared(parts)
        rows = {split: torch.from_numpy(np.concatenate(list(groups.values()))) for split, groups in parts.items()}
        if standardise:
            self.scaling = Scaling.of(next(iter(rows.values())))
        splits = {}
        for split, groups in parts.items():
            counts = np.array([len(group) for group in groups.values()], np.int64)
            numbers = self.scaling(rows[split]) if self.scaling else rows[split]
            splits[split] = Split(numbers.float(), counts.cumsum() - counts, counts, list(groups))
        super().__init__(splits)
        table = whole or next(iter((tables or {}).values()))
        self.form = TableForm(tuple(table.columns), (label,))

    def describe(self, split: str) -> str:
        data = self.splits[split]
        return f"{data.classes:,} classes, {len(data.images):,} rows of {self.input_shape[0]} numbers"
