"""trainer.profile=true leaves a trace and names the operators that take longest, and changes nothing else."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from helpers import TIMING, classification

from metarun.experiment import train


def test_a_profiled_run_leaves_a_trace_and_the_same_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain, words = train(classification("protonet"), tmp_path / "plain"), ("trainer.profile=true",)
    with caplog.at_level(logging.INFO, "metarun.runtime.profiling"):
        profiled = train(classification("protonet", *words), tmp_path / "profiled")
    assert {key: plain[key] for key in plain.keys() - TIMING} == {key: profiled[key] for key in plain.keys() - TIMING}
    events = json.loads((tmp_path / "profiled" / "profile" / "training.pt.trace.json").read_text())["traceEvents"]
    steps = {event["name"] for event in events if event.get("name", "").startswith("ProfilerStep#")}
    assert len(steps) == 3
    assert not (tmp_path / "plain" / "profile").exists()
    shown = caplog.text.splitlines()
    assert any("aten::" in line and "%" in line for line in shown)
    assert any(event.get("name") == "aten::convolution_backward" for event in events)
    shares = [float(line.split("%")[0].split()[-1]) for line in shown if "%" in line]
    assert shares == sorted(shares, reverse=True)
    assert 50 < sum(shares) <= 101


def test_the_threads_that_work_on_chunks_are_profiled_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with caplog.at_level(logging.INFO, "metarun.runtime.profiling"):
            train(classification("protonet", "trainer.profile=true", "engine.chunk=1", "net.hidden=16"), tmp_path)
    finally:
        torch.set_num_threads(threads)
    events = json.loads((tmp_path / "profile" / "training.pt.trace.json").read_text())["traceEvents"]
    for name in ("aten::sum", "metarun::norm_pool_relu.forward"):
        assert len({event["tid"] for event in events if event.get("name") == name}) == 2


def test_a_run_too_short_to_be_profiled_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(classification("protonet", "trainer.profile=true", "trainer.iterations=1"), tmp_path / "run")
    assert (tmp_path / "run" / "summary.json").exists()
    assert "the run ended before 6 training steps, so nothing was profiled" in caplog.text
