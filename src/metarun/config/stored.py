"""The resolved configuration that a run's folder holds; the folder may be somebody else's. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from metarun.config import legacy
from metarun.errors import UserError, nearest
from metarun.storage import foreign
from metarun.storage.foreign import DamagedError


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a run, with today's names; nothing in it is looked up or run.

    Raises:
        UserError: it is no run folder, or its config cannot be read.
    """
    if not folder.is_dir():
        siblings = [str(path) for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
        raise UserError(f"there is no run folder {folder}{nearest(str(folder), siblings)}")
    if not (folder / "config.yaml").exists():
        raise UserError(f"{folder} is not a run folder: it has no config.yaml; name a folder like outputs/DATE/TIME_NAME")
    try:
        # OmegaConf's own reader: a number that somebody wrote as 1e-3 is one.
        values = OmegaConf.to_container(OmegaConf.create(foreign.yaml_text(folder / "config.yaml")))
    except DamagedError as error:
        raise UserError(f"{folder}/config.yaml cannot be read: {error}") from None
    except Exception as error:  # whatever YAML and OmegaConf think of it
        raise UserError(f"{folder}/config.yaml cannot be read: {foreign.one_line(error)}") from None
    if not isinstance(values, dict):
        raise UserError(f"{folder}/config.yaml holds no configuration")
    if reference := reference_in(values):
        raise UserError(f"{folder}/config.yaml is refused: {reference} would be looked up on this machine; write the value itself")
    return legacy.updated({str(key): value for key, value in values.items()})


def to_yaml(values: dict[str, Any]) -> str:
    """A resolved configuration as it is stored."""
    return OmegaConf.to_yaml(OmegaConf.create(values))


def reference_in(values: Any) -> str | None:
    """The first text in nested values that OmegaConf would look up (``${…}``)."""
    if isinstance(values, str):
        return values if "${" in values else None
    inner = values.values() if isinstance(values, dict) else values if isinstance(values, list) else ()
    return next(filter(None, map(reference_in, inner)), None)
