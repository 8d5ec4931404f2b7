"""``logger=wandb``: Weights & Biases, kept in the run's folder to be sent later, or sent while the run is on."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from metarun.errors import UserError
from metarun.storage.foreign import one_line
from metarun.tracking.sink import INNER, ITERATION, Scalars, Sink

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import wandb


class ToWandb(Sink):
    """A run of Weights & Biases: its numbers and pictures, and its configuration; neither code, nor what is printed, nor the machine.

    Args:
        mode: ``offline`` or ``online``.
        folder: the run's; what is kept lies in its ``wandb/``.
        title: the run's name there.
        parameters: by dotted name.
        project: of the account.
        known: the id that an earlier process of this run had.

    Raises:
        UserError: there is no account to send to.
    """

    def __init__(self, mode: str, folder: Path, title: str, parameters: dict[str, Any], project: str, known: str | None) -> None:
        quiet = wandb.Settings(
            console="off", silent=True, disable_git=True, disable_code=True, save_code=False, x_disable_stats=True,
            symlink=False,
        )  # fmt: skip
        again = {"id": known, "resume": "allow"} if known else {}
        where: Any = {"mode": mode, "dir": str(folder), "project": project, "name": title, "settings": quiet}
        try:
            self.run = wandb.init(config=parameters, **where, **again)
        except wandb.errors.UsageError as error:  # no account
            raise UserError(
                f"logger.wandb={mode} is not possible ({one_line(error)}): `wandb login` once, or keep the run here: logger.wandb=offline"
            ) from None
        self.folder, self.id = folder / "wandb", self.run.id
        self._remove_links()
        for axis in (ITERATION, INNER):
            self.run.define_metric(axis, hidden=True)
        self.run.define_metric("*", step_metric=ITERATION)
        for split in ("val", "test"):
            self.run.define_metric(f"{split}/adaptation_curve", step_metric=INNER)

    def scalars(self, axis: str, step: int, values: Scalars) -> None:
        self.run.log({axis: step, **values})

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        self.run.log({ITERATION: step, tag: wandb.Image(image)})

    def results(self, values: Scalars) -> None:
        self.run.summary.update(dict(values))

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))
        self._remove_links()

    def _remove_links(self) -> None:
        """To the library's own logs, elsewhere: a run's folder that has links is not opened again."""
        for path in self.folder.rglob("*"):
            if path.is_symlink():
                path.unlink()
