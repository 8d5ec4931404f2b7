"""Fixtures of the tests of the command line: the program called in-process in an empty folder, and one small finished run."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import TINY, Outcome
from hydra.core.global_hydra import GlobalHydra

from metarun.cli import main


@pytest.fixture
def metarun(tmp_path, monkeypatch, capsys) -> Callable[..., Outcome]:
    """Calls the program with words (one string is split at spaces) in an empty current folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> Outcome:
        capsys.readouterr()
        status = main.main(words[0].split() if len(words) == 1 else list(words))
        GlobalHydra.instance().clear()  # a real program ends here
        logging.basicConfig(handlers=[], force=True)
        captured = capsys.readouterr()
        return Outcome(status, captured.out.splitlines(), captured.err.splitlines())

    return call


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A finished run; copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main.main([*TINY, f"hydra.run.dir={folder}"]) == 0
    logging.basicConfig(handlers=[], force=True)
    return folder


@pytest.fixture
def run_folder(finished, tmp_path) -> Path:
    """A copy of the finished run below the current folder."""
    return Path(shutil.copytree(finished, tmp_path / "run"))
