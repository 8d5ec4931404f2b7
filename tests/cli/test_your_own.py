"""Code and options from outside the package: docs/your-own.md keeps its promises, stored runs never bring code, mistakes are one line."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import assert_one_line, everything
from PIL import Image

import metarun as package
from metarun.cli import main

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = (CHECKOUT / "docs" / "your-own.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`(mine/\S+)`:\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
BLOCKS = re.findall(r"^<!-- (commands|program) -->\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "commands" for line in text.splitlines()]
(PROGRAM,) = [text for kind, text in BLOCKS if kind == "program"]
SHORT = ["trainer.iterations=3", "trainer.val_every=3", "trainer.val_episodes=3", "trainer.test_episodes=3", "trainer.meta_batch=2"]
FEW = ["way=3", "query=2", "device=cpu", "data.train_classes=6", "data.val_classes=4", "data.test_classes=4", "data.drawers=5"]


@pytest.fixture(autouse=True)
def forgotten(monkeypatch) -> Iterator[None]:
    """What a test imports from its own folder is not there for the next."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "lab"]:
        del sys.modules[name]


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
    return folder


@pytest.fixture
def mine(tmp_path) -> Path:
    """The folder that the page prints."""
    return write(tmp_path, FILES) / "mine"


def shortened(line: str) -> list[str]:
    words = shlex.split(line)[1:]
    trains = "experiment=stripes" in words and not {"check", "show", "list"} & set(words)
    return [*words, *SHORT] if trains else words


def test_the_page_prints_a_method_a_net_a_data_set_and_an_experiment():
    assert {Path(name).parts[1:3] for name in FILES if "conf" in name} == {
        ("conf", group) for group in ("algo", "net", "data", "experiment")
    }
    assert len(COMMANDS) == 8


@pytest.mark.slow
def test_every_command_of_the_page_works(metarun, mine):
    for line in COMMANDS:
        result = metarun(*shortened(line))
        assert result.status == 0, (line, result.err)
        if "list" in line:
            assert any(re.match(r"  cosine +Cosine classifier", text) for text in result.out)
    with Image.open("episode.png") as picture:
        assert picture.width > 300
    stored = Path("runs/cosine/config.yaml").read_text()
    assert "lab.cosine.Cosine" in stored
    assert "mine" not in stored
    assert json.loads(Path("runs/cosine/eval/0/summary.json").read_text())["shot"] == 5
    assert {path.parent.name.partition("_")[2] for path in Path("runs/both").glob("*/summary.json")} == {
        "cosine-stripes-5w1s", "protonet-stripes-5w1s"
    }  # fmt: skip


@pytest.mark.slow
def test_the_program_of_the_page_works(mine):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("=50", "=3")], cwd=mine.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = map(float, done.stdout.split())
    summary = json.loads((mine.parent / "runs/from_python/summary.json").read_text())
    assert (first, summary["algo"], summary["iterations"]) == (summary["test"]["accuracy"]["mean"], "cosine", 3)
    assert second == json.loads((mine.parent / "runs/from_python/eval/0/summary.json").read_text())["test"]["accuracy"]["mean"]


def test_the_examples_keep_the_style(mine):
    for words in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *words, "--config", str(CHECKOUT / "pyproject.toml"), str(mine)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_a_run_made_from_python_is_that_of_the_command_line(metarun, mine):
    words = ["experiment=stripes", *SHORT]
    assert metarun("--with", "mine", *words, "hydra.run.dir=by_line").status == 0
    with package.including("mine"):
        by_words = package.train(" ".join(words), "by_words")
        by_values = package.train(package.compose(*words), "by_values")
        again = package.evaluate("by_words", ["shot=2"], "last")
    assert by_words["test"] == by_values["test"] == json.loads(Path("by_line/summary.json").read_text())["test"]
    assert (again["shot"], again["test"]["accuracy"]["n"]) == (2, 3)


@pytest.mark.slow
def test_a_sweep_in_other_processes_knows_the_folder(metarun, mine):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = ["-m", "experiment=stripes", "seed=0,1", *SHORT, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=sweep"]
    result = metarun(*words, "--with=mine", "--json")
    assert result.status == 0, result.err
    assert [summary["algo"] for summary in result.json["runs"]] == ["cosine", "cosine"]
    assert "mine" not in Path("sweep/sweep.json").read_text()


def test_a_stored_run_brings_no_code(metarun, mine, monkeypatch):
    assert metarun("experiment=stripes", "--with", "mine", *SHORT, "hydra.run.dir=run").status == 0
    before = everything(Path("run"))
    for words in ("eval run", "predict run --support mine --query mine", "show run"):
        assert_one_line(metarun(words), 2, r"data|algo\._target_=lab\.\w+\.\w+ is refused: only classes below metarun.* --with FOLDER")
    with pytest.raises(package.errors.UserError, match=r"_target_=lab\.cosine\.Cosine is refused"):
        package.load("run")
    assert everything(Path("run")) == before
    monkeypatch.setenv("METARUN_WITH", "mine")
    assert metarun("eval run").status == 0
    (Path("run") / "summary.json").unlink()
    assert metarun("resume run").status == 0
    with package.including("mine"):
        assert package.load("run").algo == "cosine"


def test_help_completion_and_the_nearest_name_know_the_options(metarun, mine, monkeypatch):
    monkeypatch.setenv("METARUN_WITH", str(mine))
    assert any(re.search(r"algo .* cosine ", line) for line in metarun("--help").out)
    assert_one_line(metarun("algo=cosin"), 2, "algo=cosin does not exist; did you mean 'cosine'")
    assert "name: stripes" in "\n".join(metarun("--cfg job experiment=stripes").out)
    monkeypatch.setenv("COMP_LINE", "metarun check experiment=str")
    assert metarun("-sc query=bash").out == ["experiment=stripes"]
    monkeypatch.delenv("METARUN_WITH")
    monkeypatch.setenv("COMP_LINE", "metarun --with mine check algo=cos")
    assert metarun("-sc query=bash").out == ["algo=cosine"]
    assert "METARUN_WITH" not in os.environ


def test_a_folder_of_yaml_alone(metarun, tmp_path):
    write(tmp_path, {"recipes/experiment/short.yaml": "# @package _global_\n# One step.\ntrainer:\n  iterations: 1\n"})
    assert any("short " in line and "One step." in line for line in metarun("list --config-dir recipes experiment").out)
    assert "  iterations: 1" in metarun("--config-dir", "recipes", "--cfg", "job", "experiment=short").out
    assert "  iterations: 1" in metarun("--cfg", "job", "experiment=short", f"hydra.searchpath=[{tmp_path}/recipes]").out
    write(tmp_path, {"recipes/algo/evil.yaml": "# Evil.\n_target_: evil.Evil\nname: evil\n", "recipes/evil.py": "raise SystemExit(3)\n"})
    (tmp_path / "recipes" / "evil.py").rename(tmp_path / "evil.py")
    assert_one_line(metarun("check --config-dir recipes algo=evil"), 2, "algo._target_=evil.Evil is refused")


@pytest.mark.slow
def test_an_installed_package_offers_its_options(mine):
    """Its metadata lie beside it on the path, as an installer would have put them."""
    site = mine.parent
    write(site, {"mypackage/__init__.py": "", "mypackage-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: mypackage\nVersion: 1\n",
                 "mypackage-1.dist-info/entry_points.txt": "[metarun]\nmypackage = mypackage\n"})  # fmt: skip
    for name in ("cosine.py",):
        write(site, {f"mypackage/{name}": (mine / "lab" / name).read_text()})
    write(site, {"mypackage/conf/algo/cosine.yaml": (mine / "conf/algo/cosine.yaml").read_text().replace("lab.", "mypackage.")})
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), *sys.path])}
    for words in ("list algo", "check algo=cosine net.hidden=4 way=2 query=1"):
        done = subprocess.run([sys.executable, "-m", "metarun", *words.split()], cwd="/", env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "cosine" in done.stdout


METHOD = """
from torch import Tensor
from metarun.algorithm import Algorithm
from metarun.data.base import Dataset
from metarun.algos.metric.protonet import ProtoNet

class Lacking(Algorithm):
    def begin(self, context):
        return ()

class Whole(Lacking):
    def predict(self, state, x):
        return x

class Untyped(Whole):
    def __init__(self, net, problem, *, size):
        super().__init__(net, problem)

class Failing(Whole):
    def begin(self, context):
        return context.support.x[len(context.support.y) + 3]

class Empty(Dataset):
    def __init__(self, seed):
        self.splits = {}
    def episodes(self, split, spec, seed, device="cpu"):
        return None

class Careless(Whole):
    def __init__(self, net, problem):
        self.net = net
"""
NET = """
import torch
from torch import nn
from metarun.nets.base import Net

class Norms(nn.Module):
    def __init__(self, norm="RMSNorm", **settings):
        super().__init__()
        self.norm = getattr(nn, norm)(28, **settings)
    def forward(self, x):
        return self.norm(x.flatten(1)[:, :28])

class Dropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)
    def forward(self, x):
        return self.drop(x.flatten(1))

class Maps(nn.Module):
    def forward(self, x):
        return x

class Wide(nn.Module):
    def forward(self, x):
        return nn.functional.linear(x.flatten(1), torch.ones(3, 5))

class Looking(nn.Module):
    def forward(self, x):
        return x.flatten(1) * 2 if x.sum() > 1 else x.flatten(1)

class Silent(Net):
    def __init__(self, input_shape):
        super().__init__()
    def layers(self, x, n_support):
        return x.flatten(1)

class Boastful(Silent):
    def __init__(self, input_shape):
        super().__init__(input_shape)
        self.features, self.map_shape, self.norm = 3, (3, 1, 1), "none"

class Native(Boastful):
    def __init__(self, input_shape):
        super().__init__(input_shape)
        self.batch = nn.BatchNorm1d(3)

class Constructed(Silent):
    def __init__(self, input_shape):
        super().__init__(input_shape)
        self.width = input_shape["channels"]
"""
BAD = [
    ("--with nothing list", "--with nothing does not exist"),
    ("--with mne list", "--with mne does not exist; did you mean 'mine'"),
    ("--with mine/lab/bad.py list", "--with mine/lab/bad.py is not a folder"),
    ("--with empty list", "--with empty has neither a conf/ folder nor Python files"),
    ("--with", "--with takes a value"),
    ("--config-dir nothing list", "--config-dir nothing does not exist"),
    ("--with mine --with twice list", r"twice/conf/algo/mymethod.yaml: mine has algo=mymethod already; give the file another name"),
    ("--with taken list", "taken/conf/algo/maml.yaml: metarun has algo=maml already"),
    ("--with astray list", "astray/conf/alog/x.yaml is in no group of options; did you mean 'algo'"),
]
# After `metarun check --with mine`.
OWN = [
    ("algo._target_=lab.broken.Mine", r"cannot be imported: \S+/broken.py, line 2: ModuleNotFoundError: .*nothing_such"),
    ("algo._target_=lab.unreadable.Mine", r"cannot be imported: \S+/unreadable.py, line 1: SyntaxError"),
    ("algo._target_=lab.leaving.Mine", r"cannot be imported: \S+/leaving.py, line 1: SystemExit: 3"),
    ("algo._target_=lab.nowhere.Mine", "does not exist: there is no module lab.nowhere below"),
    ("algo._target_=lab.bad.Lakcing", "bad.py has no Lakcing; did you mean 'Lacking'"),
    ("algo._target_=lab.bad.Tensor", "is refused: it is no Algorithm"),
    ("algo._target_=lab.nets.Maps", "is refused: it is no Algorithm"),
    ("algo._target_=lab.bad.METHODS", "has no METHODS"),
    ("algo._target_=lab.bad.Lacking", "is not complete: it lacks predict, which every Algorithm has"),
    ("algo._target_=lab.bad.ProtoNet", r"ProtoNet is defined in \S+protonet.py, not below \S+mine; name it where"),
    ("algo._target_=json.Mine", "algo._target_=json.Mine is refused: only classes"),
    ("algo._target_=os.system", "algo._target_=os.system is refused: only classes"),
    ("algo=mymethod", "Untyped.__init__: give the parameter size a type"),
    ("algo=careless", r"Careless cannot be built: \S+/bad.py, line \d+: AttributeError: "),
    ("net=module", "net=module needs net.module=PACKAGE.MODULE.CLASS"),
    ("net=module net.module=torch.nn.Flatten", "net.module=torch.nn.Flatten is refused: only classes of a folder"),
    ("net=module net.module=lab.bad.Lacking", r"net.module=lab.bad.Lacking is not complete|cannot be built"),
    ("net=module net.module=lab.nets.Norms", "has torch's RMSNorm .norm., whose second derivatives are wrong"),
    ("net=module net.module=lab.nets.Norms net.arguments={norm:SyncBatchNorm}", "SyncBatchNorm that has no counterpart"),
    ("net=module net.module=lab.nets.Norms net.arguments={norm:BatchNorm1d,affine:false}", "BatchNorm1d that has no counterpart"),
    ("net=module net.module=lab.nets.Norms net.arguments={nrm:x}", "cannot be built with net.arguments={'nrm': 'x'}: "),
    ("net=module net.module=lab.nets.Dropout", "has Dropout .drop., which draws from torch's global generator"),
    ("net=module net.module=lab.nets.Maps", r"answers 2 examples \[n, 1, 28, 28\] with \[2, 1, 28, 28\]: it should return"),
    ("net=module net.module=lab.nets.Wide", r"fails on examples \[n, 1, 28, 28\]: \S+/nets.py, line \d+: RuntimeError"),
    ("net=module net.module=lab.nets.Looking", "the net cannot be mapped over tasks .* set engine.map=loop"),
    ("net=silent", "the net Silent does not say its features: set self.features in its constructor"),
    ("net=silent net._target_=lab.nets.Boastful", "says features=3, but layers.. returns 784 of an example"),
    ("net=silent net._target_=lab.nets.Native", "the net Native has torch's BatchNorm1d .batch.*use metarun.nets.norm.Norm"),
    ("net=silent net._target_=lab.nets.Constructed", r"Constructed cannot be built: \S+/nets.py, line \d+: TypeError"),
    ("data._target_=lab.bad.Whole", "is refused: it is no Dataset"),
    ("data=empty", "the data set Empty does not say its input_shape: set self.input_shape in its constructor"),
]


@pytest.mark.parametrize(("line", "pattern"), [*BAD, *((f"check --with mine {words}", pattern) for words, pattern in OWN)])
def test_mistakes_are_one_line(metarun, tmp_path, line, pattern):
    yaml = "# Mine.\n_target_: lab.bad.{}\nname: mine\n"
    write(tmp_path, {
        "mine/lab/bad.py": METHOD, "mine/lab/nets.py": NET, "mine/json.py": "raise SystemExit(3)\n",
        "mine/lab/broken.py": "\nimport nothing_such\n", "mine/lab/unreadable.py": "def :\n",
        "mine/lab/leaving.py": "raise SystemExit(3)\n",
        "mine/conf/algo/mymethod.yaml": yaml.format("Untyped"), "mine/conf/algo/careless.yaml": yaml.format("Careless"),
        "mine/conf/net/silent.yaml": "# Silent.\n_target_: lab.nets.Silent\nname: silent\n",
        "twice/conf/algo/mymethod.yaml": "# Twice.\n", "taken/conf/algo/maml.yaml": "# Taken.\n", "astray/conf/alog/x.yaml": "# Astray.\n",
        "empty/notes.txt": "", "mine/conf/data/empty.yaml": yaml.format("Empty"),
    })  # fmt: skip
    before = everything(tmp_path)
    assert_one_line(metarun(*line.split(), *(FEW if line.startswith("check") and "data=" not in line else [])), 2, pattern)
    assert {name for name in everything(tmp_path) if "__pycache__" not in name} == set(before)


def test_a_failure_in_the_users_file_is_told_with_its_line(metarun, tmp_path):
    write(tmp_path, {"mine/lab/bad.py": METHOD})
    result = metarun(
        "check",
        "--with",
        "mine",
        "algo=protonet",
        "~algo.views",
        "~algo.matching",
        "algo._target_=lab.bad.Failing",
        *FEW,
        "data.val_classes=7",
    )
    line = 1 + METHOD.splitlines().index("        return context.support.x[len(context.support.y) + 3]")
    assert_one_line(result, 1, rf"failed: \S+/mine/lab/bad.py, line {line}: IndexError: .* \(METARUN_DEBUG=1 shows where\)")


def test_a_net_that_looks_at_values_runs_task_by_task(metarun, tmp_path):
    write(tmp_path, {"mine/lab/nets.py": NET})
    words = ["net=module", "net.module=lab.nets.Looking", "algo=protonet", "engine.map=loop", *FEW]
    result = metarun("check", "--with", "mine", *words)
    assert result.status == 0, result.err
    assert result.out[2] == "norm         none"


def test_the_environment_is_left_as_it_was(mine, monkeypatch):
    monkeypatch.chdir(mine.parent)
    monkeypatch.setenv("METARUN_WITH", "")
    assert main.main(["--with", "mine", "list", "algo"]) == 0
    assert os.environ["METARUN_WITH"] == ""
    assert "METARUN_CONFIG_DIR" not in os.environ
    assert main.main(["--with", "mine", "algo=nothing"]) == 2
    assert os.environ["METARUN_WITH"] == ""
