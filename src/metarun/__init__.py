"""metarun: a config-driven experiment runner for meta-learning.
``train`` and ``evaluate`` do what the command line does, ``load`` opens a trained run; each brings torch when first asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from metarun.version import __version__

if TYPE_CHECKING:
    from metarun.api import compose, evaluate, including, train
    from metarun.predict.trained import load

__all__ = ["__version__", "compose", "evaluate", "including", "load", "train"]
_HOMES = {"load": "metarun.predict.trained", **dict.fromkeys(("compose", "evaluate", "including", "train"), "metarun.api")}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'metarun' has no attribute '{name}'")
