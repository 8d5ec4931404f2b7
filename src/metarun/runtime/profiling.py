"""A look into a few training steps: a trace for TensorBoard or Perfetto, and the operators that take longest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.profiler import profile, schedule

from metarun.runtime.private import ProfilerConfig
from metarun.runtime.recording import EAGER

log = logging.getLogger(__name__)
SKIPPED, RECORDED = EAGER + 1, 3  # training steps: the first ones are not yet replayed, and three say as much as a hundred
SHOWN = 12  # operators


@contextmanager
def profiled(folder: Path) -> Iterator[Callable[[], None]]:
    """Record training steps; yields what to call after each. ``folder`` receives ``training.pt.trace.json``."""
    folder.mkdir(exist_ok=True)
    path = folder / "training.pt.trace.json"
    path.unlink(missing_ok=True)

    def ready(recorded: Any) -> None:
        recorded.export_chrome_trace(str(path))
        log.info("%s", table(recorded))
        log.info("the trace of these steps is %s: open it in ui.perfetto.dev, or in TensorBoard with its PyTorch plugin", path)

    steps = schedule(wait=SKIPPED - 1, warmup=1, active=RECORDED, repeat=1)
    everywhere = ProfilerConfig(profile_all_threads=True)  # the tasks' chunks are worked on in threads of their own
    with profile(schedule=steps, on_trace_ready=ready, experimental_config=everywhere) as running:
        yield running.step
    if not path.exists():
        log.warning("the run ended before %d training steps, so nothing was profiled", SKIPPED + RECORDED)


def table(recorded: Any) -> str:
    """The operators that take longest by themselves, on the GPU if there is one: time and calls over all recorded steps."""
    operators = recorded.key_averages()
    where = "device" if any(operator.self_device_time_total for operator in operators) else "cpu"
    spent: dict[str, float] = {}
    calls: dict[str, int] = {}
    for operator in operators:
        name = "Python, or waiting for threads" if operator.key == "ProfilerStep*" else operator.key
        spent[name], calls[name] = getattr(operator, f"self_{where}_time_total"), operator.count
    total = sum(spent.values())
    rows = [f"{'operator':<48} {'share':>6} {'ms':>9} {'calls':>7}"]
    for name in sorted(spent, key=lambda name: -spent[name])[:SHOWN]:
        rows.append(f"{name[:48]:<48} {spent[name] / total:>6.1%} {spent[name] / 1e3:>9.1f} {calls[name]:>7}")
    return "\n".join(["where the time of a few training steps goes:", *rows])
