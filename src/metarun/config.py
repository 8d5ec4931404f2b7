"""The schema: a composed configuration is checked before anything is read or written.
Each section is checked against the signature of what it configures, so a key, its type and its range are written down once."""

from __future__ import annotations

import importlib
import inspect
import re
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

from annotated_types import Ge
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from metarun.errors import UserError, nearest
from metarun.task import EpisodeSpec

# A run folder from somebody else is data, not code: a section may only name targets of its own package.
TARGETS = {"algo": "metarun.algos.", "data": "metarun.data.", "net": "metarun.nets.", "optim": "metarun.optim."}
FIXED = {"engine": "metarun.engine.Engine", "trainer": "metarun.trainer.Trainer", "logger": "metarun.tracker.Tracker"}


@dataclass(frozen=True, kw_only=True)
class Root:
    """The root keys."""

    way: Annotated[int, Ge(1)]
    shot: Annotated[int, Ge(1)]
    query: Annotated[int, Ge(1)]
    seed: Annotated[int, Ge(0)]
    device: str
    precision: Literal["fp32", "bf16"]
    name: str


@dataclass(frozen=True, kw_only=True)
class Episode(EpisodeSpec):
    """The episode section: common values, and those of training and evaluation."""

    train: dict[str, Any]
    eval: dict[str, Any]


def locate(target: str) -> Any:
    """The class that a ``_target_`` names."""
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


@cache
def schema(target: Any) -> type[BaseModel]:
    """A strict model of the keyword-only parameters of a class: what its section of the YAML may hold."""
    hints = get_type_hints(target.__init__, include_extras=True)
    parameters = inspect.signature(target.__init__).parameters.values()
    fields: Any = {p.name: (hints[p.name], ...) for p in parameters if p.kind is p.KEYWORD_ONLY}
    return create_model(target.__name__, __config__=ConfigDict(extra="forbid", strict=True), **fields)


def check(target: Any, values: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The values of one section, validated.

    Raises:
        UserError: an unknown or missing key, a wrong type, a value out of range; one line, naming key, value and mend.
    """
    model = schema(target)
    try:
        valid = model.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error, prefix, values, list(model.model_fields))) from None
    return {name: getattr(valid, name) for name in model.model_fields}


def _explain(error: ValidationError, prefix: str, values: dict[str, Any], known: list[str]) -> str:
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0])
    key = prefix + name
    if first["type"] == "extra_forbidden":
        return f"unknown key {key}{nearest(name, known)} (known: {', '.join(prefix + k for k in known)})"
    if first["type"] == "missing":
        return f"{key} is missing from the configuration"
    wanted = [e["msg"].replace("Input should be ", "") for e in error.errors(include_url=False) if str(e["loc"][0]) == name]
    value = values[name]
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
    hint = ""
    if isinstance(value, str):
        hint = nearest(value, re.findall(r"'([^']+)'", " ".join(wanted)))
    return f"{key}={shown} is not possible: it should be {' or '.join(dict.fromkeys(wanted))}{hint}"


def without_meta(section: dict[str, Any]) -> dict[str, Any]:
    """A section's values without the keys that name it."""
    return {key: value for key, value in section.items() if key not in ("_target_", "name")}


def target_of(config: dict[str, Any], section: str) -> Any:
    """The class a section configures.

    Raises:
        UserError: the section names something that is not metarun's own.
    """
    path = FIXED.get(section) or str(config[section].get("_target_"))
    if section in TARGETS and not path.startswith(TARGETS[section]):
        raise UserError(f"{section}._target_={path} is refused: only classes below {TARGETS[section]}* are run from a configuration")
    try:
        return locate(path)
    except (ImportError, AttributeError):
        raise UserError(f"{section}._target_={path} does not exist in this version of metarun") from None


def validate(config: dict[str, Any]) -> dict[str, Any]:
    """Check every section of a resolved config; returns it with the episode section as two ``EpisodeSpec``.

    Raises:
        UserError: see ``check``; nothing is read or written before this has passed.
    """
    sections = {*TARGETS, *FIXED, "episode"}
    missing = sections - config.keys()
    if missing:
        raise UserError(f"the configuration lacks the section {sorted(missing)[0]}")
    root = check(Root, {key: value for key, value in config.items() if key not in sections}, "")
    valid: dict[str, Any] = dict(root)
    for section in (*TARGETS, *FIXED):
        valid[section] = check(target_of(config, section), without_meta(config[section]), f"{section}.")
    check(Episode, without_meta(config["episode"]), "episode.")
    valid["episode"] = {part: EpisodeSpec(**check(EpisodeSpec, config["episode"][part], f"episode.{part}.")) for part in ("train", "eval")}
    data = target_of(config, "data")
    for part, spec in valid["episode"].items():
        if data.kind == "classification" and spec.way < 2:
            key = "way" if spec.way == root["way"] else f"episode.{part}.way"
            raise UserError(f"{key}={spec.way} is out of range: telling classes apart needs way >= 2")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", root["device"]):
        raise UserError(
            f"device={root['device']} is not a device: use auto, cpu, cuda or cuda:N{nearest(root['device'], ['auto', 'cpu', 'cuda'])}"
        )
    return valid
