"""Every command does what the contract says, and with --json ends in one JSON object."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from cli_support import TINY, everything
from PIL import Image

from metarun.cli.commands import COMMANDS, module_of
from metarun.config import options
from metarun.storage.run_folder import alternatives, new_folder


def test_bare_run_keeps_the_contract(metarun):
    result = metarun(*TINY, "logger.tensorboard=true", "--json")
    assert result.status == 0
    (folder,) = Path("outputs").glob("*/*")
    assert re.fullmatch(r"outputs/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d_maml-glyphs-3w1s", str(folder))
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", "metrics.jsonl", "summary.json", "test_scores.npy", "checkpoints", "tb", "metarun.log"
    }  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())
    assert result.json == summary
    scores = np.load(folder / "test_scores.npy")
    assert scores.shape == (4,)
    assert summary["test"]["accuracy"]["mean"] == pytest.approx(scores.mean())
    assert summary["test"]["accuracy"]["ci95"] == pytest.approx(1.96 * scores.std() / 2)
    assert [point["step"] for point in summary["test"]["curve"]] == [0, 1, 2, 3]
    table = "\n".join(result.out)
    assert f"{scores.mean():.4f} ± {summary['test']['accuracy']['ci95']:.4f}" in table
    assert "over episodes" in table
    assert "norm batch (transductive)" in table
    assert f"run folder   {folder}" in table
    assert "tensorboard --logdir outputs\n" in table
    assert "development accuracy" in (folder / "metarun.log").read_text()


def test_two_runs_within_a_second_get_two_folders(tmp_path):
    wanted = tmp_path / "outputs" / "run"
    with new_folder(alternatives(wanted)) as first, new_folder(alternatives(wanted)) as second:
        assert (first.name, second.name) == ("run", "run_2")


def test_same_seed_same_scores(metarun, finished):
    assert metarun(*TINY, "hydra.run.dir=again").status == 0
    assert (Path("again") / "test_scores.npy").read_bytes() == (finished / "test_scores.npy").read_bytes()


def test_eval_leaves_the_run_alone(metarun, run_folder):
    before = everything(run_folder)
    first, second = (
        metarun(f"eval {run_folder} --json"),
        metarun(f"eval {run_folder} shot=2 trainer.test_episodes=6 --checkpoint last --json"),
    )
    assert (first.status, second.status) == (0, 0)
    trained = json.loads((run_folder / "summary.json").read_text())
    assert first.json["test"] == trained["test"]
    assert first.json["episodes_sha256"] == trained["episodes_sha256"]
    assert second.json["shot"] == 2
    assert not any(line.startswith(" val ") for line in second.out)  # of another task, long ago
    assert second.json["test"]["accuracy"]["n"] == 6
    # What an evaluation did not measure, it does not say: development tasks and the speed of training are those of the run.
    assert (second.json["val"], second.json["tasks_per_s"]) == (None, None)
    own, again = metarun("compare", str(run_folder), str(run_folder / "eval" / "1"), "--sort", "shot", "--json").json["groups"]
    assert (own["shot"], own["val_mean"]) == (1, trained["val"]["accuracy"]["mean"])
    assert (again["shot"], again["val_mean"], again["test_mean"]) == (2, None, second.json["test"]["accuracy"]["mean"])
    assert json.loads((run_folder / "eval" / "1" / "summary.json").read_text()) == second.json
    after = everything(run_folder)
    assert {path for path in after if path not in before} >= {"eval/0/summary.json", "eval/0/test_scores.npy", "eval/1/summary.json"}
    assert {path: after[path] for path in before} == before


def test_a_folder_may_be_called_like_an_option(metarun, run_folder):
    """As a sweep calls its own."""
    folder = run_folder.parent / "optim.lr=0.1"
    shutil.copytree(run_folder, folder)
    assert metarun("eval", str(folder), "trainer.test_episodes=2").status == 0
    assert metarun("show", str(folder), "--out", str(folder / "shown.png")).status == 0


def test_check_trains_and_writes_nothing(metarun, tmp_path):
    result = metarun("check", *TINY, "--json")
    assert result.status == 0
    assert result.json["train"].startswith("6 classes, 30 images of 1x28x28; 3-way 1-shot")
    assert "all is well" in result.out
    assert not everything(tmp_path)


def test_episodes_that_all_hold_the_same_classes_are_told(metarun):
    """Their interval says nothing of other classes: of the 3 there are, every episode of 3 ways has all."""
    words = [*TINY, "data.val_classes=3"]
    report = metarun("check", *words, "--json").json
    assert [split for split in ("train", "val", "test") if "the same classes in every episode" in report[split]] == ["val"]
    result = metarun(*words, "--json")
    assert result.json["same_classes"] == ["val"]
    assert sum("the same 3 classes in every episode" in line for line in result.out) == 1
    assert metarun(*TINY, "--json").json["same_classes"] == []


def test_list(metarun):
    result = metarun("list --json")
    assert result.json == options.descriptions()
    assert all(text for options in result.json.values() for text in options.values())
    assert metarun("list algo").out[0] == "algo="
    assert not any("data=" in line for line in metarun("list algo").out)


def test_list_shows_a_folder_of_options_by_its_name(metarun):
    names = [line.split()[0] for line in metarun("list experiment").out[1:]]
    assert "quickstart" in names
    assert "paper/" in names
    assert not any(re.match("paper/.", name) for name in names)
    names = [line.split()[0] for line in metarun("list experiment/paper/").out[1:]]
    assert "paper/omniglot_protonet" in names
    assert "paper/full/" in names
    assert not any(re.match("paper/full/.", name) for name in names)
    assert "paper/full/omniglot_maml" in [line.split()[0] for line in metarun("list experiment/paper/full").out[1:]]
    refused = metarun("list experiment/papers")
    assert (refused.status, refused.err) == (2, ["metarun: experiment has no options in a folder 'papers'"])


@pytest.mark.parametrize(
    "words",
    [
        TINY,
        [*TINY, "shot=3", "--split=test", "--index", "7"],
        ["data=sinusoid", "net=mlp", "way=1", "shot=4"],
        [*TINY, "--what=augmentation", "augment=photos", "shot=2"],
    ],
)
def test_show_draws_an_episode(metarun, words):
    result = metarun("show", *words, "--json")
    assert result.status == 0
    path = Path(result.json["picture"])
    assert result.out[-2] == str(path)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width > 300
        assert len(picture.convert("L").getcolors()) > 10


def test_show_to_a_file_of_choice(metarun):
    assert metarun("show", *TINY, "--out", "deep/down/picture.png").status == 0
    assert Path("deep/down/picture.png").is_file()
    assert not Path("outputs").exists()


def test_cfg_prints_the_composed_configuration(metarun, tmp_path):
    result = metarun("--cfg job algo=protonet way=7")
    assert result.status == 0
    assert "name: protonet" in "\n".join(result.out)
    assert "way: 7" in result.out
    assert not everything(tmp_path)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_sweep_with_its_flag_anywhere(metarun, place):
    words = ["algo=maml,protonet", "seed=1"]
    words.insert(place, "-m")
    result = metarun(*words, *TINY, "--json")
    assert result.status == 0
    assert [summary["algo"] for summary in result.json["runs"]] == ["maml", "protonet"]
    folder = Path(result.json["folder"])
    assert re.fullmatch(r"outputs/multirun/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d", str(folder))
    assert {path.parent.name for path in folder.glob("*/summary.json")} == {"0_maml-glyphs-3w1s", "1_protonet-glyphs-3w1s"}


def test_version_and_help(metarun):
    assert re.fullmatch(r"metarun \d+\.\d+\.\d+", metarun("--version").out[0])
    page = "\n".join(metarun("--help").out)
    for command in ("check", "show", "list", "eval", "resume"):
        assert f"metarun {command} " in page
    for group, names in options.groups().items():
        shown = dict.fromkeys(name[: name.find("/") + 1] or name for name in names)  # a folder of options as one
        assert re.search(rf"\b{group} +{' '.join(shown)}\n", page)
    assert '"$(metarun -sc install=bash)"' in page


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_of_its_own(metarun, command):
    for words in (f"{command} --help", f"--json {command} -h"):
        result = metarun(words)
        assert result.status == 0
        assert result.out[0].startswith(f"usage: metarun {command} ")
        assert any("--json" in line for line in result.out)
        for name in import_module(module_of(command)).parser().names():
            assert name == "--version" or any(name in line for line in result.out)


def test_options_and_words_stand_in_any_order(metarun, run_folder):
    lines = [f"eval {run_folder} shot=2 --checkpoint last --json", f"--json eval --checkpoint=last {run_folder} shot=2"]
    first, second = (metarun(line) for line in lines)
    assert (first.status, second.status) == (0, 0)
    assert first.json["test"] == second.json["test"]
    assert first.json["shot"] == 2


def test_show_of_a_run_draws_what_its_learner_answers(metarun, run_folder):
    before = everything(run_folder)
    result = metarun(f"show {run_folder} shot=2 --index 3 --json")
    assert result.json == {"picture": str(run_folder / "show" / "val-3.png"), "answered": True}
    plain = metarun(f"show {run_folder} --what classes --json")
    assert plain.json == {"picture": str(run_folder / "show" / "val-classes-0.png"), "answered": False}
    augmented = metarun(f"show {run_folder} --what augmentation augment=characters --json")
    assert augmented.json == {"picture": str(run_folder / "show" / "train-augmentation-0.png"), "answered": False}
    after = everything(run_folder)
    assert {path: after[path] for path in before} == before
    shutil.rmtree(run_folder / "checkpoints")
    assert metarun(f"show {run_folder} --split test --json").json["answered"] is False


def test_every_page_of_help_needs_no_torch():
    code = """
import sys
from metarun.cli.main import main
for words in [*([command, "--help"] for command in %s), ["evla"], ["eval"], ["show", "--index", "x"]]:
    main(words)
sys.exit(' '.join({'torch', 'matplotlib', 'pydantic'} & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code % repr(COMMANDS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [["--help"], ["list"], ["--version"], ["-sc", "query=bash"], ["--cfg", "job"], ["wayy=5"]])
def test_answers_that_need_no_torch_do_not_import_it(words):
    code = "import sys; from metarun.cli.main import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "COMP_LINE": "metarun algo=matc"}
    assert subprocess.run([sys.executable, "-c", code, *words], env=environment, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("metarun algo=matc", "algo=matching"),
        ("metarun -m data=omniglot_o", "data=omniglot_oneshot"),
        ("metarun experiment=paper/cifar_fs_ma", "experiment=paper/cifar_fs_maml"),
        ("metarun trainer.iter", "trainer.iterations="),
        ("metarun ev", "eval"),
        ("metarun --json ev", "eval"),
        ("metarun algo=maml ev", ""),
        ("metarun --cf", "--cfg"),
        ("metarun --cfg a", "all"),
        ("metarun check da", "data. data="),
        ("metarun check algo=matc", "algo=matching"),
        ("metarun check --h", "--help"),
        ("metarun show --split v", "val"),
        ("metarun show --out ", ""),
        ("metarun eval data", ""),
        ("metarun eval outputs/run --checkpoint=last data=omniglot_o", "data=omniglot_oneshot"),
        ("metarun resume outputs/run ", ""),
        ("metarun list al", "algo"),
        ("metarun check algo=nothing wa", ""),
        ("metarun check way=[ wa", ""),
        ("metarun show --wat wa", "way="),
        ("metarun show wa", "way="),
        ("metarun show outputs/run wa", "way="),
    ],
)
def test_completion_query(metarun, monkeypatch, line, expected):
    monkeypatch.setenv("COMP_LINE", line)
    result = metarun("-sc query=bash")
    assert result.out == ([expected] if expected else [])
    assert (result.err, result.status) == ([], 0)
    assert metarun("-sc query=fish").out == expected.split()


def test_dashes_offer_every_option(metarun, monkeypatch):
    monkeypatch.setenv("COMP_LINE", "metarun classify --")
    (offered,) = metarun("-sc query=bash").out
    assert {"--support", "--query", "--reject", "--out", "--with", "--json", "--help"} <= set(offered.split())


def test_a_reader_that_has_enough_is_not_an_error():
    """As in ``metarun list | head -1``, with a reader that is gone before the first word."""
    with subprocess.Popen([sys.executable, "-m", "metarun", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


def test_completion_in_a_real_bash(tmp_path):
    """As bash does it: the installed rule calls whatever `metarun` is on the path."""
    executable = tmp_path / "metarun"
    executable.write_text(f'#!/bin/sh\nexec {sys.executable} -m metarun "$@"\n')
    executable.chmod(0o755)
    script = """
        eval "$(metarun -sc install=bash)"
        complete -p metarun
        COMP_LINE="metarun algo=matc"; COMP_WORDS=(metarun algo=matc); COMP_CWORD=1; COMP_POINT=17
        hydra_bash_completion
        echo "${COMPREPLY[@]}"
        COMP_LINE="metarun check trainer.iter"; COMP_WORDS=(metarun check trainer.iter); COMP_CWORD=2; COMP_POINT=26
        hydra_bash_completion
        echo "${COMPREPLY[@]}"
    """
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    found = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert found[0].endswith("-F hydra_bash_completion metarun")
    assert found[1:] == ["algo=matching", "trainer.iterations="]
