"""One run on two processes (gloo) equals the run of one, says and writes everything once, and survives the death of a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_support import TINY, everything
from helpers import metrics_of, relative_error

from metarun.cli import train
from metarun.errors import UserError

# Pairs of processes that wait for each other: on a machine that has other things to do they take long and are unsteady.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

# Three tasks and five episodes for two processes: the shares are never equal.
WORDS = [*TINY, "trainer.meta_batch=3", "trainer.val_episodes=5", "trainer.test_episodes=5", "logger.tensorboard=true"]
LONG = [*WORDS, "trainer.iterations=60", "trainer.val_every=20", "logger.tensorboard=false"]


def torchrun(*words: str, cwd: Path, module: bool = True) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    program = [*launcher, "-m", "metarun", *words] if module else [*launcher, *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(program, cwd=cwd, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)


def ended(process: subprocess.Popen[str], seconds: float = 500) -> tuple[int, list[str], list[str]]:
    """Status, stdout, and what metarun said on stderr (torchrun adds a report of its own to every failure)."""
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    print(err)  # in full, should the test fail
    return (
        process.returncode,
        out.splitlines(),
        [line for line in err.splitlines() if line.startswith("metarun: ") or "development" in line],
    )


def weights(run: Path, name: str = "last") -> torch.Tensor:
    state = torch.load(run / "checkpoints" / f"{name}.pt", weights_only=True)["algorithm"]
    return torch.cat([tensor.flatten() for tensor in state.values()])


def trained(process: subprocess.Popen[str], run: Path, iterations: int) -> None:
    """Wait until the run has logged so many training iterations."""
    deadline = time.monotonic() + 500
    while not (run / "metrics.jsonl").is_file() or len((run / "metrics.jsonl").read_text().splitlines()) <= iterations:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ranks_of(process: subprocess.Popen[str]) -> dict[int, int]:
    """Process ids of torchrun's children by rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    environments = {int(child): Path(f"/proc/{child}/environ").read_bytes().decode().split("\0") for child in children}
    return {int(word[5:]): child for child, words in environments.items() for word in words if word.startswith("RANK=")}


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, int, list[str], list[str]]:
    """A run of two processes: its folder, status, stdout and stderr."""
    folder = tmp_path_factory.mktemp("pair")
    return folder / "run", *ended(torchrun(*WORDS, "--json", "hydra.run.dir=run", cwd=folder))


def test_two_processes_equal_one(metarun, pair, tmp_path):
    run, status, _, _ = pair
    assert status == 0
    assert metarun(*WORDS, "hydra.run.dir=one").status == 0
    one = tmp_path / "one"
    two_summary, one_summary = (json.loads((folder / "summary.json").read_text()) for folder in (run, one))
    for key in ("best_step", "iterations", "episodes_sha256", "parameters"):
        assert two_summary[key] == one_summary[key]
    assert two_summary["val"]["accuracy"] == one_summary["val"]["accuracy"]
    assert two_summary["test"]["accuracy"] == one_summary["test"]["accuracy"]
    assert two_summary["test"]["curve"] == one_summary["test"]["curve"]
    assert np.array_equal(np.load(run / "test_scores.npy"), np.load(one / "test_scores.npy"))
    for mine, theirs in zip(metrics_of(run), metrics_of(one), strict=True):
        assert (mine.pop("step"), mine.pop("split")) == (theirs.pop("step"), theirs.pop("split"))
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert relative_error(weights(run), weights(one)) < 1e-5


def test_one_process_speaks_and_writes(pair):
    run, _, out, said = pair
    assert json.loads(out[-1]) == json.loads((run / "summary.json").read_text())
    assert len([line for line in out if "run folder" in line]) == 1
    assert len(said) == 1  # the only validation
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "metrics.jsonl", "summary.json", "test_scores.npy", "checkpoints", "tb", "metarun.log"
    }  # fmt: skip
    assert len(list((run / "tb").iterdir())) == 1


def test_eval_shares_episodes(pair, metarun):
    run = pair[0]
    words = ["shot=2", "trainer.test_episodes=7"]
    assert metarun("eval", str(run), *words, "--json").status == 0
    before = everything(run)
    status, out, said = ended(torchrun("eval", "run", *words, "--json", cwd=run.parent))
    assert (status, said) == (0, [])
    after = everything(run)
    assert {path: after[path] for path in before} == before
    assert set(after) - set(before) == {f"eval/1{name}" for name in ("", "/config.yaml", "/summary.json", "/test_scores.npy")}
    assert after["eval/1/test_scores.npy"] == before["eval/0/test_scores.npy"]
    assert json.loads(out[-1])["test"]["accuracy"]["n"] == 7


def test_interrupted_then_broken_then_resumed_alone(metarun, tmp_path):
    """SIGTERM to torchrun, a resumption whose second process is killed, and the rest in one process: the run that nobody cut."""
    run = tmp_path / "run"
    process = torchrun(*LONG, "hydra.run.dir=run", cwd=tmp_path)
    trained(process, run, 5)
    process.send_signal(signal.SIGTERM)
    status, _, said = ended(process)
    line = "checkpoint saved; go on with: metarun resume run"
    assert status != 0
    assert said[-1:] == [f"metarun: interrupted, {line}"]
    first = torch.load(run / "checkpoints" / "last.pt", weights_only=True)["progress"]["iteration"]
    assert first == len(metrics_of(run)) < 60

    process = torchrun("resume", "run", cwd=tmp_path)
    trained(process, run, first + 3)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    status, _, said = ended(process)
    assert status != 0
    assert said[-1:] == [f"metarun: another process of this run is gone, {line}"]  # before torchrun's patience, 30 s, was at an end
    second = torch.load(run / "checkpoints" / "last.pt", weights_only=True)["progress"]["iteration"]
    assert first < second < 60

    assert metarun("resume", "run").status == 0
    assert metarun(*LONG, "hydra.run.dir=uncut").status == 0
    assert [(line["step"], line["split"]) for line in metrics_of(run)] == [
        (line["step"], line["split"]) for line in metrics_of(Path("uncut"))
    ]
    assert relative_error(weights(run), weights(Path("uncut"))) < 1e-3  # 60 steps of Adam carry the rounding on
    assert np.load(run / "test_scores.npy").mean() == pytest.approx(np.load("uncut/test_scores.npy").mean(), abs=0.1)


def test_wrong_input_is_told_once(tmp_path):
    status, out, said = ended(torchrun(*WORDS, "way=5", "hydra.run.dir=run", cwd=tmp_path))
    assert status != 0
    assert out == []
    assert said == ["metarun: way=5 is larger than the 4 classes of the val split; choose way <= 4"]
    assert not (tmp_path / "run").exists()


def test_no_sweep_under_torchrun(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match=r"a sweep \(-m\) does not go with torchrun"):
        train.run(train.parser().read(["-m", "seed=0,1"]))


def test_joined_numbers(tmp_path):
    """What ``ranks_worker.py`` finds on each of two processes, in float64."""
    status, out, _ = ended(torchrun(str(Path(__file__).parents[1] / "ranks_worker.py"), cwd=tmp_path, module=False))
    assert (status, sorted(out)) == (0, ["rank 0 agrees", "rank 1 agrees"])


def test_every_process_knows_the_users_folder(tmp_path):
    (tmp_path / "mine" / "conf" / "algo").mkdir(parents=True)
    (tmp_path / "mine" / "nearby.py").write_text(
        "from metarun.learners import Prototypes, PrototypeLearner\nfrom metarun import inner\n\n\nclass Nearby(PrototypeLearner):\n"
        "    def begin(self, context):\n        x, y = context.support\n"
        "        return Prototypes(inner.class_means(self.net(x, x), y, context.classes.shape[0]), x)\n"
    )
    (tmp_path / "mine" / "conf" / "algo" / "nearby.yaml").write_text("# Nearby.\n_target_: nearby.Nearby\nname: nearby\n")
    status, out, err = ended(torchrun("--with", "mine", "algo=nearby", *WORDS, "--json", cwd=tmp_path))
    assert (status, json.loads(out[-1])["algo"]) == (0, "nearby"), err
    status, out, err = ended(torchrun("--with", "mien", "algo=nearby", *WORDS, cwd=tmp_path))
    assert (out, err) == ([], ["metarun: --with mien does not exist; did you mean 'mine'?"])
