"""Where else a run's numbers go, beside its own folder and TensorBoard: Weights & Biases, MLflow, or both.
A service that fails, or a network, never fails the run: it is told once, and the rest of the numbers are in metrics.jsonl."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from metarun.errors import MissingLibrary, RunError, UserError, install
from metarun.storage import foreign
from metarun.storage.files import replace_file
from metarun.tracking.sink import Sink

log = logging.getLogger(__name__)

IDS = "loggers.json"  # in a run's folder: under which names the services know it, so that a resumed run goes on there


class Guarded:
    """A sink that is given up at its first error."""

    def __init__(self, name: str, sink: Sink) -> None:
        self.name, self.sink, self.works = name, sink, True

    def __call__(self, do: Callable[[Sink], None]) -> None:
        """``do`` with the sink; nothing once it has failed."""
        if self.works:
            try:
                do(self.sink)
            except Exception as error:  # a network, a full disk, a service that is down
                self.works = False
                log.warning("%s gets no more of this run: %s", self.name, foreign.one_line(error))


def known_ids(folder: Path) -> dict[str, str]:
    """By service, under which name it knows the run in ``folder``."""
    try:
        found = foreign.json_object(folder / IDS)
    except foreign.DamagedError:  # there is none, or half of one
        return {}
    return {str(name): found[name] for name in found if re.fullmatch(r"[A-Za-z0-9]{1,64}", str(found[name]))}


def open_sinks(
    folder: Path,
    values: dict[str, Any],
    parameters: dict[str, Any],
    *,
    wandb: Literal["offline", "online"] | None,
    mlflow: str | None,
    project: str,
) -> list[Guarded]:
    """The sinks that a configuration names.

    Args:
        folder: of the run, or of an evaluation.
        values: the run's configuration.
        parameters: what a service lists of it, by dotted name.
        wandb, mlflow, project: see ``Tracker``.

    Raises:
        UserError: a library is not installed, or has no account to send to.
        RunError: a library cannot begin.
    """
    ids, found = known_ids(folder), list[Guarded]()
    try:
        for name, wanted in (("wandb", wandb), ("mlflow", mlflow)):
            if wanted:
                found.append(Guarded(name, _open(name, wanted, folder, str(values["name"]), parameters, project, ids.get(name))))
    except Exception as error:
        for guarded in found:  # the one before it is open
            guarded(lambda sink: sink.close(True))
        if isinstance(error, (UserError, RunError)):
            raise
        raise RunError(f"logger={name} cannot begin ({foreign.one_line(error)}); leave it out with logger=default") from error
    if found:
        now = ids | {guarded.name: guarded.sink.id for guarded in found}
        replace_file(folder / IDS, lambda handle: handle.write(json.dumps(now).encode()))
    return found


def _open(name: str, wanted: str, folder: Path, title: str, parameters: dict[str, Any], project: str, known: str | None) -> Sink:
    try:  # both take seconds to import
        if name == "wandb":
            from metarun.tracking.to_wandb import ToWandb

            return ToWandb(wanted, folder, title, parameters, project, known)
        from metarun.tracking.to_mlflow import ToMlflow

        return ToMlflow(wanted, folder, title, parameters, project, known)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise MissingLibrary(f"logger={name} needs a library that is not installed: {install(name)}") from None
