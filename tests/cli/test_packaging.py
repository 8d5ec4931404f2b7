"""The wheel: everything is in it, and it works from another folder in a virtual environment that has never seen the checkout."""

import importlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers import composed
from PIL import Image

from metarun.config import compose, options, schema

CHECKOUT = Path(__file__).resolve().parents[2]
CONF = CHECKOUT / "conf"
OPTIONS = [f"{group}={option}" for group, options in options.groups().items() for option in options]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=CHECKOUT, check=True, capture_output=True)
    return next(folder.glob("metarun-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A function that runs a program of a fresh environment, in a folder far from the checkout; returns its stdout."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, capture_output=True)
    # The dependencies come from this environment: a path alone, so its own .pth files (an editable metarun) are not followed.
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True, capture_output=True, text=True
    ).stdout.strip()
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    away = tmp_path_factory.mktemp("away")
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(program, *words):
        done = subprocess.run([home / "bin" / program, *words], cwd=away, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.home, run.away = home, away
    return run


def test_the_wheel_holds_every_source_file_and_every_yaml_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    expected = {f"metarun/conf/{path.relative_to(CONF).as_posix()}" for path in CONF.rglob("*.yaml")}
    source = (path for path in (CHECKOUT / "src").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    expected |= {path.relative_to(CHECKOUT / "src").as_posix() for path in source}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_installed_package_uses_its_own_configuration_and_nothing_of_the_checkout(installed):
    probe = """
import sys
from metarun.__main__ import main
sys.argv = ["metarun", "check", "net=mlp", "data.train_classes=6", "data.val_classes=6", "data.test_classes=6"]
try:
    main()
except SystemExit as stop:
    assert not stop.code
from metarun.config import options
print(options.conf_dir())
print(*sorted(module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "metarun"), sep="\\n")
"""
    out = installed("python", "-c", probe)
    assert "all is well" in out
    conf, *ours = out.partition("all is well\n")[2].splitlines()
    assert Path(conf).is_relative_to(installed.home.resolve())
    assert Path(conf).name == "conf"
    assert ours
    assert all(Path(path).resolve().is_relative_to(installed.home.resolve()) for path in ours)


def test_the_installed_commands_answer(installed):
    assert "Usage" in installed("metarun", "--help")
    listed = installed("metarun", "list")
    assert all(option.partition("=")[2].partition("/")[0] in listed for option in OPTIONS)
    values = yaml.safe_load(installed("metarun", "--cfg", "job"))
    assert (values["way"], values["algo"]["name"]) == (5, "maml")


@pytest.mark.slow
def test_the_installed_package_trains(installed):
    words = ("algo=protonet", "net=mlp", "query=2", "data.train_classes=6", "data.val_classes=6", "data.test_classes=6", "logger=quiet",
             "trainer.iterations=1", "trainer.meta_batch=2", "trainer.val_episodes=2", "trainer.test_episodes=2")  # fmt: skip
    out = installed("python", "-m", "metarun", *words)
    assert "run folder" in out
    assert len(list(installed.away.glob("outputs/*/*/summary.json"))) == 1


@pytest.mark.slow
def test_the_installed_package_runs_a_method_of_the_users_from_start_to_end(installed):
    """The cosine classifier of docs/your-own.md, in a folder that is neither the package's nor the current one."""
    page = (CHECKOUT / "docs" / "your-own.md").read_text(encoding="utf-8")
    for name, text in re.findall(r"^`(mine/\S*cosine\.\w+)`:\n\n```\w+\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        path = installed.away / "elsewhere" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    random = np.random.default_rng(0)
    for i in range(9):
        for shot in range(4):
            path = installed.away / "photos" / f"class{i}" / f"{shot}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (28, 28), dtype=np.uint8)).save(path)
    words = ("algo=cosine", "data=folder", "data.root=photos", "net=mlp", "way=2", "query=2", "logger=quiet", "trainer.iterations=2",
             "trainer.meta_batch=2", "trainer.val_episodes=2", "trainer.test_episodes=2")  # fmt: skip

    def metarun(*words):
        return json.loads(installed("metarun", "--with", "elsewhere/mine", *words, "--json").splitlines()[-1])

    trained = metarun(*words, "hydra.run.dir=mine_run")
    assert trained["algo"] == "cosine"
    (installed.away / "mine_run" / "summary.json").unlink()
    assert metarun("resume", "mine_run")["test"] == metarun("eval", "mine_run")["test"] == trained["test"]
    assert metarun("predict", "mine_run", "--support", "photos", "--query", "photos")["pictures"] == 36
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    swept = metarun("-m", *words, "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=mine_sweep")
    assert [summary["algo"] for summary in swept["runs"]] == ["cosine", "cosine"]


def first() -> Iterator[Any]:
    """The options; `make test` tries presets, and of other groups, whose options most tests choose, the first."""
    groups = options.groups()
    for choice in OPTIONS:
        group, _, option = choice.partition("=")
        yield pytest.param(choice, marks=[] if group == "experiment" or option == groups[group][0] else pytest.mark.slow)


@pytest.mark.parametrize("choice", list(first()))
def test_every_option_composes_and_every_key_of_it_is_valid(choice):
    values = compose.resolve(compose.compose([choice]))
    schema.validate(values)
    if not choice.startswith("experiment="):
        assert composed(choice) == values, "the tests' own quick way composes as Hydra does"


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: path.relative_to(CONF).as_posix())
def test_every_yaml_opens_with_what_it_is_and_its_target_imports(path):
    text = path.read_text(encoding="utf-8")
    first = next(line for line in text.splitlines() if not line.startswith("# @package"))
    assert first.startswith("# ")
    assert first.endswith("."), "the first comment is the line of `metarun list`: one sentence"
    target = yaml.safe_load(text).get("_target_")
    if target:
        module, _, name = target.rpartition(".")
        if module.startswith("hydra_plugins."):
            pytest.importorskip(module, reason="an extra, not installed here")
        assert isinstance(getattr(importlib.import_module(module), name), type)
