"""metarun from Python: what the command line does, with its words or with values, returning what it prints.
A class or option of your own counts inside ``including(FOLDER)``, as on the command line with ``--with FOLDER``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

from metarun import experiment
from metarun.config import compose as composer
from metarun.config import schema
from metarun.errors import UserError
from metarun.extensions.sources import given
from metarun.session.runs import evaluation
from metarun.storage.run_folder import alternatives, held, new_folder

Config = Mapping[str, Any] | Sequence[str] | str
Summary = dict[str, Any]  # what summary.json holds


def including(*folders: str | Path) -> AbstractContextManager[None]:
    """Within: options and classes of ``folders`` count (see docs/your-own.md).

    Raises:
        UserError: a folder is none, or has neither options nor Python files.
    """
    return given(folders)


def compose(*words: str) -> dict[str, Any]:
    """The whole configuration that KEY=VALUE ``words`` describe: nested values, to be changed at will and handed to ``train``.

    Raises:
        UserError: a word cannot be read, or names what does not exist.
    """
    return composer.resolve(composer.compose(list(words)))


def train(config: Config = (), folder: str | Path | None = None) -> Summary:
    """Meta-train, validate and test, in this process.

    Args:
        config: KEY=VALUE words, in a list or in one text with spaces between; or a whole configuration, as of ``compose``.
        folder: where the run is kept, new or empty; None: outputs/DATE/TIME_NAME, as on the command line.

    Returns:
        The summary, as summary.json holds it.

    Raises:
        UserError: the configuration is wrong, or the folder is taken.
        RunError: the run failed.
    """
    words = config.split() if isinstance(config, str) else [] if isinstance(config, Mapping) else list(config)
    cfg = composer.compose(words)
    values = _plain(config) if isinstance(config, Mapping) else composer.resolve(cfg)
    schema.validate(values)
    cfg.name = values["name"]
    with new_folder([Path(folder).expanduser()] if folder else alternatives(composer.folder(cfg, "run"))) as path, held(path):
        return experiment.train(values, path)


def evaluate(
    run: str | Path,
    config: Sequence[str] | str = (),
    checkpoint: Literal["best", "last"] = "best",
    split: Literal["test", "val"] = "test",
) -> Summary:
    """Measure a run again, in this process; the result is kept in RUN/eval/<n>, the run's own files stay as they are.

    Args:
        run: its folder.
        config: KEY=VALUE words that change the test, such as ``shot=5`` or ``data=…``.
        checkpoint: ``best`` on development tasks, or ``last``.
        split: ``test``, a look at the test split that is counted, or ``val``, the development tasks, to choose settings on.

    Returns:
        The summary, as summary.json holds it.

    Raises:
        UserError: no such run or checkpoint, or words that cannot be applied to it.
        RunError: the checkpoint is damaged.
    """
    if checkpoint not in ("best", "last"):
        raise UserError(f"there is no checkpoint '{checkpoint}': best or last")
    if split not in ("test", "val"):
        raise UserError(f"there is no split '{split}' to measure a run on: test or val")
    folder = Path(run).expanduser()
    with evaluation(folder, config.split() if isinstance(config, str) else config) as (values, target):
        return experiment.evaluate(values, folder, checkpoint, target, split)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A whole configuration as plain nested dicts."""
    return {key: _plain(value) if isinstance(value, Mapping) else value for key, value in config.items()}
