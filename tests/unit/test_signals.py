"""Signals: the first is looked at between two steps, a second stops at once unless it is the same one, and no write is cut."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from metarun.runtime.distributed import World
from metarun.runtime.signals import SIGNALS, Interrupted, StopFlag, unbroken
from metarun.storage.files import replace_file


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_waits_until_it_is_looked_at(number: int) -> None:
    before = signal.getsignal(number)
    with StopFlag() as stop:
        stop.check(World())
        signal.raise_signal(number)
        with pytest.raises(Interrupted):
            stop.check(World())
    assert signal.getsignal(number) is before


def test_a_second_one_within_a_second_is_the_same_and_a_later_one_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with StopFlag():
        signal.raise_signal(signal.SIGTERM)
        now[0] = 0.9
        signal.raise_signal(signal.SIGINT)
        now[0] = 1.1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_nothing_stops_what_is_written_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with StopFlag() as stop:
        stop.leave()
        now[0] = 100.0
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_in_the_middle_of_a_write_comes_after_it(tmp_path: Path, number: int) -> None:
    """Whoever handles it: here a handler that raises at once."""
    before = signal.signal(number, signal.default_int_handler)

    def write(handle: object) -> None:
        handle.write(b"whole")  # type: ignore[attr-defined]
        signal.raise_signal(number)
        signal.raise_signal(number)
        handle.write(b" file")  # type: ignore[attr-defined]

    try:
        with pytest.raises(KeyboardInterrupt):
            replace_file(tmp_path / "x", write)
    finally:
        signal.signal(number, before)
    assert (tmp_path / "x").read_bytes() == b"whole file"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_under_nohup_a_hangup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopFlag() as stop, unbroken():
            signal.raise_signal(signal.SIGHUP)
            assert not stop.raised
    finally:
        signal.signal(signal.SIGHUP, before)
