"""What is taken from somebody else's sweep.json, and what has to be given again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metarun.errors import UserError
from metarun.sweeps import stored

TAKEN = [
    "seed=0,1", "algo=maml,protonet", "optim.lr=tag(log,interval(1e-4,1e-2))", "+sweep=seeds", "name=x-${seed}",
    "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra/sweeper=tpe", "hydra.sweeper.n_trials=5", "hydra.launcher.partition=gpu",
    "+hydra.launcher.ray.init.num_cpus=2",
]  # fmt: skip
REFUSED = [
    "+hydra.callbacks.x._target_=joblib.load", "+hydra.callbacks.x.filename=x.pkl", "hydra.output_subdir=/any", "hydra={a:1}",
    "hydra.sweep.subdir=../../up", "hydra.searchpath=[file:///x]", "hydra.launcher.setup=[reboot]", "~hydra.sweep", "hydra/job_logging=x",
    "hydra.launcher.partition='a\nreboot'", "hydra.launcher._target_=os.system", "hydra.sweeper.params={+hydra.x:1}", "algo@hydra.x=maml",
    "hydra.launcher.ray.init.address=evil", "hydra/launcher=ray_aws", "name=${oc.env:HOME}", "name=${${name}:HOME}", "hydra.run.dir=/x",
    "hydra.sweeper.custom_search_space=os.system", "hydra.sweeper.storage=sqlite:////x", "++hydra.job_logging.x=1",
]  # fmt: skip


def sweep(folder: Path, *words: str) -> Path:
    (folder / "sweep.json").write_text(json.dumps({"words": words, "started": 1.0}))
    return folder


def test_a_sweep_of_ones_own_goes_on_by_itself(tmp_path: Path) -> None:
    assert stored.words(sweep(tmp_path, *TAKEN), []) == TAKEN


@pytest.mark.parametrize("word", REFUSED)
def test_whatever_could_run_code_or_write_elsewhere_is_refused_unless_given_again(tmp_path: Path, word: str) -> None:
    folder = sweep(tmp_path, "seed=0,1", word)
    with pytest.raises(UserError, match="is not taken from a file; if it is yours, give it again: metarun resume") as caught:
        stored.words(folder, [])
    assert str(caught.value).isprintable()
    assert stored.words(folder, [word]) == ["seed=0,1", word]


def test_where_it_runs_may_be_said_anew_and_what_it_is_may_not(tmp_path: Path) -> None:
    folder = sweep(tmp_path, "seed=0,1", "hydra/launcher=joblib")
    manner = ["hydra/launcher=slurm", "hydra.launcher.setup=[x]"]
    assert stored.words(folder, manner) == ["seed=0,1", *manner]
    with pytest.raises(UserError, match="seed=0,2 would make it another sweep"):
        stored.words(folder, ["seed=0,2"])


@pytest.mark.parametrize("text", ["[]", "{}", '{"words": 5, "started": 1}', '{"words": [], "started": "x"}', "[" * 100_000])
def test_a_damaged_record_is_told_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UserError, match=r"sweep\.json cannot be read"):
        stored.words(tmp_path, [])
