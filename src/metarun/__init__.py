"""metarun: a config-driven experiment runner for meta-learning.
``train`` and ``evaluate`` do what the command line does, ``load`` opens a trained run, ``optimizer`` a learned optimizer that was exported;
each brings torch when first asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from metarun.runtime.version import __version__

if TYPE_CHECKING:
    from metarun.predict.optimizer import optimizer
    from metarun.predict.trained import load
    from metarun.session.python import compose, evaluate, including, train

__all__ = ["__version__", "compose", "evaluate", "including", "load", "optimizer", "train"]
_HOMES = {
    "load": "metarun.predict.trained",
    "optimizer": "metarun.predict.optimizer",
    **dict.fromkeys(("compose", "evaluate", "including", "train"), "metarun.session.python"),
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'metarun' has no attribute '{name}'")
