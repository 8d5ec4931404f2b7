"""The script behind docs/results.md: the page has its commands, and a run folder counts for its own command only."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from omegaconf import OmegaConf

from metarun.config.compose import compose, resolve

CHECKOUT = Path(__file__).resolve().parents[2]
WORDS = ["experiment=omniglot_small_maml", "algo=mtl", "init_from=here/pretrained", "data.root=here"]


@pytest.fixture
def reproduce(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(CHECKOUT / "scripts")
    import reproduce

    return reproduce


def test_the_page_has_the_commands_of_all_runs(reproduce: ModuleType) -> None:
    lines = (CHECKOUT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()
    assert [name for name in reproduce.RUNS if reproduce.command(name) not in lines] == []


def left(folder: Path, values: dict[str, Any]) -> Path:
    """A folder as a run of this configuration leaves it."""
    OmegaConf.save(OmegaConf.create(values), folder / "config.yaml")
    (folder / "summary.json").write_text(json.dumps({"seed": values["seed"]}))
    return folder


def test_a_finished_run_is_taken_wherever_its_data_lay(reproduce: ModuleType, tmp_path: Path) -> None:
    values = resolve(compose(WORDS))
    del values["augment"]  # as in folders from before the key
    assert reproduce.finished([*WORDS[:2], "init_from=there/pretrained", "data.root=there"], left(tmp_path, values)) == {"seed": 0}


@pytest.mark.parametrize("word", ["seed=1", "algo=anil", "algo.inner_lr=0.3", "init_from=here/other", "net.norm=running"])
def test_a_run_with_other_settings_is_refused(word: str, reproduce: ModuleType, tmp_path: Path) -> None:
    words = [other for other in WORDS if not word.startswith(other.partition("=")[0] + "=")]
    with pytest.raises(SystemExit, match="other settings than 'metarun "):
        reproduce.finished([*words, word], left(tmp_path, resolve(compose(WORDS))))
