"""Whatever a run was cut by, it goes on from what there is and ends as the run that nobody cut; whatever was looked at is counted."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_support import TINY, everything
from helpers import classification, metrics_of

from metarun.__main__ import main
from metarun.drawing import tensorboard_images
from metarun.experiment import train
from metarun.predict.trained import load
from metarun.storage import checkpoint
from metarun.storage.files import DiskFull, replace_file
from metarun.storage.provenance import commit

WORDS = [*TINY, "trainer.iterations=6", "trainer.val_every=2"]
SAME = ("val", "test", "best_step", "iterations", "episodes_sha256", "test_looks")


@pytest.fixture
def uncut(metarun, tmp_path) -> Path:
    assert metarun(*WORDS, "hydra.run.dir=uncut").status == 0
    return tmp_path / "uncut"


@pytest.fixture
def cut(uncut, tmp_path) -> Path:
    """The same run, as a kill at its test would have left it."""
    folder = Path(shutil.copytree(uncut, tmp_path / "cut"))
    for name in ("summary.json", "test_scores.npy"):
        (folder / name).unlink()
    return folder


def assert_same(folder: Path, other: Path) -> None:
    one, two = (json.loads((run / "summary.json").read_text()) for run in (folder, other))
    assert {key: one[key] for key in SAME} == {key: two[key] for key in SAME}
    assert (folder / "test_scores.npy").read_bytes() == (other / "test_scores.npy").read_bytes()
    assert metrics_of(folder) == metrics_of(other)
    for name in ("last", "best"):
        states = [torch.load(run / "checkpoints" / f"{name}.pt", weights_only=True)["algorithm"] for run in (folder, other)]
        assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())


def test_without_last_pt_it_goes_on_from_best_pt(metarun, cut, uncut):
    (cut / "checkpoints" / "last.pt").unlink()
    result = metarun("resume", "cut")
    assert result.status == 0
    assert any("resuming at iteration" in line for line in result.err)
    assert_same(cut, uncut)


def test_without_any_checkpoint_it_starts_again_and_leaves_nothing_behind(metarun, cut, uncut):
    shutil.rmtree(cut / "checkpoints")
    (cut / "checkpoints").mkdir()
    for name in (".metrics.tmp", "checkpoints/.last.pt.123.tmp"):
        (cut / name).write_text("half")
    assert metarun("resume", "cut").status == 0
    assert_same(cut, uncut)
    assert not list(cut.rglob(".*.tmp"))


def test_what_a_new_run_says_of_a_folder_with_a_run_leads_out(metarun, cut):
    shutil.rmtree(cut / "checkpoints")
    assert metarun(*WORDS, "hydra.run.dir=cut").err == [
        "metarun: cut is there already and is not an empty folder; name another with hydra.run.dir=FOLDER, or: metarun resume cut"
    ]
    (cut / "config.yaml").unlink()
    assert metarun(*WORDS, "hydra.run.dir=cut").err[0].endswith("or delete it, as it holds no run")


@pytest.mark.parametrize("torn", [False, True])
def test_metrics_shorter_than_the_checkpoint_says_are_computed_again(metarun, tmp_path, uncut, torn):
    """best.pt is older than what is missing, so nothing is."""
    best = torch.load(uncut / "checkpoints" / "best.pt", weights_only=True)
    assert best["progress"]["iteration"] == best["progress"]["best_step"] < 6
    cut = Path(shutil.copytree(uncut, tmp_path / "cut"))
    (cut / "summary.json").unlink()
    path, lines = cut / "metrics.jsonl", (cut / "metrics.jsonl").read_bytes()
    path.write_bytes(lines[: best["progress"]["metrics_bytes"] + 10 * torn])
    result = metarun("resume", "cut")
    assert any("metrics.jsonl was cut short" in line and "computed again from iteration" in line for line in result.err)
    assert_same(cut, uncut)


def test_metrics_that_no_checkpoint_is_older_than_are_said_to_be_lost(metarun, cut):
    (cut / "metrics.jsonl").write_bytes(b'{"step": 1, "split": "train"}\n{"step": 2, "spl')
    result = metarun("resume", "cut")
    assert result.status == 0
    assert any("lines up to iteration 6 are lost; the weights are not" in line for line in result.err)
    assert metrics_of(cut) == [{"step": 1, "split": "train"}]


def test_the_summary_comes_last(tmp_path, monkeypatch):
    """It says that the run is finished, so a run killed while it draws draws again."""

    def killed(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(tensorboard_images, "add", killed)
    with pytest.raises(SystemExit):
        train(classification("protonet", "logger.tensorboard=true", "logger.pictures=true"), tmp_path)
    assert (tmp_path / "test_scores.npy").exists()
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.slow
def test_a_finished_run_goes_further(metarun, uncut):
    before = json.loads((uncut / "summary.json").read_text())
    assert (before["iterations"], before["test_looks"]) == (6, 1)
    refused = metarun("resume", "uncut")
    assert (refused.status, len(refused.err)) == (2, 1)
    assert "train it further with: metarun resume uncut trainer.iterations=12" in refused.err[0]
    assert metarun("resume", "uncut", "trainer.iterations=6").status == 2
    assert "resume takes no 'way=4'" in metarun("resume", "uncut", "way=4").err[0]

    result = metarun("resume", "uncut", "trainer.iterations=10")
    assert result.status == 0
    assert any("trainer.iterations=10 instead of 6: learning rate and annealing follow the new course" in line for line in result.err)
    after = json.loads((uncut / "summary.json").read_text())
    assert (after["iterations"], after["test_looks"]) == (10, 2)
    assert json.loads((uncut / "eval" / "0" / "summary.json").read_text()) == before
    assert [line["step"] for line in metrics_of(uncut) if line["split"] == "train"] == list(range(1, 11))
    assert "iterations: 10" in (uncut / "config.yaml").read_text()


@pytest.mark.slow
def test_a_longer_run_is_the_run_that_was_long_from_the_start(metarun, tmp_path):
    """With a constant learning rate; only the test split was looked at twice."""
    constant = [*WORDS, "optim.schedule=constant"]
    assert metarun(*constant, "hydra.run.dir=short").status == 0
    assert metarun("resume", "short", "trainer.iterations=10").status == 0
    assert metarun(*constant, "trainer.iterations=10", "hydra.run.dir=long").status == 0
    one, two = (json.loads((Path(run) / "summary.json").read_text()) for run in ("short", "long"))
    assert all(one[key] == two[key] for key in SAME if key != "test_looks")


def test_looks_at_the_test_split_are_counted_and_development_episodes_are_no_look(metarun, run_folder):
    before = everything(run_folder)
    dev = metarun("eval", "run", "--split", "val", "trainer.val_episodes=7", "--json").json
    assert (dev["test"], dev["test_looks"], dev["val"]["accuracy"]["n"]) == (None, 1, 7)
    assert (run_folder / "eval" / "0" / "val_scores.npy").exists()
    assert not (run_folder / "eval" / "0" / "test_scores.npy").exists()
    own = metarun("eval", "run", "--split", "val", "--json").json
    assert own["val"]["accuracy"] == json.loads((run_folder / "summary.json").read_text())["val"]["accuracy"]
    looked = metarun("eval", "run", "shot=2")
    assert any("look 2 at the test split with this run" in line for line in looked.err)
    assert metarun("eval", "run", "--json").json["test_looks"] == 3
    assert {name: content for name, content in everything(run_folder).items() if not name.startswith("eval")} == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_line_and_the_old_file_stays(tmp_path, number):
    path = tmp_path / "last.pt"
    path.write_text("old")

    def full(handle: object) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(DiskFull, match=rf"disk full while writing {path}; make room"):
        replace_file(path, full)
    assert everything(tmp_path) == {"last.pt": b"old"}


@pytest.mark.parametrize("tensorboard", [pytest.param("false", marks=pytest.mark.slow), "true"])
def test_a_run_on_a_full_disk_says_so_and_goes_on_when_there_is_room(metarun, tmp_path, uncut, tensorboard):
    size = (uncut / "checkpoints" / "last.pt").stat().st_size
    words = [*WORDS, f"logger.tensorboard={tensorboard}", "hydra.run.dir=cut"]
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size // 2}, resource.RLIM_INFINITY))"
    code = f"{limit}; import sys; from metarun.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("metarun: ")]
    assert len(said) == 1
    assert said[0].startswith("metarun: disk full while writing ")
    assert said[0].endswith("; make room, no checkpoint yet; go on with: metarun resume cut")
    assert "Traceback" not in done.stderr
    assert metarun("resume", "cut").status == 0
    assert_same(tmp_path / "cut", uncut)


def test_a_read_only_file_system_is_told_in_one_line(metarun, tmp_path, monkeypatch, run_folder):
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    for words, mend in ((("eval", "run"), "copy run to where you may write"), ((*WORDS, "hydra.run.dir=new"), "hydra.run.dir=FOLDER")):
        result = metarun(*words)
        assert (result.status, len(result.err)) == (2, 1)
        assert "cannot be made (Read-only file system" in result.err[0]
        assert mend in result.err[0]


def test_a_run_says_what_it_is_and_keeps_who_started_it(metarun, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["metarun", "way=3", "name=a b"])
    result = metarun(*WORDS, "hydra.run.dir=run")
    assert any("maml on cpu, data glyphs, run folder run" in line for line in result.err)
    log = (tmp_path / "run" / "metarun.log").read_text()
    assert "metarun way=3 'name=a b'" in log
    assert f", {commit() or 'no checkout'}: " in log


@pytest.mark.slow
def test_a_tilde_is_the_home_folder(metarun, tmp_path, monkeypatch, run_folder):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    shutil.move(run_folder, tmp_path / "home" / "run")
    assert metarun(*WORDS, "hydra.run.dir=~/new", "init_from=~/run").status == 0
    assert (tmp_path / "home" / "new" / "summary.json").is_file()
    assert metarun("-m", "seed=0,1", *WORDS, "hydra.sweep.dir=~/sweep").status == 0
    assert len(list((tmp_path / "home" / "sweep").glob("*/summary.json"))) == 2
    assert metarun("show", "home/run", "--out", "~/x.png").status == 0
    assert (tmp_path / "home" / "x.png").is_file()
    for data in ("folder", "csv", "omniglot"):
        result = metarun("check", f"data={data}", "data.root=~/nowhere")
        assert (result.status, len(result.err)) == (2, 1)
        assert f"data.root={tmp_path}/home/nowhere " in result.err[0]
    assert load("~/run").algo == "maml"
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    ("word", "status", "pattern"),
    [
        ("way=1000000000", 2, "way=1000000000 is out of range: choose way <= 100000"),
        ("optim.lr=1e38", 2, "optim.lr=1e.38 is not possible: it should be a number up to 1e30"),
        ("optim.lr=1e20", 1, "not a number any more|not finite numbers"),
        ("seed=1" + "0" * 5000, 2, "seed has more digits"),
        ("logger.every=18446744073709551616", 2, "logger.every=18446744073709551616 is not possible: it should be a number below 2.63"),
        ("trainer.meta_batch=100000000000", 1, "out of memory"),
        ("data.train_classes=100000000000000", 1, "out of memory"),
    ],
)
def test_huge_numbers_end_in_one_line(metarun, word, status, pattern):
    given = word.partition("=")[0]
    result = metarun(*[w for w in TINY if w.partition("=")[0] != given], word)
    said = [line for line in result.err if line.startswith("metarun: ")]
    assert (result.status, len(said)) == (status, 1)
    assert re.search(pattern, said[0])


def test_on_windows_one_line_says_where_it_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "metarun: it runs on Linux and macOS; on Windows install it in WSL (wsl --install)\n"


def test_a_diverging_learner_has_no_score_and_is_never_the_best_so_far(metarun, tmp_path):
    """Trained without inner steps, and then tested with steps that are far too long."""
    result = metarun(*WORDS, "algo.inner_lr=1e25", "algo.inner_steps=1", "trainer.iterations=0", "hydra.run.dir=run", "--json")
    assert result.status == 0
    assert not any("best so far" in line for line in result.err)
    assert any("development accuracy nan ± nan: adaptation diverges in 4 of 4 episodes" in line for line in result.err)
    assert (result.json["val"]["accuracy"]["mean"], result.json["test"]["accuracy"]["mean"]) == (None, None)


def test_weights_that_became_none_are_not_saved(metarun, tmp_path):
    """The loss and the gradient of the step were finite, but not what it led to."""
    result = metarun(*WORDS, "trainer.val_every=1", "optim=sgd", "optim.lr=1e30", "hydra.run.dir=run")
    assert result.status == 1
    for path in checkpoint.present(tmp_path / "run"):
        assert not checkpoint.not_finite(checkpoint.load(path))
