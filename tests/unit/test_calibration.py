"""Calibration against counting by hand and closed forms; whole runs keep it, and answers that bear no uncertainty have none."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import classification, random, regression

import metarun
from metarun.comparison import runs
from metarun.errors import UserError
from metarun.experiment import evaluate, train
from metarun.problem import Gaussian, JointGaussian, Regression, Samples, joint_log_density
from metarun.protocols import calibration
from metarun.protocols.calibration import AFTER_SCALING, JOINT, NAMES, OF_INTERVALS, OF_POOL, Calibration
from metarun.run import Run
from metarun.task import select


def logits_of(probabilities: list[list[float]]) -> np.ndarray:
    return np.log(np.array(probabilities))


def drawn(n: int, way: int, scale: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits [n, way], and labels [n] that are drawn from their softmax."""
    random = np.random.default_rng(seed)
    logits = scale * random.normal(size=(n, way))
    y = (np.exp(calibration.log_softmax(logits)).cumsum(-1) > random.random((n, 1))).argmax(-1)
    return logits, y


def test_scores_of_four_answers_by_hand() -> None:
    logits, y = logits_of([[0.7, 0.3], [0.72, 0.28], [0.05, 0.95], [0.52, 0.48]]), np.array([0, 1, 1, 0])
    assert calibration.nll(logits, y) == pytest.approx([-math.log(p) for p in (0.7, 0.28, 0.95, 0.52)])
    assert calibration.brier(logits, y) == pytest.approx([2 * 0.3**2, 2 * 0.72**2, 2 * 0.05**2, 2 * 0.48**2])
    # Two answers share the bin (10/15, 11/15], one of them wrong; the others are alone, and right.
    error, at_90, at_80, at_50, area = calibration.of_pool(logits, y)
    assert error == pytest.approx((abs(0.7 + 0.72 - 1) + (1 - 0.95) + (1 - 0.52)) / 4)
    # The surest first: right, wrong, right, right.
    assert (at_90, at_80, at_50) == (0.75, 0.75, 0.5)
    assert area == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


def test_the_calibration_error_is_netcals() -> None:
    netcal = pytest.importorskip("netcal.metrics", reason="netcal is not installed")
    for scale in (0.5, 3.0):
        logits, y = drawn(500, 5, scale)
        wanted = netcal.ECE(calibration.BINS).measure(np.exp(calibration.log_softmax(2 * logits)), y)
        assert calibration.of_pool(2 * logits, y)[0] == pytest.approx(wanted)


def test_equally_sure_answers_have_no_order() -> None:
    """The mean over all orders of a wrong one among three, after a right one that is surer."""
    confidence = np.array([0.5, 0.9, 0.5, 0.5])
    for wrong in (0, 2, 3):
        correct = np.ones(4)
        correct[wrong] = 0
        assert calibration.risks(confidence, correct) == pytest.approx([0, 1 / 3 / 2, 2 / 3 / 3, 1 / 4])


def test_labels_drawn_from_the_probabilities_are_calibrated_and_others_are_not() -> None:
    logits, y = drawn(40_000, 5, 2.0)
    assert calibration.of_pool(logits, y)[0] < 0.01
    assert calibration.fitted_temperature(logits, y)[0] == pytest.approx(1, abs=0.03)
    assert calibration.of_pool(3 * logits, y)[0] > 0.1
    assert calibration.fitted_temperature(3 * logits, y)[0] == pytest.approx(3, abs=0.1)


def test_the_temperature_is_the_best_of_all() -> None:
    logits, y = drawn(300, 4, 3.0)
    best = calibration.fitted_temperature(logits, y)[0]
    loss = [calibration.nll(logits / t, y).mean() for t in (best, 0.98 * best, 1.02 * best)]
    assert loss[0] == min(loss)


def test_answers_that_are_all_right_cool_to_the_end_and_numbers_that_are_none_have_no_temperature() -> None:
    assert calibration.fitted_temperature(logits_of([[0.9, 0.1]]), np.array([0]))[0] == pytest.approx(1 / calibration.HOTTEST, rel=1e-3)
    for none in ([np.nan, 0.0], [np.inf, 0.0], [-np.inf, -np.inf]):
        logits, y = np.array([[1.0, 0.0], none]), np.zeros(2, int)
        assert math.isnan(calibration.fitted_temperature(logits, y)[0])
        assert np.isnan(calibration.of_pool(logits, y)).all()
        assert math.isnan(calibration.nll(logits, y).mean())


def test_a_class_that_is_ruled_out_is_an_answer() -> None:
    logits, y = np.array([[1.0, 0.0, -np.inf]]), np.array([1])
    assert calibration.nll(logits, y) == pytest.approx(math.log(1 + math.e))
    assert np.isfinite(calibration.of_pool(logits, y)).all()


def test_a_temperature_that_is_none_divides_by_one() -> None:
    for found in ({}, {"temperature": {"mean": math.nan}}, {"temperature": {"mean": "2"}}, {"temperature": {"mean": -1.0}}):
        assert calibration.temperature_in(found) == 1.0
    assert calibration.temperature_in({"temperature": {"mean": 2.0}}) == 2.0


def test_levels_of_gaussian_targets_are_uniform() -> None:
    mean, y = torch.zeros(20, 1000, 1), torch.randn(20, 1000, 1, generator=torch.Generator().manual_seed(0))
    levels = {wide: calibration.below(Gaussian(mean, torch.full_like(mean, wide)), y).numpy() for wide in (1.0, 9.0)}
    assert calibration.coverage(levels[1.0]) == pytest.approx([0.5, 0.9, 0.95], abs=0.01)
    assert calibration.calibration_error(levels[1.0]).mean() < 0.02
    # ± z of a deviation that is three times too wide.
    normal = torch.distributions.Normal(0.0, 1.0)
    wanted = [float(1 - 2 * normal.cdf(-3 * normal.icdf(torch.tensor((1 + inside) / 2)))) for inside in calibration.INSIDE]
    assert calibration.coverage(levels[9.0]) == pytest.approx(wanted, abs=0.01)
    assert calibration.calibration_error(levels[9.0]).mean() > 0.1


def test_the_calibration_error_by_hand() -> None:
    """All targets lie in the middle: of a level below .5 none are below the quantile, of one above all."""
    levels = calibration.LEVELS
    wanted = np.sqrt(np.mean(np.where(levels < 0.5, levels, 1 - levels) ** 2))
    assert calibration.calibration_error(np.full((2, 7, 1), 0.5)) == pytest.approx([wanted, wanted])


def test_the_level_in_a_mixture_is_the_mean_over_members() -> None:
    members = Gaussian(torch.tensor([[[0.0]], [[2.0]]]), torch.ones(2, 1, 1))
    normal, y = torch.distributions.Normal(0.0, 1.0), torch.tensor([[0.5]])
    torch.testing.assert_close(calibration.below(Samples(members), y), (normal.cdf(y) + normal.cdf(y - 2)) / 2)


def test_targets_together_are_as_likely_as_torch_says() -> None:
    mean, y = random(4, 2, seed=0), random(4, 2, seed=1)
    roots = random(2, 4, 4, seed=2)
    covariance = roots @ roots.mT + 0.1 * torch.eye(4, dtype=torch.float64)
    for several in (covariance, covariance[:1]):
        wanted = torch.distributions.MultivariateNormal(mean.T, several.expand(2, 4, 4)).log_prob(y.T).sum()
        torch.testing.assert_close(joint_log_density(JointGaussian(mean, several), y), wanted)


def test_targets_together_by_hand() -> None:
    """Two ones, of variance 1 and covariance ½: the form is 2 / 1.5, the determinant ¾; two members, one of them right about both."""
    two = JointGaussian(torch.zeros(2, 1), torch.tensor([[[1.0, 0.5], [0.5, 1.0]]]))
    wanted = -(2 / 1.5 + math.log(0.75)) / 2 - math.log(2 * math.pi)
    assert joint_log_density(two, torch.ones(2, 1)).item() == pytest.approx(wanted)
    members = Samples(Gaussian(torch.tensor([[[1.0], [1.0]], [[1.0], [-9.0]]]), torch.ones(2, 2, 1)))
    assert joint_log_density(members, torch.ones(2, 1)).item() == pytest.approx(math.log((1 + math.exp(-50)) / 2) - math.log(2 * math.pi))


def test_without_covariances_targets_together_are_as_likely_as_each_for_itself() -> None:
    mean, y, variance = random(6, 2, seed=0), random(6, 2, seed=1), random(6, 2, seed=2).exp()
    alone, together = Gaussian(mean, variance), JointGaussian(mean, variance.T.diag_embed())
    for found in (alone, together, Samples(Gaussian(mean[None], variance[None]))):
        torch.testing.assert_close(-joint_log_density(found, y) / y.numel(), Regression(2).loss(alone, y))


def test_a_covariance_that_rounding_made_indefinite_has_a_density() -> None:
    same = JointGaussian(torch.zeros(30, 1), torch.ones(1, 30, 30) - 1e-7 * torch.eye(30))
    assert joint_log_density(same, torch.zeros(30, 1)).isfinite()


def test_a_run_of_classification_keeps_it_all(tmp_path: Path) -> None:
    values = classification("protonet", "logger.tensorboard=false", "logger.pictures=true")
    summary = train(values, tmp_path)
    test, development = summary["test"], summary["val"]
    assert test["nll"] == pytest.approx(test["loss"])
    assert {"nll", "brier", *OF_POOL, *AFTER_SCALING} == set(test) & NAMES
    assert {"nll", "brier", *OF_POOL, "temperature"} == set(development) & NAMES
    assert (tmp_path / "reliability.png").stat().st_size > 10_000
    # By hand, from the answers to the six episodes of the test.
    run, model = Run(values), metarun.load(tmp_path, device="cpu")
    assert model.temperature == development["temperature"]["mean"] != 1
    probabilities, raw, labels = [], [], []
    for i in range(6):
        (support, *_), query = (task := select(run.episodes("test").batch([i]), 0)).context, task.query
        fitted = model.adapt(support.x, support.y)
        probabilities.append(fitted.probabilities(query.x))
        raw.append(fitted.probabilities(query.x, raw=True))
        labels.append(query.y)
    y = torch.cat(labels)
    for name, rows in (("nll", raw), ("nll_calibrated", probabilities)):
        assert torch.nn.functional.nll_loss(torch.cat(rows).log(), y).item() == pytest.approx(test[name]["mean"], rel=1e-4)
    # An evaluation knows the temperature, too, and never fits one to a test.
    (tmp_path / "again").mkdir()
    again = evaluate(values, tmp_path, "best", tmp_path / "again")
    assert again["test"] == test
    (tmp_path / "alone").mkdir()
    alone = evaluate({**values, "protocol": {"calibration": values["protocol"]["calibration"]}}, tmp_path, "best", tmp_path / "alone")
    assert (alone["metric"], alone["higher_is_better"], alone["protocol"]) == ("nll", False, ["calibration"])
    assert alone["test"]["nll"] == test["nll"]


def test_a_run_of_regression_has_intervals_where_answers_have(tmp_path: Path) -> None:
    summary = train(regression("alpaca", "logger.pictures=true"), tmp_path / "alpaca")
    assert {"nll", JOINT, *OF_INTERVALS, "calibration_error"} == set(summary["test"]) & NAMES
    assert summary["test"]["nll"]["mean"] == pytest.approx(summary["test"]["loss"]["mean"])
    assert (tmp_path / "alpaca" / "reliability.png").is_file()
    values = regression("maml", "logger.pictures=true")
    assert not set(train(values, tmp_path / "maml")["test"]) & NAMES
    assert not (tmp_path / "maml" / "reliability.png").exists()
    alone = {**values, "protocol": {"calibration": values["protocol"]["calibration"]}}
    with pytest.raises(UserError, match=r"protocol=calibration is not possible with algo=maml: it needs answers with probabilities"):
        evaluate(alone, tmp_path / "maml", "best", tmp_path)


def test_a_run_from_before_compares_with_one_of_today(tmp_path: Path) -> None:
    train(classification("protonet"), tmp_path / "now")
    train(classification("matching"), tmp_path / "then")
    path = tmp_path / "then" / "summary.json"
    old = json.loads(path.read_text())
    for split in ("val", "test"):
        old[split] = {name: value for name, value in old[split].items() if name not in NAMES}
    path.write_text(json.dumps({name: value for name, value in old.items() if name != "protocol"}))
    from metarun.comparison.view import view

    found = runs.collect([str(tmp_path)]).runs
    assert len(view(found, None, None, [], None).groups) == 2
    for metric in ("ece", "nll", "brier", "aurc"):
        shown = view(found, metric, None, [], None)
        assert [group.key["algo"] for group in shown.groups] == ["protonet"]
        assert not shown.runs[0].higher_is_better(metric)


def test_there_is_no_key_to_fit_on_a_test() -> None:
    assert Calibration("last") == Calibration("last", False, None)
    with pytest.raises(UserError, match="unknown key"):
        Run(classification("protonet", "+protocol.calibration.fits=true"))
