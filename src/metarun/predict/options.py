"""What ``metarun predict`` is asked, and where its answer goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from metarun.predict.destination import Format


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to predict, and what to write; ``metarun predict --help`` says what each means."""

    run: str
    support: str
    query: Sequence[str]
    target: str | None = None
    reject: float | None = None
    steps: int | None = None
    checkpoint: Literal["best", "last"] = "best"
    out: str | None = None
    format: Format | None = None
    sheet: str | None = None
    export: str | None = None
