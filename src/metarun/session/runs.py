"""Runs as people start, stop and take them up again: alone in their folder, gone on with, taken further than planned."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from metarun import experiment
from metarun.config import compose, schema
from metarun.config.stored import read_config, to_yaml
from metarun.errors import UserError
from metarun.runtime import torchrun
from metarun.runtime.distributed import Alone
from metarun.storage import checkpoint, foreign
from metarun.storage.files import DiskFull, replace_file
from metarun.storage.resume import reopen
from metarun.storage.run_folder import held, new_folder, relative, worth_keeping
from metarun.tracking.console import start_logging

log = logging.getLogger(__name__)
FURTHER = ("trainer.iterations", "trainer.max_minutes", "trainer.patience", "logger")  # what a run that goes on may be given anew
STAYS = {"wandb": "offline", "mlflow": "local"}  # services of a logger, and what of each sends nothing anywhere


def run(values: dict[str, Any], folder: Path, resume: bool = False) -> dict[str, Any]:
    """``experiment.train`` on all ranks, alone in the folder; one that is stopped says how it goes on.

    Raises:
        UserError, RunError, KeyboardInterrupt: see ``experiment.train``.
    """
    start_logging(folder)
    try:
        with held(folder):
            return torchrun.call(experiment.train, values, folder, resume)
    except (KeyboardInterrupt, Alone, DiskFull) as stop:
        kept = checkpoint.present(folder)
        if kept or resume or worth_keeping(folder):
            how = f", {'checkpoint saved' if kept else 'no checkpoint yet'}; go on with: metarun resume {relative(folder)}"
        else:
            how = " before the first training step; nothing is kept"
        raise type(stop)(f"{str(stop) or 'interrupted'}{how}") from None


def goes_further(word: str) -> bool:
    """Whether a run that goes on takes this KEY=VALUE."""
    key = compose.parse(word).key_or_group
    return key in FURTHER or key.startswith("logger.")


def resume(folder: Path, words: list[str]) -> dict[str, Any]:
    """Go on with a run, from its checkpoint or, without one, from the beginning; with ``FURTHER`` keys in ``words``, a finished one too.

    What its logger would send is left out, unless ``words`` name it.

    Raises:
        UserError: the run is finished, or a word changes what it is.
        UserError, RunError, KeyboardInterrupt: see ``run``.
    """
    values = read_config(folder)
    foreign.refuse_links(folder)
    for word in words:
        if not goes_further(word):
            raise UserError(f"resume takes no '{word}': a run goes on with its own configuration, but for {', '.join(FURTHER)}")
    changed = _unsent(compose.override(values, words), words)
    schema.validate(changed)
    before, after = (config["trainer"]["iterations"] for config in (values, changed))
    finished = (folder / "summary.json").exists()
    if finished and (changed == values or foreign.json_object(folder / "summary.json").get("iterations", 0) >= after):
        raise UserError(
            f"{folder} is finished, there is nothing to go on with; train it further with: metarun resume {folder} "
            f"trainer.iterations={2 * before}, or test it again with: metarun eval {folder}"
        )
    start_logging(folder)
    if finished:
        with held(folder):
            reopen(folder)
    if changed != values:
        replace_file(folder / "config.yaml", lambda handle: handle.write(to_yaml(changed).encode()))
    if before != after:
        log.warning("trainer.iterations=%d instead of %d: learning rate and annealing follow the new course from here on", after, before)
    return run(changed, folder, resume=True)


def _unsent(values: dict[str, Any], words: Sequence[str], kept: Collection[str] = tuple(STAYS.values())) -> dict[str, Any]:
    """A configuration whose logger sends nothing, unless ``words`` name one: a folder may be somebody else's.

    Args:
        kept: of the ``STAYS``, what is left as it is.
    """
    logger = values.get("logger")
    if not isinstance(logger, dict) or any(word.startswith("logger") for word in words):
        return values
    if sent := [name for name in STAYS if logger.get(name) and logger[name] not in kept]:
        for name in sent:
            if logger[name] != STAYS[name]:
                log.warning(
                    "%s gets nothing of this: it is in the run's configuration, but not on the command line; add logger=%s", name, name
                )
        return values | {"logger": {key: value for key, value in logger.items() if key not in sent}}
    return values


@contextmanager
def evaluation(folder: Path, words: Sequence[str]) -> Iterator[tuple[dict[str, Any], Path]]:
    """The values of a run's next evaluation, ``words`` applied, and its ``folder/eval/<n>``, which goes again if nothing comes of it.

    Its logger has no service beside, unless ``words`` name it.

    Raises:
        UserError: no such run, values that do not fit, a folder that cannot be written.
    """
    values = read_config(folder)
    foreign.refuse_links(folder)
    values = _unsent(compose.override(values, list(words)), words, kept=())
    numbers = (folder / "eval" / str(n) for n in range(10**6))
    with new_folder(numbers, f"copy {folder} to where you may write") as target:
        yield values, target


def evaluate(folder: Path, words: list[str], name: str, split: Literal["test", "val"]) -> tuple[dict[str, Any], Path]:
    """``experiment.evaluate`` on all ranks, into ``folder/eval/<n>``; returns the summary and that folder.

    Args:
        words: what is to be other than in the run, KEY=VALUE.
        name: the checkpoint, ``best`` or ``last``.

    Raises:
        UserError, RunError: see ``evaluation``; no such checkpoint.
    """
    with evaluation(folder, words) as (values, target):
        start_logging()
        return torchrun.call(experiment.evaluate, values, folder, name, target, split), target
