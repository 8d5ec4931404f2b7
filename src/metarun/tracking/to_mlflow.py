"""``logger=mlflow``: an MLflow store beside the runs, or a server that is named."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from metarun.storage.run_folder import outputs_root
from metarun.tracking.sink import Scalars, Sink

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient
    from mlflow.utils.time import get_current_time_millis

STORE = "mlflow.db"  # the local store, in the folder of all runs
LONGEST = 500  # letters of a parameter, and parameters in a request: 100


class ToMlflow(Sink):
    """A run of MLflow: its numbers, its configuration as parameters, its pictures as artifacts.

    Args:
        store: ``local``, a file ``mlflow.db`` in the folder that holds all runs; or the address of a server.
        folder: the run's; local artifacts lie in its ``mlflow/``.
        title: the run's name there.
        parameters: by dotted name.
        project: MLflow's experiment.
        known: the id that an earlier process of this run had.
    """

    def __init__(self, store: str, folder: Path, title: str, parameters: dict[str, Any], project: str, known: str | None) -> None:
        local = store == "local"
        place = outputs_root(folder)
        self.client = MlflowClient(f"sqlite:///{place / STORE}" if local else store)
        if known:
            self.id = known
            self.client.update_run(known, status="RUNNING")
            return
        found = self.client.get_experiment_by_name(project)
        location = str(place / "mlflow") if local else None
        experiment = found.experiment_id if found else self.client.create_experiment(project, artifact_location=location)
        self.id = self.client.create_run(experiment, run_name=title).info.run_id
        params = [Param(name, str(value)[:LONGEST]) for name, value in parameters.items()]
        for first in range(0, len(params), 100):
            self.client.log_batch(self.id, params=params[first : first + 100])

    def scalars(self, axis: str, step: int, values: Scalars) -> None:
        now = get_current_time_millis()
        self.client.log_batch(self.id, metrics=[Metric(name, float(value), now, step) for name, value in values.items()])

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        self.client.log_image(self.id, image, artifact_file=f"{tag}.png")

    def results(self, values: Scalars) -> None:
        self.scalars("", 0, values)

    def close(self, failed: bool) -> None:
        self.client.set_terminated(self.id, "FAILED" if failed else "FINISHED")
