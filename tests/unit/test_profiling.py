"""trainer.profile=true leaves a trace and names the operators that take longest, and changes nothing else."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from helpers import TIMING, classification

from metarun.run import train


def test_a_profiled_run_leaves_a_trace_and_the_same_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain, words = train(classification("protonet"), tmp_path / "plain"), ("trainer.profile=true",)
    with caplog.at_level(logging.INFO, "metarun.profiling"):
        profiled = train(classification("protonet", *words), tmp_path / "profiled")
    assert {key: plain[key] for key in plain.keys() - TIMING} == {key: profiled[key] for key in plain.keys() - TIMING}
    events = json.loads((tmp_path / "profiled" / "profile" / "training.pt.trace.json").read_text())["traceEvents"]
    steps = {event["name"] for event in events if event.get("name", "").startswith("ProfilerStep#")}
    assert len(steps) == 3
    assert not (tmp_path / "plain" / "profile").exists()
    shown = caplog.text.splitlines()
    assert any("aten::convolution_backward" in line and "%" in line for line in shown)
    shares = [float(line.split("%")[0].split()[-1]) for line in shown if "%" in line]
    assert shares == sorted(shares, reverse=True)
    assert 50 < sum(shares) <= 101


def test_a_run_too_short_to_be_profiled_ends_as_usual(tmp_path: Path) -> None:
    train(classification("protonet", "trainer.profile=true", "trainer.iterations=1"), tmp_path / "run")
    assert (tmp_path / "run" / "summary.json").exists()
