"""Which files of a folder are mislabelled: what several learners make of a file, as one number."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import pytest
import torch

from metarun.data.episodes import Split
from metarun.predict import audit

DATA = Split(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), np.array([0, 2]), np.array([2, 2]), ["a", "b"], files=["a/0", "a/1", "b/0", "b/1"])
# Two learners trained on two files and asked of all four; what is left of 1 they give to the other class.
ROWS = np.array([[0, 2, 1, 3], [1, 3, 0, 2]])
OWN = np.array([[0.9, 0.8, 0.5, 0.6], [0.4, 0.7, 0.02, 0.7]])  # the probability of the class that the file lies in
WEIGHTS = np.array([[1.5, 0.5], [1.0, 2.0]])


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[audit.Judged]:
    classes = np.array([[0, 1], [1, 0]])  # the second learner knows them the other way round
    labels = np.repeat(np.arange(2), 2)[ROWS]
    there = np.where(classes[:, None] == labels[..., None], OWN[..., None], 1 - OWN[..., None])
    arrays = {"classes": classes.astype(float), "log_probabilities": np.log(there), "weights": WEIGHTS, "rows": ROWS}
    monkeypatch.setattr(audit, "judge", lambda run, asked, after_block: (DATA, arrays))
    run: Any = None
    return audit.suspects(run)[1]


def test_a_file_fits_by_the_mean_loss_of_those_who_know_its_class(judged: list[audit.Judged]) -> None:
    """a/0, that one learner has by heart and the other is sure is wrong, comes before a/1, of which both are unsure."""
    assert [one.file for one in judged] == ["a/0", "a/1", "b/1", "b/0"]
    fits = {one.file: one.fits for one in judged}
    assert fits["a/0"] == pytest.approx(np.exp(np.log([0.9, 0.02]).mean()))
    assert (0.9 + 0.02) / 2 > (0.5 + 0.4) / 2  # by mean probabilities it were the other way round
    assert fits["b/1"] == pytest.approx(np.sqrt(0.6 * 0.7))
    assert [one.weight for one in judged] == [1.5, 1.0, 2.0, 0.5]
    assert (judged[0].looks_like, judged[0].probability) == ("b", pytest.approx(np.sqrt(0.1 * 0.98)))


def test_the_table_keeps_the_order_of_small_numbers(judged: list[audit.Judged]) -> None:
    tiny = [audit.Judged("c/0", "c", 3.2e-9, 1.0, "a", 0.9, 4), audit.Judged("c/1", "c", 4.1e-8, 1.0, "a", 0.9, 5), *judged]
    rows = list(csv.DictReader(io.StringIO(audit.table(tiny).decode())))
    assert [float(row["fits"]) for row in rows[:2]] == [3.2e-9, 4.1e-8]
    assert [row["file"] for row in rows[2:]] == [one.file for one in judged]
