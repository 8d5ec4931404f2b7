"""Verification against closed forms and counting: ties, perfect and random scores, thresholds that exist, pairs, standard errors."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import engine, small

from metarun.experiment import train
from metarun.protocols.base import BLOCKS
from metarun.protocols.calibration import AFTER_SCALING, OF_POOL
from metarun.protocols.verification import MEASURES, measure, pairs, roc, statistics
from metarun.run import Run


def normal(mean: float, n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1, n)


def test_perfect_scores() -> None:
    assert measure(np.array([2.0, 3.0]), np.array([0.0, 1.0, 1.0])).tolist() == [1, 0, 1]


def test_scores_the_wrong_way_round() -> None:
    assert measure(np.array([0.0, 1.0, 1.0]), np.array([2.0, 3.0])).tolist() == [0, 1, 0]


def test_equal_scores_are_a_coin() -> None:
    """The only thresholds accept nothing or everything, so no true pair is accepted at a low false-accept rate."""
    assert measure(np.zeros(3), np.zeros(5)).tolist() == [0.5, 0.5, 0]


def test_by_hand_with_a_tie() -> None:
    """Accepted as the threshold falls: same, then a tie of one same and one different, then two different."""
    curve = roc(np.array([3.0, 2.0]), np.array([2.0, 1.0, 0.0]))
    assert curve.far.tolist() == pytest.approx([0, 0, 1 / 3, 2 / 3, 1])
    assert curve.tar.tolist() == [0, 0.5, 1, 1, 1]
    assert curve.auc == pytest.approx((3 + 2.5) / 6)
    assert curve.eer == pytest.approx(1 / 5)  # on the tie's slope, where far = 1 - tar
    assert curve.tar_at(np.array([0.0, 0.3, 1 / 3, 1.0])).tolist() == [0.5, 0.5, 1, 1]
    assert curve.far_at(np.array([0.0, 0.5, 0.6, 1.0])).tolist() == pytest.approx([0, 0, 1 / 3, 1 / 3])


def test_auc_counts_the_pairs_in_order_and_ties_by_half() -> None:
    same, different = (np.random.default_rng(seed).integers(0, 9, (5, n)).astype(float) for seed, n in ((0, 7), (1, 11)))
    above, equal = (compared(same.reshape(-1, 1), different.reshape(1, -1)).mean() for compared in (np.greater, np.equal))
    assert roc(same, different).auc == pytest.approx(above + equal / 2, rel=1e-12)


def test_normal_scores_have_the_closed_forms_of_the_binormal_model() -> None:
    """AUC = Φ(d/√2), EER = Φ(−d/2), TAR at FAR a = Φ(d + Φ⁻¹(a))."""
    d, n = 2.0, 400_000
    auc, eer, tar = measure(normal(d, n, 0), normal(0, n, 1))
    phi = torch.special.ndtr
    assert auc == pytest.approx(float(phi(torch.tensor(d / math.sqrt(2)))), abs=2e-3)
    assert eer == pytest.approx(float(phi(torch.tensor(-d / 2))), abs=2e-3)
    assert tar == pytest.approx(float(phi(d + torch.special.ndtri(torch.tensor(0.01)))), abs=1e-2)


def test_random_scores_are_at_chance() -> None:
    auc, eer, tar = measure(normal(0, 100_000, 0), normal(0, 100_000, 1))
    assert auc == pytest.approx(0.5, abs=0.01)
    assert eer == pytest.approx(0.5, abs=0.01)
    assert tar == pytest.approx(0.01, abs=0.003)


def test_a_rate_that_is_just_reached_counts() -> None:
    """One false accept of a hundred is a rate of 0.01, in floating point, too."""
    assert measure(np.array([1.0, 3.0]), np.append(2.0, np.zeros(99)))[2] == 1


def test_monotone_transformations_change_nothing() -> None:
    same, different = normal(1, 50, 0), normal(0, 70, 1)
    assert measure(np.exp(same), np.exp(different)).tolist() == measure(same, different).tolist()


@pytest.mark.parametrize(("same", "different"), [(3, 0), (0, 3)])
def test_pairs_of_one_kind_have_no_curve(same: int, different: int) -> None:
    with pytest.raises(ValueError, match=f"both kinds, here are {same} same and {different} different"):
        roc(np.zeros(same), np.zeros(different))


def test_scores_that_are_no_numbers_have_no_measures() -> None:
    assert np.isnan(measure(np.array([1.0, math.nan]), np.zeros(2))).all()


def test_pairs_part_own_class_and_others() -> None:
    logits, y = torch.arange(12.0).reshape(4, 3), torch.tensor([0, 2, 1, 1])
    found = pairs(logits, y)
    assert found["same"].tolist() == [0, 5, 7, 10]
    assert [sorted(row) for row in found["different"].tolist()] == [[1, 2], [3, 4], [6, 8], [9, 11]]


def test_standard_errors_are_those_of_many_repetitions() -> None:
    """The interval of one sample, on average, against the spread of the measure over samples."""
    found = [statistics(normal(1, 200 * 3, s).reshape(200, 3), normal(0, 200 * 6, s + 1000).reshape(200, 3, 2)) for s in range(60)]
    for name in MEASURES[:2]:  # 1 % of a block's pairs are too few for the third
        spread = np.std([each[name]["mean"] for each in found])
        assert np.mean([each[name]["ci95"] for each in found]) == pytest.approx(1.96 * spread, rel=0.3)


@pytest.mark.parametrize("n", [1, BLOCKS - 1, BLOCKS + 1])
def test_any_number_of_episodes(n: int) -> None:
    found = statistics(normal(1, n * 2, 0).reshape(n, 2), normal(0, n * 4, 1).reshape(n, 2, 2))
    assert all(value["n"] == n and 0 <= value["mean"] <= 1 and value["ci95"] >= 0 for value in found.values())


def test_identification_and_verification_come_from_the_same_scores() -> None:
    """In each row of a query's scores: it is identified if its own class scores highest."""
    run = Run(small("algo=protonet", "net.hidden=8"))
    found = engine().evaluate(run.algorithm, run.episodes("test").batch(range(5)), *run.protocols)
    identified = (found["same"] > found["different"].amax(-1)).float().mean(-1)
    torch.testing.assert_close(found["score"][:, -1], identified)


def test_pairs_are_of_pairwise_methods_alone(tmp_path: Path) -> None:
    protonet, matching = (train(small(f"algo={algo}", "net.hidden=8"), tmp_path / algo) for algo in ("protonet", "matching"))
    others = {"accuracy", "loss", "nll", "brier", *OF_POOL}
    assert set(protonet["test"]) == {*others, *MEASURES, *AFTER_SCALING, "curve"}
    assert set(protonet["val"]) == {*others, *MEASURES, "temperature"}
    assert set(matching["test"]) == {*others, *AFTER_SCALING, "curve"}


def test_a_test_measures_the_pairs_of_all_its_episodes(tmp_path: Path) -> None:
    values = small("algo=nearest")
    summary, run = train(values, tmp_path), Run(values)
    found = run.engine.evaluate(run.algorithm, run.episodes("test").batch(range(6)), *run.protocols)
    scores = {name: value.double().numpy() for name, value in found.items()}
    for name, value in zip(MEASURES, measure(scores["same"], scores["different"])):
        assert summary["test"][name]["mean"] == pytest.approx(value)
    assert run.protocols[0].summarise(run.problem, scores)[0]["auc"]["n"] == 6
