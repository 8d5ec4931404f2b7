"""What a run says on stderr while it works: log lines and a live progress bar on one console, so that they do not garble each other.
Off a terminal there is no bar but a plain line now and then. stdout is kept for results."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from metarun.storage.foreign import printable

log = logging.getLogger(__name__)
console = Console(stderr=True, highlight=False)
QUIET_SECONDS = 30.0  # between plain progress lines, off a terminal


def start_logging(folder: Path | None = None) -> None:
    """Log lines to the console, unless it is quiet, and, in full, to ``folder/metarun.log``, which appears with the first line."""
    handlers: list[logging.Handler] = []
    if console.quiet:
        handlers.append(logging.NullHandler())
    elif console.is_terminal:
        handlers.append(
            RichHandler(console=console, show_path=False, show_level=False, omit_repeated_times=False, log_time_format="%H:%M:%S")
        )
        handlers[0].setFormatter(Legible("%(message)s"))
    else:
        handlers.append(logging.StreamHandler())
        handlers[0].setFormatter(Legible("%(asctime)s %(message)s", "%H:%M:%S"))
    handlers[0].setLevel(logging.INFO)
    if folder:
        handlers.append(logging.FileHandler(folder / "metarun.log", delay=True, encoding="utf-8"))
        handlers[1].setFormatter(Legible("[%(asctime)s][%(levelname)s][%(name)s] %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)
    logging.getLogger("metarun").setLevel(logging.DEBUG)  # details are for the file
    logging.raiseExceptions = False  # a log that a full disk refuses is no reason to stop
    logging.getLogger("hydra").setLevel(logging.WARNING)  # what a sweep runs, the command line says itself


class Legible(logging.Formatter):
    """What a message quotes, as the names of anybody's folders, steers no terminal and breaks no file."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).split("\n")))


class Display:
    """How far training, validation or test has come.

    Args:
        enabled: show anything at all.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.bar: Progress | None = None
        self.spoken = time.monotonic()

    def show(self, label: str, done: int, total: int, values: dict[str, float], note: str = "") -> None:
        """``done`` of ``total``, and a few numbers or a note. Work inside work (a validation) has a line of its own while it lasts."""
        if not self.enabled:
            return
        text = note or "  ".join(f"{name} {_short(value)}" for name, value in values.items())
        if not console.is_terminal:
            if time.monotonic() - self.spoken >= QUIET_SECONDS:
                self.spoken = time.monotonic()
                log.info("%s %d/%d  %s", label, done, total, text)
            return
        if self.bar is None:
            bar = BarColumn(max(4, min(30, console.width - 76)))
            columns = (TextColumn("{task.description:<8}"), bar, MofNCompleteColumn(), TextColumn("{task.fields[numbers]}"), Clock())
            self.bar = Progress(*columns, console=console, transient=True)
            self.bar.start()
        task = next((task for task in self.bar.tasks if task.description == label), None)
        if task is None or task.completed > done:  # the next validation starts anew, clock included
            if task is not None:
                self.bar.remove_task(task.id)
            number = self.bar.add_task(label, total=total, completed=done, numbers="")  # a resumed run has not come so far in no time
        else:
            number = task.id
        self.bar.update(number, completed=done, total=total, numbers=text, visible=done < total)

    def close(self) -> None:
        """Take the bar away; safe to call twice."""
        if self.bar:
            self.bar.stop()
            self.bar = None


class Clock(ProgressColumn):
    """Time spent < time left, as narrow as 80 columns ask for."""

    def render(self, task: Task) -> Text:
        left = "-:--" if task.time_remaining is None else _clock(task.time_remaining)
        return Text(f"{_clock(task.elapsed or 0)} < {left}", style="cyan", no_wrap=True)


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}" if minutes >= 60 else f"{minutes}:{second:02}"


def _short(value: float) -> str:
    """Losses and fractions with three decimals, larger numbers with fewer."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
