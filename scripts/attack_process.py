"""What the attacks share: commands as forks of one process that has everything imported, how they end, and what a run holds."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.core.global_hydra import GlobalHydra

from metarun.cli.main import main as metarun

METHODS = ("maml", "anil", "reptile", "metasgd", "boil", "protonet", "matching", "r2d2", "pretrain")
TINY = [
    *("way=3", "query=2", "device=cpu", "net.hidden=8", "net.norm=running", "logger=quiet", "logger.every=1"),
    *("data.train_classes=6", "data.val_classes=4", "data.test_classes=4", "data.drawers=5", "data.size=16", "engine.kernels=torch"),
    *("trainer.iterations=12", "trainer.meta_batch=2", "trainer.val_every=3", "trainer.val_episodes=6", "trainer.test_episodes=20"),
]
TIMES = {"wall_s", "tasks_per_s", "peak_memory_mb"}
STATUSES = {0, 1, 2, 130}
SECONDS, MEGABYTES = 120, 1024  # that a command may take; those on hostile files 10 seconds


class End(NamedTuple):
    """How a command ended."""

    status: int  # negative: by that signal
    err: str
    seconds: float
    megabytes: float

    @property
    def said(self) -> list[str]:
        """What metarun itself said."""
        return [line for line in self.err.splitlines() if line.startswith("metarun: ")]

    @property
    def clean(self) -> bool:
        """A status that is documented, no traceback, and one line where it did not work."""
        return self.status in STATUSES and "Traceback" not in self.err and (self.status == 0 or len(self.said) == 1)


def warm() -> None:
    """Import and build whatever a command needs, once for all forks."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert metarun(["check", *TINY]) == 0
    logging.basicConfig(handlers=[], force=True)
    GlobalHydra.instance().clear()


def begin(words: list[str], folder: Path, prepare: Callable[[], Any] = lambda: None) -> int:
    """The command in a process of its own, a fork of this one, which has everything imported; returns its id."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    status = 70
    try:
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open("err", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), 2)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        from metarun.tracking.console import console

        console.file = sys.stderr
        sys.argv = ["metarun", *words]
        prepare()
        status = metarun(words)
    finally:
        sys.stderr.flush()
        os._exit(status)


def finish(child: int, folder: Path, seconds: float = SECONDS) -> End:
    """Wait for a command; one that does not end in time is killed, and has failed."""
    begun, ended, code, usage = time.monotonic(), 0, 0, None
    while not ended:
        if time.monotonic() - begun > seconds:
            os.kill(child, signal.SIGKILL)
        ended, code, usage = os.wait4(child, os.WNOHANG)
        time.sleep(0.005)
    err = (folder / "err").read_text(errors="replace") if (folder / "err").exists() else ""
    return End(os.waitstatus_to_exitcode(code), err, time.monotonic() - begun, usage.ru_maxrss / 1024)


def call(words: list[str], folder: Path, prepare: Callable[[], Any] = lambda: None, seconds: float = SECONDS) -> End:
    return finish(begin(words, folder, prepare), folder, seconds)


class Count:
    """How many of what was tried held; what did not is shown.

    Args:
        name: of what is tried, in the plural.
        minutes: after which no more is.
    """

    def __init__(self, name: str, minutes: float) -> None:
        self.name, self.held, self.tried, self.unjudged = name, 0, 0, 0
        self.begun, self.until = time.monotonic(), time.monotonic() + 60 * minutes

    @property
    def late(self) -> bool:
        """The time is up."""
        return time.monotonic() > self.until

    def add(self, good: bool, what: object) -> None:
        self.tried, self.held = self.tried + 1, self.held + good
        if not good:
            print(f"  FAILED, of {self.name}: {str(what)[-1500:]}", flush=True)

    def judge(self, good: bool, end: End, what: object) -> None:
        """``add``, but for a command whose time was up: it may have been asked for a billion iterations, which is no fault."""
        if end.status == -signal.SIGKILL:
            self.unjudged += 1
        else:
            self.add(good, (what, end))

    @property
    def all_held(self) -> bool:
        return self.held == self.tried > 0

    def __str__(self) -> str:
        left = f", {self.unjudged} more stopped while at work" if self.unjudged else ""
        return f"{self.tried:,} {self.name}: {self.held:,} held{left}"


def content(run: Path) -> dict[str, Any]:
    """All that a finished run holds, but for times."""
    summary = json.loads((run / "summary.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    states = [torch.load(run / "checkpoints" / f"{name}.pt", weights_only=True) for name in ("last", "best")]
    return {
        "files": sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.name != "metarun.log"),
        "summary": {key: value for key, value in summary.items() if key not in TIMES},
        "metrics": [{key: value for key, value in line.items() if key not in TIMES} for line in lines],
        "scores": (run / "test_scores.npy").read_bytes(),
        "config": (run / "config.yaml").read_bytes(),
        "weights": [{name: tensor.numpy().tobytes() for name, tensor in state["algorithm"].items()} for state in states],
        "steps": [state["progress"]["iteration"] for state in states],
    }


@cache
def uncut(method: str, folder: Path) -> tuple[list[str], Path, float]:
    """The words of a run, its folder, and how many seconds it takes."""
    words, place = [*TINY, f"algo={method}"], folder / f"uncut-{method}"
    place.mkdir()
    end = call([*words, "hydra.run.dir=run"], place)
    assert end.status == 0, end
    return words, place / "run", end.seconds
