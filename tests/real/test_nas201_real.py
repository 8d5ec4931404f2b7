"""Searches in the real table of NAS-Bench-201, where a checkout has it beside it: what random search, evolution and REINFORCE reach."""

from __future__ import annotations

from pathlib import Path

import pytest

from metarun.config.compose import compose, resolve
from metarun.protocols.episodes import EVERY
from metarun.run import Run

FOLDER = Path(__file__).parents[3] / "shared" / "nas"
pytestmark = [pytest.mark.real, pytest.mark.skipif(not FOLDER.is_dir(), reason="no shared/nas beside the checkout")]

# Mean test accuracy in percent after 100 and 300 candidates, over 200 searches of another implementation.
REACHED = {
    "cifar10": {"random_search": (88.08, 88.39), "evolution": (88.38, 88.77), "reinforce": (88.41, 88.68)},
    "cifar100": {"random_search": (58.90, 59.71), "evolution": (59.80, 60.64), "reinforce": (59.94, 60.55)},
    "imagenet16_120": {"random_search": (35.02, 35.90), "evolution": (36.01, 37.10), "reinforce": (36.48, 37.13)},
}
OPTIMUM = {"cifar10": 89.16, "cifar100": 61.18, "imagenet16_120": 38.27}


@pytest.mark.parametrize("data", REACHED)
@pytest.mark.parametrize("algo", ["random_search", "evolution", "reinforce"])
def test_searches_reach_what_others_do(algo: str, data: str) -> None:
    words = ["experiment=nas201", f"data.root={FOLDER}", f"data.dataset={data}", f"algo={algo}", "device=cpu", "logger=quiet"]
    run = Run(resolve(compose(words)))
    episodes = run.episodes("test")
    scores = 100 * run.engine.score(run.algorithm, episodes, 200, EVERY, lambda done: None)["score"].mean(0)
    assert (scores[100], scores[300]) == pytest.approx(REACHED[data][algo], abs=0.3)
    assert 100 * episodes.bounds(1)["oracle"][0] == pytest.approx(OPTIMUM[data], abs=0.01)
