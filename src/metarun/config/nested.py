"""Nested configurations by dotted name. Imports nothing, so that runs are compared at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def nodes(values: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every section and every value of a configuration, each by its dotted name; a list is one value."""
    for key, value in values.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from nodes(value, f"{prefix}{key}.")


def leaves(values: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    """The values alone."""
    return ((name, value) for name, value in nodes(values) if not isinstance(value, dict))
