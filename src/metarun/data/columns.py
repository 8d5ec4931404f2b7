"""What the columns of a table are to a learner that was trained on its rows: their names, and what brings them to its scale.
Noted beside a run's checkpoints, so that a trained learner hangs neither on the table nor on where it lies."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from metarun.data.base import Dataset, Scaling, TableForm
from metarun.errors import UserError


class Columns(NamedTuple):
    """Of a table whose columns have names."""

    form: TableForm
    scaling: Scaling | None  # of the inputs
    target_scaling: Scaling | None

    @classmethod
    def of(cls, data: Dataset) -> Columns | None:
        """None: the rows of these data are of no table, or of any."""
        return cls(data.form, data.scaling, data.target_scaling) if data.form and data.form.inputs else None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the inputs, in order."""
        return self.form.inputs or ()

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        scalings = {"scaling": self.scaling, "target_scaling": self.target_scaling}
        return {"inputs": [*self.names], "targets": [*self.form.targets]} | {
            name: {"mean": scaling.mean.tolist(), "deviation": scaling.deviation.tolist()} if scaling else None
            for name, scaling in scalings.items()
        }

    @classmethod
    def parsed(cls, values: dict[str, Any]) -> Columns:
        """Of what ``plain`` has made, perhaps elsewhere.

        Raises:
            ValueError, TypeError, KeyError: it is no such thing.
        """
        inputs, targets = (tuple(values[key]) for key in ("inputs", "targets"))
        if not (inputs and targets and all(isinstance(name, str) for name in (*inputs, *targets))):
            raise ValueError("names of columns that are none")
        return cls(TableForm(inputs, targets), _scaling(values["scaling"], len(inputs)), _scaling(values["target_scaling"], len(targets)))

    def refuse_others(self, now: TableForm) -> None:
        """Refuse, with a UserError, a table with other columns than these, or with these in another order."""
        if now.inputs != self.names:
            raise UserError(
                f"the table has the columns {', '.join(now.inputs or ())}, and the run was trained with {', '.join(self.names)}: "
                "give it a table with these in this order"
            )


def _scaling(values: dict[str, Any] | None, size: int) -> Scaling | None:
    if values is None:
        return None
    numbers = [[float(number) for number in values[key]] for key in ("mean", "deviation")]
    if any(len(each) != size or not all(map(math.isfinite, each)) for each in numbers) or min(numbers[1]) <= 0:
        raise ValueError("a scale that is none")
    return Scaling(*(torch.tensor(each, dtype=torch.float64) for each in numbers))
