"""What the user sees of a sweep while it runs: one line whenever a job starts, goes on, finishes or fails, wherever it runs.
Jobs report through small files in the sweep's folder, so that this works for processes, Slurm and Ray alike."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from metarun.sweeps.reports import STATES, reports
from metarun.tracking.console import QUIET_SECONDS, console

POLL_SECONDS = 0.25
DONE = ("finished", "before", "failed")
ALIVE = ("started", "resumed", "waiting", "stopped")  # and what is still so when the launcher is through has been killed


class Watch:
    """Follows the jobs of a sweep in a thread of its own.

    Args:
        top: the sweep's folder.
        total: number of its jobs.
        done: how many of them will not be run because they are done.
        swept: the keys whose values tell its jobs apart.
        parallel: say now and then how far the running jobs have come, which they cannot show themselves.
    """

    def __init__(self, top: Path, total: int, done: int, swept: set[str], parallel: bool) -> None:
        self.top, self.total, self.done, self.swept, self.parallel = top, total, done, swept, parallel
        self.states: dict[str, dict[str, Any]] = {}  # of each job the last
        self.heard: dict[str, int] = {}  # of each job, how many reports were told
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Watch:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.ended.set()
        self.thread.join()
        self._look()

    def having(self, *states: str) -> dict[str, str]:
        """The jobs that are in one of ``states``, by name, with what they said."""
        self._look()
        return {name: self.states[name]["detail"] for name in sorted(self.states, key=number) if self.states[name]["state"] in states}

    def _follow(self) -> None:
        spoken = time.monotonic()
        while not self.ended.wait(POLL_SECONDS):
            if self._look():
                spoken = time.monotonic()
            elif self.parallel and time.monotonic() - spoken >= QUIET_SECONDS:
                spoken = time.monotonic()
                running = [f"{name} at {self._step(name)}" for name, state in self.states.items() if state["state"] in ALIVE]
                self._say(f"running: {', '.join(running) or 'none'}")

    def _look(self) -> bool:
        """Read and tell what has changed; whether anything was told."""
        with self.lock:
            news = []
            for path in (self.top / STATES).glob("*.jsonl"):
                said = reports(self.top, path.stem)
                news += [(state["time"], path.stem, state) for state in said[self.heard.get(path.stem, 0) :]]
                self.heard[path.stem] = len(said)
            told = False
            for _, name, state in sorted(news, key=lambda item: item[:2]):
                self.states[name] = state
                if state["state"] != "before":
                    self._say(f"{name} {state['state']}{self._detail(state)}")
                    told = True
            return told

    def _say(self, line: str) -> None:
        done = self.done + sum(state["state"] in DONE for state in self.states.values())
        console.print(f"{time.strftime('%H:%M:%S')} [{done}/{self.total}] {line}", markup=False, soft_wrap=True)

    def _detail(self, state: dict[str, Any]) -> str:
        text = state["detail"]
        if state["state"] in ALIVE:  # the job's overrides
            text = " ".join(word for word in text.split(" ") if word.partition("=")[0] in self.swept)
        return f": {text}" if text else ""

    def _step(self, name: str) -> int:
        """The iteration of a job's last logged point."""
        try:
            lines = (self.top / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            return int(json.loads(lines[-1])["step"])
        except (OSError, ValueError, IndexError):  # nothing yet, or half a line
            return 0


def number(name: str) -> tuple[int, str]:
    """Orders folder names by job number."""
    first = name.partition("_")[0]
    return (int(first) if first.isdecimal() else 0, name)
