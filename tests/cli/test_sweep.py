"""Sweeps: what fails stops nothing, what is finished is not run again, what was cut goes on, whatever launches the jobs."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from cli_support import TINY, Outcome, program
from helpers import metrics_of

from metarun.cli import main
from metarun.errors import UserError
from metarun.storage.run_folder import held
from metarun.sweeps import job, launch
from metarun.sweeps.job import reports
from metarun.sweeps.launch import check

WORDS = [*TINY, "trainer.val_every=1"]
GRID = ["-m", "seed=0,1,2", *WORDS]
SAME = ("val", "test", "best_step", "iterations", "episodes_sha256")


def results(top: Path) -> dict[str, list]:
    """By run, all that must not depend on how it was run."""
    return {
        path.parent.name: [*(json.loads(path.read_text())[key] for key in SAME), (path.parent / "test_scores.npy").read_bytes()]
        for path in sorted(top.glob("*/summary.json"))
    }


def told(result: Outcome, word: str) -> list[str]:
    """The jobs of which the sweep said this, in order."""
    return [line.split()[2] for line in result.err if re.match(rf"\d\d:\d\d:\d\d \[\d+/\d+\] \S+ {word}", line)]


def needs(plugin: str) -> pytest.MarkDecorator:
    try:
        found = importlib.util.find_spec(f"hydra_plugins.{plugin}")
    except ModuleNotFoundError:
        found = None
    return pytest.mark.skipif(found is None, reason=f"{plugin} is not installed")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A finished sweep of three seeds; copy it before changing it."""
    folder = tmp_path_factory.mktemp("whole")
    assert main.main([*GRID, f"hydra.sweep.dir={folder}/top"]) == 0
    logging.basicConfig(handlers=[], force=True)
    return folder / "top"


@pytest.fixture
def top(whole, tmp_path) -> Path:
    """A copy of the finished sweep in the current folder."""
    return Path(shutil.copytree(whole, tmp_path / "top"))


def cut(run: Path) -> None:
    """Take from a finished run what a kill before the test would not have left."""
    for name in ("summary.json", "test_scores.npy"):
        (run / name).unlink()


def test_a_failed_job_stops_nothing_and_is_listed_with_its_reason(metarun):
    result = metarun("-m", "shot=1,4,2", *WORDS, "--json")
    assert result.status == 1
    (failure,) = result.json["failed"]
    assert failure["run"] == "1_maml-glyphs-3w4s"
    assert "shot=4 + query=2 = 6 images per class" in failure["reason"]
    assert f"  1_maml-glyphs-3w4s: {failure['reason']}" in result.err
    assert "metarun: 1 of 3 runs failed" in result.err
    assert [summary["shot"] for summary in result.json["runs"]] == [1, 2]
    assert told(result, "started: shot=") == ["0_maml-glyphs-3w1s", "1_maml-glyphs-3w4s", "2_maml-glyphs-3w2s"]
    assert told(result, "finished: accuracy val 0") == ["0_maml-glyphs-3w1s", "2_maml-glyphs-3w2s"]
    folder = Path(result.json["folder"])
    assert {path.name for path in folder.glob("[0-9]*")} == {"0_maml-glyphs-3w1s", "2_maml-glyphs-3w2s"}
    table = "\n".join(result.out)
    assert "mean ± std over" in table
    assert all(f"{summary['test']['accuracy']['mean']:.4f}" in table for summary in result.json["runs"])


@pytest.mark.parametrize(
    "how", ["the same words", *(pytest.param(how, marks=pytest.mark.slow) for how in ("another manner", "metarun resume"))]
)
def test_again_skips_what_is_finished_and_goes_on_with_the_rest(metarun, top, whole, how):
    finished, begun, bare = (top / f"{n}_maml-glyphs-3w1s" for n in range(3))
    cut(begun)
    cut(bare)
    shutil.rmtree(bare / "checkpoints")  # killed before the first one, with a point in metrics.jsonl
    then = (finished / "summary.json").stat().st_mtime_ns
    manner = ["hydra.sweeper.max_batch_size=1"] * (how == "another manner")
    words = ["resume", "top"] if how == "metarun resume" else [*GRID, *manner, "hydra.sweep.dir=top", "sweep=resume"]
    result = metarun(*words, "--json")
    assert result.status == 0
    assert (told(result, "resumed: seed=1"), told(result, "started: seed=2")) == ([begun.name], [bare.name])
    assert "1 finished before, 2 to go on with" in result.err
    assert (finished / "summary.json").stat().st_mtime_ns == then
    assert "resuming at iteration 3 of 3" in (begun / "metarun.log").read_text()
    assert results(top) == results(whole)
    assert len(result.json["runs"]) == 3
    assert metrics_of(bare) == metrics_of(whole / bare.name)


@pytest.mark.slow
def test_resume_finds_the_newest_sweep_of_the_same_words(metarun, top):
    for n, words in enumerate([GRID[1:], GRID[1:], ["seed=0,1", *WORDS]]):
        folder = Path(shutil.copytree(top, f"outputs/multirun/2026-01-0{n + 1}/12-00-00"))
        (folder / "sweep.json").write_text(json.dumps({"words": words, "started": n}))
    result = metarun(*GRID, "sweep=resume", "--json")
    assert result.json["folder"] == "outputs/multirun/2026-01-02/12-00-00"
    assert "3 finished before, 0 to go on with" in result.err
    new = metarun("-m", "seed=7,8", *WORDS, "sweep=resume", "--json")
    assert new.json["folder"] not in {str(path) for path in Path("outputs/multirun").glob("2026-01-0*/*")}
    assert any("no such sweep yet" in line for line in new.err)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([*GRID, "hydra.sweep.dir=top"], "hydra.sweep.dir=top is there already: add sweep=resume to go on with it"),
        ([*GRID, "hydra.sweep.dir=."], "hydra.sweep.dir=. is there already: it must be empty or new"),
        (["-m", "seed=0,1", *WORDS, "hydra.sweep.dir=top", "sweep=resume"], "different: seed=0,1,2 seed=0,1"),
        (["sweep=seeds", *WORDS], "sweep=seeds is for a sweep: add -m"),
        (["+sweep=resume", *WORDS], "+sweep=resume is for a sweep: add -m"),
        (["-m", "optim.lr=interval(0.1,1)", *WORDS], "optim.lr takes an interval, which is for a search: add hydra/sweeper=tpe"),
        (["-m", "sweep=sedes", *WORDS], "sweep=sedes does not exist; did you mean 'seeds'?"),
        (["-m", "sweep=seeds", *WORDS, "trainer.iterations=-1"], "trainer.iterations=-1 is not possible"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(metarun, top, words, line):
    before = {path: path.stat().st_mtime_ns for path in top.rglob("*")}
    result = metarun(*words)
    assert result.status == 2
    (said,) = result.err
    assert line in said
    assert {path: path.stat().st_mtime_ns for path in top.rglob("*")} == before


@pytest.mark.parametrize("choice", ["hydra/launcher=joblib", "hydra/launcher=slurm", "sweep=maml_lr"])
def test_a_plugin_that_is_missing_is_named(monkeypatch, choice):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("hydra_plugins.") else real(name))
    with pytest.raises(UserError, match=r"plugin that is not installed: pip install -e '\.\[(joblib|slurm|optuna)\]'"):
        check([choice, *WORDS])


@pytest.mark.parametrize(("trials", "total"), [(5, 4), (3, 3)])
def test_a_search_of_a_grid_ends_with_its_combinations(monkeypatch, trials, total):
    """Not "1 have not run" for a trial that there is no combination for."""
    monkeypatch.setattr(launch, "_require", lambda *_: None)
    search = ["hydra/sweeper=tpe", "hydra.sweeper.sampler._target_=optuna.samplers.GridSampler", f"hydra.sweeper.n_trials={trials}"]
    assert check([*search, "algo.inner_steps=choice(1,2)", "seed=choice(0,1)", *WORDS]).total == total


@pytest.mark.parametrize(("trials", "missing"), [(5, 0), (4, 1)])
def test_trials_that_repeat_a_run_have_run(monkeypatch, top, trials, missing):
    """A search among few values tries them again; it said "3 have not run"."""
    for plugin in ("continued", "ended"):
        monkeypatch.setattr(launch.optuna_study, plugin, lambda *_: 0)
    monkeypatch.setattr(launch, "_require", lambda *_: None)
    plan = check(["hydra/sweeper=tpe", "hydra.sweeper.n_trials=5", "seed=choice(0,1,2)", *WORDS])

    def tried(*_: object) -> None:
        monkeypatch.setattr(launch.optuna_study, "ended", lambda _: trials)

    monkeypatch.setattr(launch, "_launch", tried)
    assert len(launch._go(plan, top)["failed"]) == missing


@pytest.mark.slow
@needs("hydra_optuna_sweeper")
def test_a_search_among_few_values_ends_well(tmp_path):
    words = ["-m", "hydra/sweeper=tpe", "hydra.sweeper.n_trials=4", "shot=choice(1,2)", *WORDS, "hydra.sweep.dir=top", "--json"]
    result = ended(program(*words, cwd=tmp_path))
    assert (result.status, result.json["failed"]) == (0, [])
    assert len(result.json["runs"]) <= 2


def test_a_changed_configuration_is_not_taken_for_the_same_run(metarun, top):
    config = top / "1_maml-glyphs-3w1s" / "config.yaml"
    config.write_text(config.read_text().replace("iterations: 3", "iterations: 4"))
    result = metarun("resume top --json")
    assert result.status == 1
    (failure,) = result.json["failed"]
    assert failure["run"] == "1_maml-glyphs-3w1s"
    assert "another configuration (trainer.iterations is 4 there, 3 here)" in failure["reason"]


def test_a_run_without_a_score_has_run():
    """Its adaptation diverged, or its score is not measured on development tasks."""
    summary = {"metric": "mse", "val": {"loss": {"mean": 1.0}}, "test": {"mse": {"mean": None}}}
    assert job._results(summary) == "mse test nan"
    assert job._results(summary | {"val": {"mse": {"mean": 0.5}}}) == "mse val 0.5000, test nan"


def test_a_search_space_is_taken_from_conf_and_words_go_before_it(metarun):
    plan = check(["sweep=ways_and_shots", *WORDS])
    assert (plan.total, plan.swept) == (2, {"shot"})  # way=3 is in WORDS
    assert (check(["sweep=seeds", "+algo=maml,protonet", *WORDS]).total) == 10


def test_a_search_follows_the_development_score_in_its_direction():
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    assert check(["sweep=maml_lr"]).direction == "maximize"
    assert check(["sweep=maml_lr", "data=sinusoid", "net=mlp", "way=1"]).direction == "minimize"
    with pytest.raises(UserError, match="cannot rank accuracies and errors"):
        check(["sweep=maml_lr", "data=glyphs,sinusoid", "net=mlp"])


def test_a_sweep_that_is_running_is_left_alone(metarun, top):
    with held(top):
        result = metarun("resume top")
    assert result.status == 2
    assert result.err == ["metarun: another process is at work in top; wait until it has ended, or stop it"]


def wait_for(condition, process, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "ended too early"
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


LONG = [*(word for word in WORDS if not word.startswith("trainer.iterations")), "trainer.iterations=100", "trainer.val_every=5"]


def last(top: Path, n: int) -> dict:
    said = reports(top, f"{n}_maml-glyphs-3w1s")
    return said[-1] if said else {"state": "", "pid": 0}


def checkpoint(top: Path, n: int) -> Path:
    return top / f"{n}_maml-glyphs-3w1s" / "checkpoints" / "last.pt"


def ended(process) -> Outcome:
    out, err = process.communicate(timeout=500)
    return Outcome(process.returncode, out.splitlines(), err.splitlines())


@pytest.mark.slow
@needs("hydra_joblib_launcher")
def test_joblib_runs_jobs_beside_each_other_and_tells_in_one_place(tmp_path):
    words = ["-m", "shot=1,4", *WORDS, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=top", "--json"]
    result = ended(program(*words, cwd=tmp_path))
    assert result.status == 1
    assert [summary["shot"] for summary in result.json["runs"]] == [1]
    assert [failure["run"] for failure in result.json["failed"]] == ["1_maml-glyphs-3w4s"]
    assert told(result, "finished") == ["0_maml-glyphs-3w1s"]
    assert not any("development accuracy" in line for line in result.err)  # that is in the run's own log
    assert "development accuracy" in (tmp_path / "top" / "0_maml-glyphs-3w1s" / "metarun.log").read_text()


@pytest.mark.slow
def test_killed_and_run_again_a_sweep_ends_as_if_nothing_had_happened(metarun, tmp_path):
    words = ["-m", "seed=0,1", *LONG, "trainer.iterations=24", "hydra.sweep.dir=top"]
    with program(*words, cwd=tmp_path) as process:
        wait_for(lambda: checkpoint(tmp_path / "top", 1).is_file(), process)
        process.kill()
        process.communicate()
    first = tmp_path / "top" / "0_maml-glyphs-3w1s" / "summary.json"
    then = first.stat().st_mtime_ns
    again = metarun(*words, "sweep=resume", "--json")
    assert again.status == 0
    assert told(again, "resumed") == ["1_maml-glyphs-3w1s"]
    assert not told(again, "started")
    assert first.stat().st_mtime_ns == then
    assert metarun(*words[:-1], "hydra.sweep.dir=straight").status == 0
    assert results(tmp_path / "top") == results(tmp_path / "straight")


@pytest.mark.slow
@needs("hydra_joblib_launcher")
def test_a_job_that_is_killed_twice_is_given_up_and_the_rest_is_run(tmp_path):
    words = ["-m", "seed=0,1,2", *LONG, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=top", "--json"]
    top = tmp_path / "top"
    with program(*words, cwd=tmp_path) as process:
        wait_for(checkpoint(top, 0).is_file, process)
        os.kill(last(top, 0)["pid"], signal.SIGKILL)
        wait_for(lambda: last(top, 0)["state"] == "resumed", process)
        os.kill(last(top, 0)["pid"], signal.SIGKILL)
        result = ended(process)
    assert result.status == 1
    reasons = {failure["run"]: failure["reason"] for failure in result.json["failed"]}
    assert reasons["0_maml-glyphs-3w1s"] == "its process was killed, twice (out of memory?)"
    assert reasons.keys() <= {"0_maml-glyphs-3w1s", "1_maml-glyphs-3w1s"}  # joblib ends its neighbour as well
    assert 2 in [summary["seed"] for summary in result.json["runs"]]


@pytest.mark.slow
@needs("hydra_submitit_launcher")
def test_a_requeued_job_goes_on_from_where_it_was_told_to_stop(tmp_path):
    words = ["-m", "seed=0,1", *LONG, "hydra/launcher=submitit_local", "hydra.sweep.dir=top", "--json"]
    top = tmp_path / "top"
    with program(*words, cwd=tmp_path) as process:
        wait_for(checkpoint(top, 0).is_file, process)
        os.kill(last(top, 0)["pid"], signal.SIGUSR2)
        result = ended(process)
    assert result.status == 0, result.err
    assert told(result, "resumed") == ["0_maml-glyphs-3w1s"]
    log = (top / "0_maml-glyphs-3w1s" / "metarun.log").read_text()
    assert re.search(r"resuming at iteration \d+ of 100", log)
    straight = ended(program("-m", "seed=0,1", *LONG, "hydra.sweep.dir=straight", cwd=tmp_path))
    assert straight.status == 0
    assert results(top) == results(tmp_path / "straight")


# A cluster of one machine: each task of the array that sbatch gets runs at once, with the variables Slurm would set.
SLURM = {
    "sbatch": """#!/bin/bash
script="${@: -1}"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
cp "$script" submitted
export SLURM_ARRAY_JOB_ID=77 SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_JOB_NODELIST=here
for task in $(seq 0 "$last"); do
  SLURM_ARRAY_TASK_ID=$task SLURM_JOB_ID=$((78 + task)) bash "$script" >> slurm.log 2>&1 &
done
echo "Submitted batch job 77"
""",
    "srun": """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == *=* || $1 == --unbuffered ]] && shift || shift 2; done
exec "$@"
""",
    "sacct": """#!/bin/bash
echo "JobID|State|NodeList"
for task in 0 1; do echo "77_$task|RUNNING|here"; done
""",
}


@pytest.mark.slow
@needs("hydra_submitit_launcher")
def test_slurm_gets_jobs_that_run(tmp_path, metarun):
    for name, text in SLURM.items():
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    words = ["-m", "seed=0,1", *WORDS]
    cluster = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.sweep.dir=top", "--json"]
    result = ended(program(*words, *cluster, cwd=tmp_path, PATH=f"{tmp_path}/bin:{os.environ['PATH']}"))
    assert result.status == 0, result.err
    assert sorted(told(result, "finished")) == ["0_maml-glyphs-3w1s", "1_maml-glyphs-3w1s"]
    submitted = (tmp_path / "submitted").read_text()
    assert all(f"#SBATCH --{line}\n" in submitted for line in ("partition=gpu", "time=240", "cpus-per-task=4", "mem=8GB"))
    assert metarun(*words, "hydra.sweep.dir=straight").status == 0
    assert results(tmp_path / "top") == results(tmp_path / "straight")


@pytest.mark.slow
@needs("hydra_ray_launcher")
def test_ray_runs_the_same_sweep(tmp_path, whole):
    words = [*GRID, "hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2", "hydra.sweep.dir=top"]
    result = ended(program(*words, cwd=tmp_path))
    assert result.status == 0, result.err
    assert results(tmp_path / "top") == results(whole)


@pytest.mark.slow
@needs("hydra_optuna_sweeper")
def test_a_study_goes_on_to_more_trials_and_with_the_one_that_was_cut(tmp_path):
    words = ["-m", "sweep=maml_lr", *LONG, "trainer.iterations=12", "hydra.sweep.dir=top", "--json"]
    top = tmp_path / "top"
    with program(*words, "hydra.sweeper.n_trials=3", cwd=tmp_path) as process:
        wait_for(checkpoint(top, 1).is_file, process)
        process.kill()
        process.communicate()
    again = ended(program(*words, "hydra.sweeper.n_trials=4", "sweep=resume", cwd=tmp_path))
    assert again.status == 0, again.err
    assert told(again, "resumed") == ["1_maml-glyphs-3w1s"]
    assert told(again, "started") == ["3_maml-glyphs-3w1s", "4_maml-glyphs-3w1s"]
    assert len(again.json["runs"]) == 4
    before = results(top)
    more = ended(program(*words, "hydra.sweeper.n_trials=5", "sweep=resume", cwd=tmp_path))
    assert len(more.json["runs"]) == 5
    assert {name: results(top)[name] for name in before} == before
    lines = [line.split("Best value: ")[1] for line in more.err if "Best value" in line]
    assert float(lines[-1]) == max(summary["val"]["accuracy"]["mean"] for summary in more.json["runs"])
