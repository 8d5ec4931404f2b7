"""Where a run comes from: the command line, the version, and the commit of the checkout that ran it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]


def line(version: str) -> str:
    """One line for the run's log."""
    return f"metarun {version}, {commit() or 'no checkout'}: {shlex.join(['metarun', *sys.argv[1:]])}"


def commit() -> str | None:
    """The checkout's commit, with ``-dirty`` where files are changed; None for an installed package, or without git."""
    if not (CHECKOUT / ".git").exists():
        return None
    question = ["git", "-C", str(CHECKOUT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        return subprocess.run(question, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
