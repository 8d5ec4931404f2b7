"""A run cut by a real signal, in whatever phase, and resumed, ends as the run that nobody cut: bit for bit."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_support import TINY, everything, program
from helpers import metrics_of

from metarun.storage.run_folder import held

RUN = [
    *(word for word in TINY if not word.startswith("trainer.")),
    *("trainer.iterations=60", "trainer.meta_batch=2", "trainer.val_every=20", "trainer.val_episodes=100", "trainer.test_episodes=1000"),
    *("data.size=16", "net.norm=running", "algo.inner_lr=0.05", "algo.test_steps=3"),
]
SAME = ("val", "test", "best_step", "iterations", "episodes_sha256")


@pytest.fixture(scope="module")
def uncut(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uncut")
    with program(*RUN, "hydra.run.dir=run", cwd=folder) as process:
        assert process.wait(300) == 0
        process.communicate()
    return folder / "run"


def start_and_signal(folder: Path, ready: Callable[[Path], bool], number: int, *words: str) -> tuple[int, list[str], Path]:
    """Start a run, send the signal once ``ready(run folder)``; returns status, stderr without log lines, and the run's folder."""
    run = folder / "run"
    with program(*RUN, "hydra.run.dir=run", *words, cwd=folder) as process:
        deadline = time.monotonic() + 300
        while not (run.is_dir() and ready(run)):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, number)
        _, err = process.communicate(timeout=300)
    return process.returncode, [line for line in err.splitlines() if line.startswith("metarun: ") or "Traceback" in line], run


def lines(run: Path, split: str) -> int:
    path = run / "metrics.jsonl"
    return sum(f'"split": "{split}"' in line for line in path.read_text().splitlines()) if path.is_file() else 0


def assert_resumes_to(uncut: Path, run: Path) -> None:
    with program("resume", run.name, "--json", cwd=run.parent) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    resumed, straight = (json.loads((folder / "summary.json").read_text()) for folder in (run, uncut))
    assert json.loads(out.splitlines()[-1]) == resumed
    assert {key: resumed[key] for key in SAME} == {key: straight[key] for key in SAME}
    assert (run / "test_scores.npy").read_bytes() == (uncut / "test_scores.npy").read_bytes()
    assert metrics_of(run) == metrics_of(uncut)
    weights = [torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["algorithm"] for folder in (run, uncut)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


PHASES = {
    "training": lambda run: lines(run, "train") >= 7,
    "validation": lambda run: lines(run, "train") >= 20,
    "second stretch": lambda run: lines(run, "train") >= 27,
    "test": lambda run: lines(run, "val") >= 3,
}


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        ("training", signal.SIGINT),
        pytest.param("validation", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("test", signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_signal_then_resume(tmp_path, uncut, phase, number):
    status, said, run = start_and_signal(tmp_path, PHASES[phase], number)
    assert (status, said) == (130, ["metarun: interrupted, checkpoint saved; go on with: metarun resume run"])
    assert not (run / "summary.json").exists()
    assert_resumes_to(uncut, run)


@pytest.mark.slow
def test_killed_then_resumed(tmp_path, uncut):
    """Nothing could be saved: it goes on from the last validation and drops what was logged since."""
    status, _, run = start_and_signal(tmp_path, PHASES["second stretch"], signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert len(metrics_of(run)) > 27
    assert_resumes_to(uncut, run)


def test_one_process_at_a_time_goes_on_with_a_run(metarun, tmp_path):
    _, _, run = start_and_signal(tmp_path, PHASES["training"], signal.SIGTERM)
    before = everything(run)
    with held(run):
        result = metarun(f"resume {run}")
    assert (result.status, len(result.err)) == (2, 1)
    assert result.err[0] == f"metarun: another process is at work in {run}; wait until it has ended, or stop it"
    assert everything(run) == before


def test_interrupted_before_training_leaves_nothing(tmp_path):
    status, said, run = start_and_signal(tmp_path, lambda run: True, signal.SIGTERM, "data.train_classes=20000", "data.drawers=20")
    assert status == 130
    assert len(said) == 1
    assert said[0].startswith("metarun: interrupted")
    assert "checkpoint saved" not in said[0]
    assert not run.exists()


def test_signal_ends_a_sweep(tmp_path):
    words = [word for word in RUN if not word.startswith("trainer.val_")]
    with program("-m", *words, "seed=0,1", "hydra.sweep.dir=sweep", cwd=tmp_path) as process:
        run = tmp_path / "sweep" / "0_maml-glyphs-3w1s"
        while lines(run, "train") < 5:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    said = [line for line in err.splitlines() if line.startswith("metarun: ")]
    assert len(said) == 1
    assert "interrupted; what has run is kept; go on with: metarun resume sweep" in said[0]
    assert (run / "checkpoints" / "last.pt").is_file()
    assert not (tmp_path / "sweep" / "1_maml-glyphs-3w1s").exists()


def test_second_signal_stops_at_once(tmp_path):
    """The first waits for the step to end, here a very long one."""
    given = ["trainer.meta_batch=20000", "trainer.iterations=1", "engine.chunk=8"]
    others = [word for word in RUN if not word.startswith(("trainer.meta_batch", "trainer.iterations"))]
    with program(*others, *given, "hydra.run.dir=run", cwd=tmp_path) as process:
        while not (tmp_path / "run" / "metrics.jsonl").is_file():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        time.sleep(1)
        os.kill(process.pid, signal.SIGINT)
        time.sleep(1.5)  # within a second it would be the same one
        assert process.poll() is None
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1].startswith("metarun: interrupted")
