"""How the jobs of a sweep fare: small files in its folder, which jobs write and the sweep's own process reads."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

STATES = ".jobs"  # in the sweep's folder: NAME.jsonl for each job


def report(top: Path, name: str, state: str, detail: str = "") -> None:
    """Say how a job fares, where the sweep's own process looks."""
    path = top / STATES / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    line = {"state": state, "detail": detail, "time": time.time(), "pid": os.getpid()}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def reports(top: Path, name: str) -> list[dict[str, Any]]:
    """All that ``report`` has said of a job, in order."""
    try:
        text = (top / STATES / f"{name}.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]  # the rest is half a line
