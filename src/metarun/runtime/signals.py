"""The signals that ask a run to stop (Ctrl-C, SIGTERM, SIGHUP): looked at between two steps, and never in the middle of a write."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:  # it brings torch
    from metarun.runtime.distributed import World

SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
TOGETHER = 1.0  # seconds; a terminal or launcher that stops a run may send it two signals at once


class Interrupted(KeyboardInterrupt):
    """A signal came; the checkpoint is saved. Not an ``Exception``: it also ends a sweep."""


class StopFlag:
    """Turns the first signal into a flag that loops look at; a second one, more than a second later, stops at once."""

    armed: ClassVar[bool] = False  # somebody looks at it: a signal would end training with a checkpoint

    def __enter__(self) -> StopFlag:
        StopFlag.armed = True
        self.raised = self.leaving = False
        self.previous = install(self._raise)
        return self

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if not self.raised:
            self.raised, self.at = True, time.monotonic()
        elif not self.leaving and time.monotonic() - self.at > TOGETHER:
            raise KeyboardInterrupt

    def check(self, world: World) -> None:
        """Raise ``Interrupted`` on all ranks when a signal has come to any."""
        if world.any(self.raised):
            raise Interrupted

    def leave(self) -> None:
        """From here on no signal stops anything: what is to be kept is being written."""
        self.leaving = self.raised = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        StopFlag.armed = False
        restore(self.previous)


@contextmanager
def unbroken() -> Iterator[None]:
    """Signals wait until the block has ended; then they come."""
    came: dict[int, None] = {}
    previous = install(lambda number, frame: came.setdefault(number))
    try:
        yield
    finally:
        restore(previous)
        for number in came:
            signal.raise_signal(number)


def install(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> dict[int, Any]:
    """Let ``handler`` have the signals; returns who had them, for ``restore``. Nothing happens outside the main thread, which gets them."""
    previous: dict[int, Any] = {}
    try:
        for number in SIGNALS:
            if number in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(number) is not signal.SIG_IGN:  # under nohup it stays ignored
                previous[number] = signal.signal(number, handler)
    except ValueError:
        pass
    return previous


def restore(previous: dict[int, Any]) -> None:
    """Give the signals back."""
    for number, handler in previous.items():
        signal.signal(number, handler)
