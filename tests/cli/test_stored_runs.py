"""Run folders of earlier versions keep working: tests/stored holds two, made when every algorithm lay in algos/ itself, the outer optimizer
was called ``Outer`` and recordings ``engine.replay``.

    metarun experiment=tutorial net.hidden=4 algo=maml trainer.iterations=8 trainer.val_every=4 …
    metarun experiment=sinusoid algo=maml optim=hypergradient net.sizes=[8] (the same trainer settings)
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import metarun as library
from metarun.config.stored import read_config
from metarun.run import Run

STORED = Path(__file__).resolve().parents[1] / "stored"
KINDS = ["maml", "sinusoid"]


@pytest.fixture
def run(request, tmp_path):
    """A copy of a stored run, in the working folder of ``metarun``."""
    shutil.copytree(STORED / request.param, tmp_path / "run")
    return tmp_path / "run"


def test_they_are_of_an_earlier_version():
    for kind in KINDS:
        text = (STORED / kind / "config.yaml").read_text()
        assert "_target_: metarun.algos.maml.MAML" in text
        assert "_target_: metarun.optim.Outer" in text
        assert "replay: true" in text


@pytest.mark.parametrize("run", KINDS, indirect=True)
def test_eval_finds_the_scores_of_the_run_itself(metarun, run):
    assert metarun("eval", "run").status == 0
    assert np.allclose(np.load(run / "eval" / "0" / "test_scores.npy"), np.load(run / "test_scores.npy"), atol=1e-5)


@pytest.mark.parametrize("run", KINDS, indirect=True)
def test_an_old_key_is_known_by_its_new_name(metarun, run):
    assert metarun("eval", "run", "engine.record=false", "trainer.test_episodes=2").status == 0
    assert json.loads((run / "eval" / "0" / "summary.json").read_text())["test"]["curve"]


@pytest.mark.parametrize("run", KINDS, indirect=True)
def test_resume_goes_on_from_the_checkpoint(metarun, run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"]["iterations"] = 12  # as if it had been cut at 8
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "summary.json").unlink()
    assert metarun("resume", "run").status == 0
    assert "resuming at iteration 8 of 12" in (run / "metarun.log").read_text()
    assert json.loads((run / "summary.json").read_text())["iterations"] == 12


@pytest.mark.parametrize("run", ["maml"], indirect=True)
def test_predict_and_init_from(run):
    model = library.load(run, device="cpu")
    images = torch.rand(10, *model.algorithm.problem.input_shape)
    assert len(model.adapt(images, list("aabbccddee")).predict(images)) == 10
    values = read_config(run)
    warm = Run(values | {"init_from": str(run)}).algorithm
    best = torch.load(run / "checkpoints" / "best.pt", weights_only=True)["algorithm"]
    assert all(torch.equal(weight, best[f"net.{name}"]) for name, weight in warm.net.state_dict().items())


def test_compare_takes_old_and_new_runs_of_one_configuration_together(metarun, tmp_path):
    shutil.copytree(STORED / "maml", tmp_path / "runs" / "old")
    shutil.copytree(STORED / "maml", tmp_path / "runs" / "new")
    new = read_config(tmp_path / "runs" / "new") | {"seed": 1}
    (tmp_path / "runs" / "new" / "config.yaml").write_text(yaml.safe_dump(new))
    summary = json.loads((tmp_path / "runs" / "new" / "summary.json").read_text()) | {"seed": 1}
    (tmp_path / "runs" / "new" / "summary.json").write_text(json.dumps(summary))
    result = metarun("compare", "runs", "--json").json
    assert len(result["groups"]) == 1, "two seeds of one group"
    assert result["runs"] == 2
