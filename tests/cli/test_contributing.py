"""CONTRIBUTING.md keeps its promise: the algorithm printed there runs from its two files alone."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
TEXT = (CHECKOUT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))


@pytest.fixture
def copy(tmp_path):
    """A function that runs python in a copy of the project that has the example's files; returns its stdout."""
    for name in ("src", "conf", "tests"):
        shutil.copytree(CHECKOUT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")

    def python(*words):
        env = os.environ | {"PYTHONPATH": str(tmp_path / "src")}
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return python


def test_the_example_is_one_module_and_one_yaml():
    assert sorted(FILES) == ["conf/algo/cosine.yaml", "src/metarun/algos/metric/cosine.py"]


def test_the_example_trains(copy):
    words = ("algo=cosine", "way=3", "query=2", "net=mlp", "data.train_classes=6", "data.val_classes=6", "data.test_classes=6",
             "logger=quiet", "trainer.iterations=2", "trainer.meta_batch=2",
             "trainer.val_episodes=2", "trainer.test_episodes=2")  # fmt: skip
    summary = json.loads(copy("-m", "metarun", *words, "--json").splitlines()[-1])
    assert (summary["algo"], summary["iterations"]) == ("cosine", 2)


def test_the_example_keeps_the_style(copy):
    copy("-m", "ruff", "check", *(name for name in FILES if name.endswith(".py")))
    copy("-m", "ruff", "format", "--check", *(name for name in FILES if name.endswith(".py")))


@pytest.mark.slow
def test_the_example_fulfils_the_contract(copy):
    copy("-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "tests/contract", "-k", "cosine")
