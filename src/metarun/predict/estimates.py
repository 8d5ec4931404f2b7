"""Numbers that were predicted for the rows of a table: each with the interval it lies in 19 times in 20, and how far off it is where
the truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metarun.predict.report import LINE, as_csv, as_json

WIDE = 1.96  # deviations on each side of a prediction


@dataclass(frozen=True)
class Estimates:
    """Predictions for n rows.

    Attributes:
        names: of the rows.
        targets: names of the numbers.
        found: [n, targets] float64.
        deviations: [n, targets]; None where the method has none.
        truth: [n, targets]; NaN where it is not known.
        trivial: [targets], the answer of whoever has not looked at the inputs: the support's mean.
    """

    names: Sequence[str]
    targets: Sequence[str]
    found: np.ndarray
    deviations: np.ndarray | None
    truth: np.ndarray
    trivial: np.ndarray

    def known(self) -> dict[str, int]:
        """How many truths there are of each number, where there are any."""
        counts = zip(self.targets, np.isfinite(self.truth).sum(0).tolist())
        return {target: count for target, count in counts if count}

    def rmse(self, found: np.ndarray) -> dict[str, float]:
        """The root mean squared error of each number of which there are truths; ``found`` is like the truth, or one row for all."""
        squares = np.square(found - self.truth)
        return {target: float(np.sqrt(np.nanmean(squares[:, self.targets.index(target)]))) for target in self.known()}

    def inside(self) -> float | None:
        """The share of truths in their intervals; None where there are no such, or no intervals."""
        if self.deviations is None or not self.known():
            return None
        held = np.abs(self.found - self.truth) <= WIDE * self.deviations
        return float(held[np.isfinite(self.truth)].mean())

    def csv(self) -> str:
        """A line per row: its name, and of each number the prediction, its interval, and the truth where any is known."""
        kinds = {"": self.found, **self._interval(), **({"_truth": self.truth} if self.known() else {})}
        lines = [[LINE, *(f"{target}{kind}" for target in self.targets for kind in kinds)]]
        for i, name in enumerate(self.names):
            cells = [values[i, j] for j in range(len(self.targets)) for values in kinds.values()]
            lines.append([name, *(f"{value:.6g}" if np.isfinite(value) else "" for value in cells)])
        return as_csv(lines)

    def json(self) -> str:
        """An object per row; of each number the prediction, its interval, and the truth, null where it is not known."""
        low, high = self._interval().values() if self.deviations is not None else (None, None)
        records: list[dict[str, Any]] = []
        for i, name in enumerate(self.names):
            numbers = {}
            for j, target in enumerate(self.targets):
                numbers[target] = {
                    "prediction": float(self.found[i, j]),
                    "interval": None if low is None or high is None else [float(low[i, j]), float(high[i, j])],
                    "truth": float(self.truth[i, j]) if np.isfinite(self.truth[i, j]) else None,
                }
            records.append({LINE: name, **numbers})
        return as_json(records)

    def _interval(self) -> dict[str, np.ndarray]:
        if self.deviations is None:
            return {}
        return {"_low": self.found - WIDE * self.deviations, "_high": self.found + WIDE * self.deviations}
