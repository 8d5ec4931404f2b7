"""protocol=generalized: answers under a penalty one by one, the curve over all penalties, who is asked, and a whole run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import small
from PIL import Image

from metarun.cli import summary_table
from metarun.data.held_out import hold_out
from metarun.errors import UserError
from metarun.experiment import evaluate, train
from metarun.protocols.generalized import MEASURES, Generalized, curve, harmonic, measure
from metarun.run import Run
from metarun.task import select


def made(n: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of 5 classes, of which the first 3 are seen, and labels."""
    random = np.random.default_rng(1)
    y = random.integers(0, 5, n)
    scores = random.normal(size=(n, 5)) + 1.2 * (y[:, None] == np.arange(5)) + 0.8 * (np.arange(5) < 3)
    return scores, y, y < 3


def arrays(scores: np.ndarray, y: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    best, other = scores[:, :3].argmax(1), 3 + scores[:, 3:].argmax(1)
    return scores[:, :3].max(1) - scores[:, 3:].max(1), np.where(seen, best, other) == y, seen


@pytest.mark.parametrize("penalty", [-0.5, 0.0, 0.7, 100.0, -100.0])
def test_accuracies_are_those_of_the_largest_score(penalty: float) -> None:
    scores, y, seen = made()
    answers = (scores - penalty * (np.arange(5) < 3)).argmax(1)
    found = dict(zip(MEASURES, measure(*arrays(scores, y, seen), penalty)))
    unseen, own = (answers == y)[~seen].mean(), (answers == y)[seen].mean()
    assert found["unseen"] == pytest.approx(unseen)
    assert found["seen"] == pytest.approx(own)
    assert found["harmonic"] == pytest.approx(2 * unseen * own / max(unseen + own, 1e-12), abs=1e-9)
    if penalty == 100:  # no seen class is ever named
        assert (found["unseen"], found["seen"]) == (pytest.approx(found["unseen_alone"]), 0)


def test_the_curve_has_every_penalty_and_the_best() -> None:
    margin, right, seen = arrays(*made())
    unseen, own, penalties = curve(margin, right, seen)
    for u, s, penalty in zip(unseen, own, penalties):
        answered = right & ((margin > penalty) == seen)
        assert u == pytest.approx(answered[~seen].mean())
        assert s == pytest.approx(answered[seen].mean(), abs=1e-12)
    found = dict(zip(MEASURES, measure(margin, right, seen, 0.0)))
    assert found["harmonic_best"] == pytest.approx(harmonic(unseen, own).max())
    again = dict(zip(MEASURES, measure(margin, right, seen, found["penalty_best"])))
    assert again["harmonic"] == pytest.approx(found["harmonic_best"])
    assert found["ausuc"] == pytest.approx(np.trapezoid(own, unseen))
    assert 0 < found["ausuc"] < found["unseen_alone"] * found["seen_alone"]


def test_what_is_no_number_is_lost() -> None:
    assert np.isnan(measure(np.array([np.nan, 1.0]), np.array([True, True]), np.array([True, False]), 0.0)).all()


WORDS = ["algo=protonet_zeroshot", "net=mlp", "net.norm=running", "trainer.iterations=1"]


def test_it_asks_for_classes_of_both_sides() -> None:
    run = Run(small(*WORDS, "protocol=generalized"))
    with pytest.raises(UserError, match=r"in images that training does not see: set data[.]held_out=0[.]2"):
        run.episodes("test", run.protocols[0])
    run.data.splits = hold_out(run.data.splits, 0.25)
    episodes = run.episodes("test", run.protocols[0])
    task = select(episodes.batch([0]), 0)
    assert sorted(task.context.classes.tolist()) == [*range(50)]
    assert task.query.y.shape == (100,)
    seen = task.context.classes < 40
    known = torch.cat([run.data.splits["train"].attributes, run.data.splits["test"].attributes])
    assert torch.equal(task.context.support.x, known[task.context.classes])
    with torch.no_grad():
        found = Generalized().measure(run.algorithm.eval(), task, scanned=False)
    assert torch.equal(found["seen"], seen[task.query.y])
    logits = run.algorithm.predict(run.algorithm.begin(task.context), task.query.x)
    answered = (logits.argmax(1) == task.query.y).numpy()
    scores = dict(zip(MEASURES, measure(*(found[name].numpy() for name in ("margin", "right", "seen")), 0.0)))
    assert scores["unseen"] == pytest.approx(answered[~found["seen"]].mean())
    assert scores["seen"] == pytest.approx(answered[found["seen"]].mean())


def test_who_sees_images_cannot_be_asked() -> None:
    with pytest.raises(UserError, match="protocol=generalized is not possible with algo=protonet: it needs a zero-shot method"):
        Run(small("algo=protonet", "net=mlp", "protocol=generalized"))


def test_a_run_on_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    lines = []
    for i in range(10):
        folder = tmp_path / "data" / f"class{i}"
        folder.mkdir(parents=True)
        lines.append(f"class{i},{i},{i % 3}")
        for j in range(8):
            Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{j}.png")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    data = ["data=folder", f"data.root={tmp_path / 'data'}", "data.size=8", f"data.attributes={tmp_path / 'table.csv'}"]
    words = [*WORDS, *data, "data.held_out=0.25", "way=2", "data.val_fraction=0.2", "data.test_fraction=0.2"]
    train(small(*words), tmp_path / "run")
    folder = tmp_path / "eval"
    folder.mkdir()
    asked = ["protocol=generalized", "protocol.generalized.penalty=0.5", "logger.pictures=true"]
    summary = evaluate(small(*words, *asked), tmp_path / "run", "best", folder)
    assert summary["metric"] == "harmonic"
    assert set(MEASURES) <= set(json.loads((folder / "summary.json").read_text())["test"])
    assert (folder / "generalized.png").stat().st_size > 1000
    summary_table.show(summary, folder, ("test",))
    assert "classes seen and unseen in training together" in capsys.readouterr().out
