"""Tables from a prior, and the net that is fitted to it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import in_float64, random, small
from torch import nn

from metarun import inner
from metarun.algos.blackbox._columns import POWERS, bend, columns_of
from metarun.algos.blackbox._discriminant import discriminant
from metarun.algos.blackbox._logistic import BIAS, PENALTIES, believed, logistic
from metarun.algos.blackbox.pfn import SUREST
from metarun.data.tables import TableEpisodes, Tables
from metarun.errors import UserError
from metarun.experiment import train
from metarun.problem import EpisodeSpec
from metarun.run import Run
from metarun.task import Batch, select

SPEC = EpisodeSpec(way=3, shot=8, query=4)
SETTINGS = {"columns": 6, "layers": 2, "units": 5, "clusters": 0.5}
WORDS = ["algo=pfn", "data=tables", "data.columns=6", "data.units=5", "net=mlp", "shot=8", "algo.width=8", "algo.heads=2"]


def make(split: str = "train", spec: EpisodeSpec = SPEC) -> TableEpisodes:
    return Tables(0, **SETTINGS).episodes(split, spec, 3)


def test_rows_are_grouped_and_classes_are_of_any_size() -> None:
    task = make().batch(range(300))
    x, y = task.context.support
    assert (x.shape, y.shape, task.query.x.shape) == ((300, 24, 6), (300, 24), (300, 12, 6))
    assert (y.diff(dim=1) >= 0).all()
    counts = inner.one_hot(y.flatten(), 3).unflatten(0, (300, 24)).sum(1)
    classes = (counts > 0).sum(1)
    assert set(classes.tolist()) == {2, 3}
    assert (counts.float().std(1) > 0).float().mean() > 0.8
    assert abs(counts.double().mean(0) / 24 - 1 / 3).max() < 0.05  # no label is likelier than another


def test_columns_beyond_a_tables_own_are_zeros() -> None:
    x = make().batch(range(300)).context.support.x
    moves = (x.std(1) > 0).sum(1)
    assert moves.min() >= 2
    assert len(set(moves.tolist())) > 3
    still = x[x.std(1)[:, None].expand_as(x) == 0]
    assert not still.any()


@pytest.mark.parametrize("clusters", [0.0, 1.0])
def test_classes_can_be_told_from_columns(clusters: float) -> None:
    """By the nearest of the classes' means: above whoever names the most frequent class, and not always right."""
    spec = EpisodeSpec(way=3, shot=30, query=20)
    episodes = Tables(0, **SETTINGS | {"clusters": clusters}).episodes("train", spec, 3)
    task = episodes.batch(range(200))
    right = []
    for i in range(200):
        (x, y), query = select(task, i).context.support, select(task, i).query
        scale = x.std(0).clamp(min=1e-6)
        means = inner.class_means(x / scale, y, 3)
        means[~inner.one_hot(y, 3).any(0)] = torch.inf
        right.append(float((torch.cdist(query.x / scale, means).nan_to_num(torch.inf).argmin(1) == query.y).float().mean()))
    trivial = episodes.bounds(200)["trivial"]
    assert np.mean(right) > trivial.mean() + 0.1
    assert np.mean(right) < 0.9


def test_an_episode_depends_on_seed_split_and_index_alone() -> None:
    together, alone = make().batch([7, 3]), make().batch([3])
    assert torch.equal(select(together, 1).context.support.x, select(alone, 0).context.support.x)
    assert len({make(split).sha256(4) for split in ("train", "val", "test")}) == 3


def test_bad_settings_are_refused(request: pytest.FixtureRequest) -> None:
    values = yaml.safe_load((request.config.rootpath / "conf/data/tables.yaml").read_text())
    assert set(values) == {"_target_", "name", *SETTINGS}
    with pytest.raises(UserError, match=r"way=6 classes do not come of data.units=5 units: choose data.units=6"):
        make(spec=EpisodeSpec(way=6, shot=2, query=2))
    with pytest.raises(UserError, match=r"did you mean 'test'"):
        make("tests")
    with pytest.raises(UserError, match=r"data.layers"):  # more would draw from the streams of others
        Run(small("data=tables", "algo=pfn", "net=mlp", "data.layers=11"))


@torch.no_grad()
def test_what_is_no_information_changes_nothing() -> None:
    """Units and offsets of columns, and columns that never move."""
    algorithm, tasks = in_float64(small(*WORDS), tasks=1)
    algorithm.eval()
    context, query, *_ = select(tasks, 0)
    (x, y), moves = context.support, context.support.x.std(0) > 0
    before = algorithm.predict(algorithm.begin(context), query.x).members

    units = torch.tensor([3.0, 1e-7, 1.0, 20.0, 7e5, 0.5]).double()

    def moved(rows: torch.Tensor) -> torch.Tensor:
        return torch.where(moves, rows * units - 4 * units, 17.0)

    after = algorithm.predict(algorithm.begin(context._replace(support=Batch(moved(x), y))), moved(query.x)).members
    torch.testing.assert_close(after, before, rtol=1e-7, atol=1e-9)


def test_columns_are_bent_as_scipy_does() -> None:
    """By the power of those in question after which they are the likeliest, which is near the likeliest of all."""
    stats = pytest.importorskip("scipy.stats")
    rows = torch.stack([random(80, seed=1), random(80, seed=2).exp(), -random(80, seed=3).exp(), random(80, seed=4).sign()], 1)
    columns, asked = columns_of(rows), random(9, 4, seed=5) * 2
    plain = (rows - rows.mean(0)) / rows.std(0, correction=0)
    each = {power: bend(plain, torch.tensor(power)) for power in POWERS}
    for power, bent in each.items():
        for column, ours in zip(plain.T, bent.T):
            np.testing.assert_allclose(ours, stats.yeojohnson(column.numpy(), power), rtol=1e-9)
    for i, column in enumerate(plain.T.numpy()):
        likelihoods = [stats.yeojohnson_llf(power, column) for power in POWERS]
        assert columns.power[i] == POWERS[np.argmax(likelihoods)]
        _, best = stats.yeojohnson(column)
        assert abs(float(columns.power[i]) - min(max(best, -2), 4)) < 0.5
    assert len({*columns.power.tolist()}) > 2
    known, queries = columns.looks(rows)[1], columns.looks(asked)[1]
    for i, power in enumerate(columns.power.tolist()):
        column = each[power][:, i]
        query = torch.from_numpy(stats.yeojohnson(((asked - rows.mean(0)) / rows.std(0, correction=0))[:, i].numpy(), power))
        for found, raw in ((known[:, i], column), (queries[:, i], query)):
            torch.testing.assert_close(found, ((raw - column.mean()) / column.std(correction=0)).clamp(-5, 5))


def test_columns_however_large_are_read() -> None:
    """Queries beyond all bounds and columns that do not move give numbers."""
    rows = torch.cat([random(20, 3, seed=1).float() * torch.tensor([1e30, 1e-30, 1.0]), torch.full((20, 1), 7e-30)], 1)
    columns = columns_of(rows)
    for look in (*columns.looks(rows), *columns.looks(torch.tensor([[3e38, -3e38, 1e20, -1e30], [-3e38, 1.0, -1e20, 7e-30]]))):
        assert look.isfinite().all()
        assert look.abs().max() <= 5
        assert not look[:, 3].any()
    assert columns.size == (4 / 3) ** 0.5


def test_logistic_regression_is_scikit_learns() -> None:
    sklearn = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    rows, asked, y = random(30, 4, seed=1), random(7, 4, seed=2), torch.arange(30) % 3
    rows[y == 1, 0] += 1
    linear = logistic(rows, y, 3)
    said = (asked @ linear.weights + linear.bias[:, None]).softmax(-1)
    theirs = [
        sklearn.LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=1000).fit(rows.numpy(), y.numpy()).predict_proba(asked.numpy())
        for penalty in PENALTIES
    ]
    torch.testing.assert_close(said, torch.from_numpy(np.stack(theirs)), rtol=0, atol=1e-4)
    wide = logistic(torch.cat([rows, torch.zeros(30, 30)], 1), y, 3)  # more columns than rows
    torch.testing.assert_close(wide.weights[:, :4], linear.weights, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(wide.evidence, linear.evidence)
    torch.testing.assert_close(linear.votes(asked), said)
    torch.testing.assert_close(believed([linear], [asked], torch.tensor(0.0)), said.mean(0))
    share = linear.evidence.exp() / linear.evidence.exp().sum()
    torch.testing.assert_close(believed([linear], [asked], torch.tensor(1.0)), torch.einsum("p,pnc->nc", share, said))
    other = logistic(rows / 3, y, 3)
    evidence = torch.cat([linear.evidence, other.evidence])
    both = torch.einsum("p,pnc->nc", evidence.exp() / evidence.exp().sum(), torch.cat([said, other.votes(asked / 3)]))
    torch.testing.assert_close(believed([linear, other], [asked, asked / 3], torch.tensor(1.0)), both)


@pytest.mark.parametrize(("n", "columns", "dtype"), [(40, 3, torch.float64), (6, 50, torch.float32), (3000, 4, torch.float32)])
def test_weights_of_logistic_regression_are_where_the_loss_is_flat(n: int, columns: int, dtype: torch.dtype) -> None:
    """However many columns there are for how few rows, and classes apart and not."""
    rows, y = random(n, columns, seed=3).to(dtype), torch.arange(n) % 3
    rows[:, 0] += (y == 1) * 5 + y * 0.1
    rows = (rows - rows.mean(0)) / rows.std(0)
    for penalty, weights, bias, _ in zip(PENALTIES, *logistic(rows, y, 3)):
        weights, bias = weights.double().requires_grad_(), bias.double().requires_grad_()
        loss = nn.functional.cross_entropy(rows.double() @ weights + bias, y, reduction="sum")
        loss = loss + penalty / 2 * weights.square().sum() + BIAS / 2 * bias.square().sum()
        for slope in torch.autograd.grad(loss, (weights, bias)):
            assert slope.abs().max() < 2e-4 * n


@pytest.mark.parametrize(("n", "rare"), [(200, 1), (1000, 1), (5000, 3)])
def test_a_rare_class_is_reached_in_so_few_steps(n: int, rare: int) -> None:
    """The loss is flat where the search ends."""
    rows, y = random(n, 4, seed=9), (torch.arange(n) < rare).long()
    rows[y == 1] += 4
    rows = (rows - rows.mean(0)) / rows.std(0)
    for penalty, weights, bias, _ in zip(PENALTIES, *logistic(rows, y, 2)):
        weights, bias = weights.requires_grad_(), bias.requires_grad_()
        loss = nn.functional.cross_entropy(rows @ weights + bias, y, reduction="sum")
        loss = loss + penalty / 2 * weights.square().sum() + BIAS / 2 * bias.square().sum()
        for slope in torch.autograd.grad(loss, (weights, bias)):
            assert slope.abs().max() < 1e-4


@pytest.mark.parametrize("way", [2, 3])
def test_evidence_is_the_integral_over_all_weights(way: int) -> None:
    """Of one column and two classes, summed on a grid: differences of weights and of biases have twice the variance of each."""
    rows, y = random(40, 1, seed=5), (random(40, seed=6) > 0).long()
    rows[y == 1] += 0.7
    slope, offset = torch.meshgrid(torch.linspace(-6, 6, 400).double(), torch.linspace(-6, 6, 400).double(), indexing="ij")
    signs = (2 * y - 1)[:, None, None]
    fit = nn.functional.logsigmoid(signs * (rows[..., None] * slope + offset)).sum(0)
    cell = 2 * math.log(12 / 399)
    for penalty, evidence in zip(PENALTIES, logistic(rows, y, way).evidence):
        prior = sum(-(value**2) * pull / 4 - math.log(4 * math.pi / pull) / 2 for value, pull in ((slope, penalty), (offset, BIAS)))
        assert float(evidence) == pytest.approx(float((fit + prior).flatten().logsumexp(0)) + cell, abs=0.1)


@pytest.mark.parametrize(("n", "columns"), [(40, 4), (12, 30)])
def test_a_discriminant_is_the_posterior_of_normal_distributions(n: int, columns: int) -> None:
    """Of one covariance, that of the rows and of ``pull`` rows more, whose own is the identity."""
    rows, asked, y = random(n, columns, seed=1), random(7, columns, seed=2), torch.arange(n) % 4 % 3
    rows[y == 1] += 1
    said = discriminant(rows, y, 3, torch.tensor(5.0, dtype=torch.float64)).logits(asked)
    means = torch.stack([rows[y == c].mean(0) for c in range(3)])
    scatter = sum(torch.outer(row - means[c], row - means[c]) for row, c in zip(rows, y))
    normal = torch.distributions.MultivariateNormal(means, (scatter + 5 * torch.eye(columns)) / (n + 5))
    joint = normal.log_prob(asked[:, None]) + torch.bincount(y).log()
    torch.testing.assert_close(said, joint.log_softmax(1))


def test_a_discriminant_is_scikit_learns() -> None:
    sklearn = pytest.importorskip("sklearn.discriminant_analysis", reason="scikit-learn is not installed")
    rows, asked, y = random(40, 4, seed=1), random(7, 4, seed=2), torch.arange(40) % 3
    rows[y == 1, 0] += 1
    theirs = sklearn.LinearDiscriminantAnalysis(solver="lsqr").fit(rows.numpy(), y.numpy()).predict_log_proba(asked.numpy())
    said = discriminant(rows, y, 3, torch.tensor(1e-9, dtype=torch.float64)).logits(asked)
    torch.testing.assert_close(said, torch.from_numpy(theirs), rtol=1e-6, atol=1e-6)


def test_linear_classifiers_rule_out_a_class_without_rows() -> None:
    linear = logistic(random(4, 20, seed=3), torch.tensor([0, 0, 2, 2]), 3)
    assert not linear.votes(random(5, 20, seed=4))[..., 1].any()
    told = discriminant(random(4, 20, seed=3), torch.tensor([0, 0, 2, 2]), 3, torch.tensor(2.0, dtype=torch.float64))
    assert not told.logits(random(5, 20, seed=4)).exp()[:, 1].any()


@torch.no_grad()
def test_linear_classifiers_come_with_a_query() -> None:
    """As codes of classes by their share in its token, and added to the logits."""
    algorithm, tasks = in_float64(small(*WORDS, "algo.views=2"), tasks=1)
    context, query, *_ = select(tasks, 0)
    state = algorithm.eval().begin(context)
    columns = columns_of(context.support.x)
    asked, known = columns.looks(query.x), columns.looks(context.support.x)
    linear = [logistic(look, context.support.y, 3) for look in known]
    belief = believed(linear, asked, algorithm.surety).clamp(min=math.exp(-SUREST)).log()
    told = discriminant(known[1], context.support.y, 3, algorithm.log_pull.exp()).logits(asked[1]).clamp(min=-SUREST)
    assert len({*belief.argmax(1).tolist()}) > 1
    algorithm.trust.copy_(torch.tensor([1.7, 0.6], dtype=torch.float64))
    algorithm.share.fill_(0.3)
    for said, view in zip(algorithm.predict(state, query.x).members, state.views):
        codes = algorithm.reader.unknown + belief.exp() @ view.shown.codes
        rows = columns.size * asked[1][:, view.columns]
        expected = 0.3 * algorithm.reader.answer(view.shown, rows, codes) + 1.7 * belief + 0.6 * told
        torch.testing.assert_close(said, expected, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_a_view_is_the_in_context_learner_on_standard_columns() -> None:
    algorithm, tasks = in_float64(small(*WORDS, "algo.views=3", "algo.linear=false"), tasks=1)
    context, query, *_ = select(tasks, 0)
    (x, y), members = context.support, algorithm.eval().predict(algorithm.begin(context), query.x).members
    assert members.shape == (3, len(query.y), 3)
    columns = columns_of(x)
    standard = [columns.looks(rows)[1] * (6 / (x.std(0) > 0).sum().double()).sqrt() for rows in (x, query.x)]
    for i, said in enumerate(members):
        key = inner.fold_in(context.key, i)
        order = inner.order(inner.fold_in(key, 1), 6)
        shown = algorithm.reader.begin(context._replace(key=key, support=Batch(standard[0][:, order], y)))
        torch.testing.assert_close(said, algorithm.reader.predict(shown, standard[1][:, order]), rtol=1e-9, atol=1e-12)
    algorithm.train()
    assert len(algorithm.begin(context).views) == 1


def test_it_learns_to_tell_the_classes_of_tables(tmp_path: Path) -> None:
    words = [*WORDS, "query=8", "algo.width=32", "algo.views=1", "trainer.iterations=150", "trainer.meta_batch=16", "optim.lr=0.003"]
    summary = train(small(*words, "trainer.val_every=150", "trainer.val_episodes=20", "trainer.test_episodes=100"), tmp_path)
    score, trivial = summary["test"]["accuracy"], summary["bounds"]["trivial"]
    assert score["mean"] - score["ci95"] > trivial["mean"] + 0.05
