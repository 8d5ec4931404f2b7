"""The benchmark of layers: every layer's way to be switched off is one that metarun takes, and gains are ratios within a round."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metarun.config import schema
from metarun.config.compose import compose, resolve
from metarun.kernels import select

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def layers() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        import bench_layers

        yield bench_layers
        for name in ("bench_layers", "bench", "bench_page"):
            sys.modules.pop(name)


def test_every_layer_is_switched_off_by_settings_that_exist(layers: Any) -> None:
    for layer in layers.LAYERS.values():
        schema.validate(resolve(compose(["algo=maml", *layer.words])))
        assert bool(layer.words) != bool(select.switched_off(layer.without))
    assert {layer.without for layer in layers.LAYERS.values() if layer.without} == set(select.LAYERS)


def test_a_gain_is_that_of_a_round(layers: Any) -> None:
    assert layers.ratios([2.0, 3.0, 9.0], [1.0, 2.0, 3.0]) == [2.0, 1.5, 3.0]
    assert layers.shown([2.0, 1.5, 3.0]) == "2.00 (1.50 to 3.00)"


def test_sides_are_asked_in_turn(layers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    times = {"": 1.0, "loops": 2.0, "recording": 4.0}

    class Process:
        def __init__(self, library: str, METARUN_WITHOUT: str = "") -> None:
            self.name = METARUN_WITHOUT

        def ask(self, do: str, **more: Any) -> Any:
            if do == "prepare":
                self.name = self.name or ("recording" if "engine.record=false" in more["work"]["words"] else "")
            elif more["seconds"]:
                asked.append((do, self.name))
            return {"seconds": [times[self.name]]}

        def close(self) -> None:
            asked.append(("close", self.name))

    monkeypatch.setattr(layers, "Process", Process)
    monkeypatch.setattr(layers, "prepare", lambda *_: ({"words": []}, {}))
    options = SimpleNamespace(layers=["recording", "loops"], rounds=2, seconds=0.1, episodes=3)
    found = layers.measure(layers.STEPS["W1"], options)
    assert found == {"recording": [4.0, 4.0], "loops": [2.0, 2.0], "time": 1.0}
    assert [name for _, name in asked] == ["", "recording", "loops"] * 3
    assert [do for do, _ in asked] == ["round"] * 6 + ["close"] * 3
