"""The words of a stored sweep, sweep.json, when the sweep goes on: the folder may be somebody else's, so not every word is taken from it.
Hydra's own keys can load code and write anywhere; all but a few of them have to be given again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from metarun.config import compose
from metarun.errors import UserError
from metarun.storage import foreign
from metarun.storage.foreign import DamagedError

RECORD = "sweep.json"
# Where and how a sweep runs is no part of what it is.
MANNER = re.compile(r"\+*hydra(/launcher=|\.launcher\.|\.sweep\.dir=|\.sweeper\.(n_trials|n_jobs|max_batch_size)=)")
# What of Hydra is taken from a stored sweep: numbers, and names that reach no shell as anything else.
HARMLESS = re.compile(
    r"hydra/launcher=(basic|joblib|submitit_local|submitit_slurm|slurm|ray)|hydra/sweeper=(basic|optuna|tpe)"
    r"|hydra/sweeper/sampler=(tpe|random|grid|cmaes|nsgaii|motpe)"
    r"|hydra\.sweeper\.(n_trials|n_jobs|max_batch_size|sampler\.(seed|n_startup_trials))=\w*"
    r"|hydra\.launcher\.(n_jobs|timeout_min|max_num_timeout|signal_delay_s|array_parallelism|cpus_per_task|gpus_per_node|gpus_per_task"
    r"|tasks_per_node|nodes|mem_gb|partition|qos|account|constraint|gres)=[\w.:,-]*"
    r"|\+hydra\.launcher\.ray\.(init\.num_cpus|init\.num_gpus|remote\.num_cpus|remote\.num_gpus)=[\d.]*"
)
SENDS = re.compile(r"\+*logger\.(wandb=(?!(offline|null)$)|mlflow=(?!(local|null)$))")  # whatever a run would send elsewhere
LOOKED_UP = re.compile(r"\$\{[^}]*[:$]")  # ${oc.env:…}: a resolver, which asks this machine


def record(folder: Path) -> dict[str, Any]:
    """What a sweep's folder says of it: ``words``, and when it was ``started``, in seconds.

    Raises:
        UserError: it cannot be read.
    """
    try:
        found = foreign.json_object(folder / RECORD)
        return {"words": [str(word) for word in found["words"]], "started": float(found["started"])}
    except (DamagedError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / RECORD} cannot be read ({foreign.one_line(error)}); start the sweep anew") from None


def words(folder: Path, given: list[str]) -> list[str]:
    """The words of a stored sweep, with those of the user who goes on with it in place of what it says of the same keys.

    Args:
        given: where and how it is to run, and whatever of its words is not taken from a file.

    Raises:
        UserError: it has words that have to be given again, or ``given`` would make it another sweep.
    """
    stored = record(folder)["words"]
    for word in given:
        if word not in stored and not MANNER.match(word):
            raise UserError(f"{word} would make it another sweep: resume takes where and how it runs, such as hydra/launcher=… ")
    keys = {key(word) for word in given}
    kept = [word for word in stored if key(word) not in keys]
    for word in kept:
        if not _harmless(word):
            raise UserError(
                f"{folder / RECORD} has {foreign.printable(word)}, which can run code, or write or send elsewhere, and is not taken from "
                f"a file; if it is yours, give it again: metarun resume {folder} '{foreign.printable(word)}'"
            )
    return kept + given


def key(word: str) -> str:
    """What a word sets."""
    return word.partition("=")[0].lstrip("+")


def _harmless(word: str) -> bool:
    if LOOKED_UP.search(word) or SENDS.match(word):
        return False
    override = compose.parse(word)
    if override.package is not None:  # a group's content, put into another section
        return False
    return not re.match(r"hydra\b", override.key_or_group) or HARMLESS.fullmatch(word) is not None
