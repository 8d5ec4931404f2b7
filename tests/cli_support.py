"""What the tests of the command line share: words of a tiny run, what the program answered, a folder's content, a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TINY = [
    *("way=3", "query=2", "device=cpu", "net.hidden=8", "logger=quiet", "logger.every=1"),
    *("data.train_classes=6", "data.val_classes=4", "data.test_classes=4", "data.drawers=5"),
    *("trainer.iterations=3", "trainer.meta_batch=2", "trainer.val_episodes=4", "trainer.test_episodes=4"),
]


@dataclass(frozen=True)
class Outcome:
    status: int
    out: list[str]
    err: list[str]

    @property
    def json(self) -> Any:
        return json.loads(self.out[-1])


def everything(folder: Path) -> dict[str, bytes | None]:
    """All paths below a folder, files with their content."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def program(*words: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """The program as a process of its own."""
    command = [sys.executable, "-m", "metarun", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=cwd, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, **pipes)


def assert_one_line(result: Outcome, status: int, pattern: str) -> None:
    """The program said one line, which the regular expression ``pattern`` finds, and ended with ``status``."""
    assert len(result.err) == 1, result.err
    assert result.err[0].startswith("metarun: ")
    assert re.search(pattern, result.err[0]), result.err[0]
    assert (result.status, result.out) == (status, [])
