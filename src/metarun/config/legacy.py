"""Configurations of earlier versions, as stored in run folders: the one place that knows what has moved and what was called otherwise."""

from __future__ import annotations

from typing import Any

# Classes that have another place now, by package: metarun.algos.maml.MAML is metarun.algos.gradient.maml.MAML.
FAMILIES = {
    "gradient": (
        "alphamaml", "anil", "boil", "cavia", "deml", "imaml", "maml", "maml_learn2learn", "mamlpp", "metacurvature", "metasgd", "mtl",
        "pretrain", "reptile",
    ),
    "heads": ("alpaca", "lrd2", "metaoptnet", "r2d2"),
    "metric": (
        "gnn", "hausdorff", "imp", "matching", "nearest", "protonet", "protonet_zeroshot", "relation", "relation_zeroshot", "semiprotonet",
        "siamese",
    ),
}  # fmt: skip
MODULES = {f"metarun.algos.{name}": f"metarun.algos.{family}.{name}" for family, names in FAMILIES.items() for name in names}
TARGETS = {"metarun.optim.Outer": "metarun.optim.MetaOptimizer"}
LATER = {"unknown": 0}  # keys of episodes that the first run folders lack
KEYS = {("engine", "replay"): "record"}


def updated(config: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration with today's keys and ``_target_`` paths."""
    found = {key: _section(key, value) if isinstance(value, dict) else value for key, value in config.items()}
    return found | {"episode": _episode(found["episode"])} if isinstance(found.get("episode"), dict) else found


def _episode(values: dict[str, Any]) -> dict[str, Any]:
    """With the keys that an evaluation may want to set, ``LATER``; what has them stays as it is, to the order of its keys."""
    both = {"eval": _later(values["eval"])} if isinstance(values.get("eval"), dict) else {}
    return _later(values) | both


def _later(values: dict[str, Any]) -> dict[str, Any]:
    return values | {key: value for key, value in LATER.items() if key not in values}


def _section(section: str, values: dict[str, Any]) -> dict[str, Any]:
    values = {KEYS.get((section, key), key): value for key, value in values.items()}
    return values | {"_target_": _target(values["_target_"])} if isinstance(values.get("_target_"), str) else values


def _target(path: str) -> str:
    module, _, name = path.rpartition(".")
    return TARGETS.get(path, f"{MODULES.get(module, module)}.{name}")
