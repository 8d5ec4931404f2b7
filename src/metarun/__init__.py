"""metarun: a config-driven experiment runner for meta-learning.
``load`` opens a trained run for prediction; it brings torch with it, so it is imported when first asked for."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metarun.predict.trained import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from metarun.predict.trained import load

        return load
    raise AttributeError(f"module 'metarun' has no attribute '{name}'")
