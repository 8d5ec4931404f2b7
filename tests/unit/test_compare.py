"""Reading, grouping, pairing and drawing runs: against numbers taken by hand, and against damage of every kind."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from metarun.comparison import plots
from metarun.comparison.groups import differences, group
from metarun.comparison.paired import UnpairedError, pair
from metarun.comparison.runs import DamagedError, FinishedRun, collect, read
from metarun.comparison.tables import duration, latex, markdown, number, records, table
from metarun.comparison.view import view
from metarun.errors import UserError

BENCH = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "bench_compare.py"))
make_run, make_runs, DAMAGES = BENCH["make_run"], BENCH["make_runs"], BENCH["DAMAGES"]


def load(*folders):
    return [read(folder) for folder in folders]


def look(runs, metric=None, split=None, by=(), sort=None):
    return view(runs, metric, split, list(by), sort)


def edit(folder, **changes):
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | changes))


def configure(folder, old, new):
    text = (folder / "config.yaml").read_text()
    assert old in text
    (folder / "config.yaml").write_text(text.replace(old, new))


def test_every_damaged_run_of_a_large_sweep_is_named_and_none_is_fatal(tmp_path):
    broken = make_runs(tmp_path, 500, 50)
    assert len(broken) == 50
    assert set(broken.values()) == set(DAMAGES)
    found = collect([str(tmp_path)])
    reasons = dict(found.damaged)
    assert set(reasons) == set(broken)
    for folder, reason in broken.items():
        assert reasons[folder].startswith(reason)
    assert len(found.runs) == 450
    assert not found.unfinished
    shown = look(found.runs)
    assert sum(len(member.runs) for member in shown.groups) == 450


def test_nothing_heavy_is_imported(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", seed=1)
    code = (
        "import sys; from metarun.cli import compare; compare.run(compare.parser().read(sys.argv[1:])); "
        "sys.exit(' '.join({'torch', 'pydantic', 'omegaconf', 'matplotlib'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_search_is_recursive_natural_and_visits_each_run_once(tmp_path):
    for name in ("10_x", "2_x", "1_x"):
        make_run(tmp_path / "sweep" / name, seed=int(name[:-2]))
    make_run(tmp_path / "sweep" / "2_x" / "eval" / "0", seed=77)  # inside a run: only when named
    (tmp_path / "sweep" / "loop").symlink_to(tmp_path)
    (tmp_path / "sweep" / "multirun.yaml").write_text("x: 1")
    make_run(tmp_path / "sweep" / ".hidden", seed=78)
    found = collect([str(tmp_path), str(tmp_path / "sweep" / "*"), str(tmp_path / "sweep" / "2_x")])
    assert [run.folder.name for run in found.runs] == ["1_x", "2_x", "10_x"]
    named = collect([str(tmp_path / "sweep" / "2_x" / "eval")])
    assert [run.values["seed"] for run in named.runs] == [77]


def test_unfinished_runs_are_kept_apart(tmp_path):
    make_run(tmp_path / "done")
    (make_run(tmp_path / "going") / "summary.json").unlink()
    found = collect([str(tmp_path)])
    assert [path.name for path in found.unfinished] == ["going"]
    assert len(found.runs) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &x [1]\nb: [*x, *x]\n", "aliases"),
        ("a: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("- 1\n", "holds no configuration"),
        ("a: \x07\n", "not valid YAML"),
    ],
)
def test_a_strange_config_is_refused_without_executing_anything(tmp_path, text, reason):
    folder = make_run(tmp_path / "a")
    (folder / "config.yaml").write_text(text)
    with pytest.raises(DamagedError, match=reason):
        read(folder)


def test_a_config_in_another_encoding_is_damaged(tmp_path):
    folder = make_run(tmp_path / "a")
    (folder / "config.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(DamagedError, match="cannot be read"):
        read(folder)


def test_mean_std_over_seeds_and_ci_over_episodes(tmp_path):
    folders = [make_run(tmp_path / str(seed), seed=seed, score=0.6 + 0.1 * seed) for seed in (0, 1, 2)]
    (only,) = group(load(*folders))
    scores = [np.load(folder / "test_scores.npy").astype(float) for folder in folders]
    statistic = only.statistic("test")
    means = [score.mean() for score in scores]
    assert statistic.mean == pytest.approx(np.mean(means), abs=1e-6)
    assert statistic.std == pytest.approx(np.std(means, ddof=1), abs=1e-6)
    assert statistic.ci95 == pytest.approx(np.mean([1.96 * score.std() / 10 for score in scores]), abs=1e-6)
    assert (statistic.runs, statistic.episodes) == (3, 300)
    assert only.seeds == [0, 1, 2]


def test_a_seed_that_diverged_leaves_its_group_without_a_score(tmp_path):
    """Averaged over the others, a method that diverges would look better than it is."""
    runs = [make_run(tmp_path / f"a{seed}", "maml", seed=seed, score=0.9) for seed in range(3)]
    edit(runs[1], test={"accuracy": {"mean": None, "ci95": None, "n": 100}, "curve": []})
    steady = [make_run(tmp_path / f"b{seed}", "cnp", seed=seed, score=0.5) for seed in range(3)]
    shape = look(load(*runs, *steady))
    maml, cnp = sorted(shape.groups, key=lambda member: member.key["algo"], reverse=True)
    assert np.isnan(maml.statistic("test").mean)
    assert maml.statistic("val").runs == 3
    assert (cnp.statistic("test").runs, shape.is_best(maml, "test"), shape.groups[-1]) == (3, False, maml)
    assert "| nan | – |" in markdown(shape)
    assert [row["test_mean"] for row in records(shape)][-1] is None
    edit(runs[1], val={"accuracy": {"mean": None, "ci95": None, "n": 100}})
    assert read(runs[1]).metric == "accuracy", "a run without a score is a run"
    assert plots.pictures(look(load(*runs, *steady)))


def test_one_episode_has_no_interval(tmp_path):
    run = make_run(tmp_path / "a", "maml")
    summary = json.loads((run / "summary.json").read_text())
    edit(run, test=summary["test"] | {"accuracy": {"mean": 0.5, "ci95": 0.0, "n": 1}})
    assert "| 0.5000 | – |" in markdown(look(load(run)))


def test_evaluations_of_one_training_are_no_seeds(tmp_path):
    run = make_run(tmp_path / "run", "maml")
    (run / "checkpoints").mkdir(exist_ok=True)
    looks = [make_run(run / "eval" / str(i), "maml", seed=i + 1) for i in range(2)]
    shape = look(load(run, *looks))
    assert (shape.spread, [len(member.runs) for member in shape.groups]) == ("evaluations", [3])
    assert "± std over evaluations" in markdown(shape)
    again = make_run(run / "eval" / "5", "maml")  # of the run's own configuration, with another checkpoint
    assert [member.folder for member in look(load(run, *looks, again)).runs if member.values["seed"] == 0] == [run]


def test_methods_of_different_seeds_are_runs(tmp_path):
    runs = load(make_run(tmp_path / "a", "maml", seed=0), make_run(tmp_path / "b", "cnp", seed=1))
    shape = look(runs, by=["way"])
    assert (shape.spread, len(shape.groups)) == ("runs", 1)
    runs[0].values["net.sizes"], runs[1].values["net.sizes"] = "[40, 40]", "[20]"
    assert "\n{}[40, 40] & " in latex(look(runs, by=["net.sizes"])), "booktabs takes a bracket for a length"


def test_the_adaptation_curve_is_of_the_same_runs_at_every_step(tmp_path):
    def curve(run, means):
        points = [{"step": step, "mean": mean, "ci95": 0.1} for step, mean in enumerate(means)]
        summary = json.loads((run / "summary.json").read_text())
        edit(run, test=summary["test"] | {"curve": points})

    a, b = (make_run(tmp_path / name, "maml", seed=i) for i, name in enumerate("ab"))
    curve(a, [0.2, 0.4])
    curve(b, [0.2, 0.6, 0.9])
    (member,) = look(load(a, b)).groups
    assert [(step, pytest.approx(mean)) for step, mean, _ in plots._adaptation(member)] == [(0, 0.2), (1, 0.5)]
    curve(b, [0.2, None, 0.9])
    (member,) = look(load(a, b)).groups
    assert np.isnan(plots._adaptation(member)[1][1])


def test_one_seed_has_no_std(tmp_path):
    (only,) = group(load(make_run(tmp_path / "a")))
    assert only.statistic("test").std is None


def test_columns_are_what_differs_and_is_not_said_already(tmp_path):
    a = make_run(tmp_path / "a", "maml", shot=1, lr=0.001)
    b = make_run(tmp_path / "b", "maml", shot=5, lr=0.002)
    c = make_run(tmp_path / "c", "protonet", shot=5, lr=0.002, inner_lr=None)
    shown = look(load(a, b, c))
    assert list(shown.groups[0].key) == ["algo", "shot", "optim.lr"]  # neither episode.eval.shot, nor name, nor the inner_lr of maml alone
    keys = differences(shown.runs)
    assert {"algo", "shot", "episode.eval.shot", "algo.inner_lr", "optim.lr"} <= set(keys)
    assert not {"seed", "name", "run"} & set(keys)


def test_what_follows_from_the_data_is_no_column_but_what_differs_within_is(tmp_path):
    a, b = make_run(tmp_path / "a", data="glyphs"), make_run(tmp_path / "b", data="omniglot")
    configure(b, "size: 28", "size: 105")
    assert look(load(a, b)).columns == ["algo", "data"]
    c = make_run(tmp_path / "c", data="glyphs")
    configure(c, "size: 28", "size: 14")
    assert look(load(a, b, c)).columns == ["algo", "data", "data.size"]


def test_device_does_not_split_seeds_but_tells_two_equal_runs_apart(tmp_path):
    a, b, c = make_run(tmp_path / "a"), make_run(tmp_path / "b", seed=1), make_run(tmp_path / "c")
    for folder in (b, c):
        configure(folder, "device: auto", "device: cuda")
    assert len(group(load(a, b))) == 1
    groups = group(load(a, b, c))
    assert sorted(member.key["device"] for member in groups) == ["auto", "cuda"]


def test_a_key_that_older_runs_lack_is_shown_when_only_it_tells_groups_apart(tmp_path):
    folders = [make_run(tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 1), ("c", 0))]
    configure(folders[2], "  hidden: 32\n", "  hidden: 32\n  dropout: 0.5\n")
    assert [member.key for member in group(load(*folders))] == [{"algo": "maml", "net.dropout": None}, {"algo": "maml", "net.dropout": 0.5}]


def test_a_number_written_in_two_ways_is_one_number(tmp_path):
    a, b = make_run(tmp_path / "a", lr=1.0), make_run(tmp_path / "b", seed=1, lr=1)
    assert len(group(load(a, b))) == 1


def test_of_repetitions_the_latest_counts_but_two_named_runs_are_kept(tmp_path):
    folders = [make_run(tmp_path / name, seed=seed) for name, seed in (("old", 0), ("new", 0), ("other", 1))]
    os.utime(folders[0] / "summary.json", (1, 1))
    shown = look(load(*folders))
    assert sorted(run.folder.name for run in shown.runs) == ["new", "other"]
    assert len(look(load(*folders[:2])).groups) == 2


def test_best_of_each_block_follows_the_metric(tmp_path):
    low = make_run(tmp_path / "low", "maml", data="sinusoid", metric="mse", score=0.5)
    high = make_run(tmp_path / "high", "cnp", data="sinusoid", metric="mse", score=2.0)
    good = make_run(tmp_path / "good", "maml", score=0.9)
    poor = make_run(tmp_path / "poor", "cnp", score=0.6)
    shown = look(load(high, low, poor, good))
    winners = {member.runs[0].folder.name for member in shown.groups if shown.is_best(member, "test")}
    assert winners == {"low", "good"}
    assert [member.runs[0].folder.name for member in shown.groups] == ["good", "poor", "low", "high"]
    assert shown.metrics() == ["accuracy", "mse"]


def test_a_lone_group_is_not_called_the_best(tmp_path):
    shown = look(load(make_run(tmp_path / "a")))
    assert not shown.is_best(shown.groups[0], "test")


@pytest.mark.parametrize(
    ("metric", "higher"),
    [
        ("accuracy", True),
        ("mse", False),
        ("loss", False),
        ("query_loss", False),
        ("return", True),
        ("forgetting", False),
        ("weight_corrupt", False),
        ("weight_clean", True),
    ],
)
def test_which_way_is_better(metric, higher):
    run = FinishedRun(Path(), {}, {})
    assert run.higher_is_better(metric) is higher
    said = FinishedRun(Path(), {}, {"metric": metric, "higher_is_better": not higher})
    assert said.higher_is_better(metric) is not higher, "a summary knows its own score"
    assert said.higher_is_better("rival_adam") is not higher, "and rivals have the same"


def test_group_by_averages_over_everything_else(tmp_path):
    folders = [make_run(tmp_path / f"{lr}", lr=lr, score=score) for lr, score in ((0.1, 0.5), (0.2, 0.7))]
    shown = look(load(*folders), by=["algo"])
    assert shown.spread == "runs"
    assert len(shown.groups) == 1
    assert shown.groups[0].statistic("test").runs == 2
    assert look(load(*folders), by=["lr"]).columns == ["optim.lr"]


def test_sort_by_score_and_by_key_in_both_directions(tmp_path):
    runs = load(*(make_run(tmp_path / f"{lr}", lr=lr, score=score) for lr, score in ((0.1, 0.5), (0.2, 0.9), (0.3, 0.7))))

    def order(sort):
        return [member.key["optim.lr"] for member in look(runs, sort=sort).groups]

    assert order(None) == order("test") == order("val") == [0.2, 0.3, 0.1]
    assert order("-test") == [0.1, 0.3, 0.2]
    assert order("optim.lr") == order("lr") == [0.1, 0.2, 0.3]
    assert order("-lr") == [0.3, 0.2, 0.1]


def test_a_short_key_that_means_two_things_is_refused(tmp_path):
    folder = make_run(tmp_path / "a")
    configure(folder, "inner_steps: 1", "lr: 1")
    with pytest.raises(UserError, match=r"may be algo.lr or optim.lr"):
        look(load(folder), sort="lr")


def test_paired_difference_is_that_of_the_episodes(tmp_path):
    a, b = make_run(tmp_path / "a", "maml", score=0.62), make_run(tmp_path / "b", "protonet", score=0.6)
    result = pair(load(a), load(b))
    difference = np.load(a / "test_scores.npy").astype(float) - np.load(b / "test_scores.npy").astype(float)
    assert result.difference == pytest.approx(difference.mean())
    assert result.ci95 == pytest.approx(1.96 * difference.std() / 10)
    assert result.n == 100
    assert result.sign == "+"
    assert result.ci95 < 0.5 * read(a).statistics["test"]["accuracy"]["ci95"]  # the episodes' common difficulty has cancelled


def test_lower_mse_is_the_better_one(tmp_path):
    a = make_run(tmp_path / "a", "maml", metric="mse", score=1.0)
    b = make_run(tmp_path / "b", "cnp", metric="mse", score=2.0)
    assert pair(load(a), load(b)).sign == "+"
    assert pair(load(b), load(a)).sign == "-"
    assert pair(load(a), load(a)).sign == "="


def test_seeds_are_paired_with_their_own(tmp_path):
    a = [make_run(tmp_path / f"a{seed}", "maml", seed=seed, score=0.6) for seed in (0, 1, 2)]
    b = [make_run(tmp_path / f"b{seed}", "cnp", seed=seed, score=0.6) for seed in (1, 2, 3)]
    result = pair(load(*a), load(*b))
    scores = {folder.name: np.load(folder / "test_scores.npy").astype(float) for folder in a + b}
    by_hand = np.concatenate([scores["a1"] - scores["b1"], scores["a2"] - scores["b2"]])
    assert (result.difference, result.n) == (pytest.approx(by_hand.mean()), 200)


def test_runs_on_one_fixed_set_of_episodes_are_averaged_before(tmp_path):
    a = [make_run(tmp_path / f"a{seed}", "maml", seed=seed) for seed in (0, 1)]
    b = [make_run(tmp_path / f"b{seed}", "cnp", seed=seed) for seed in (0, 1, 2)]
    for folder in a + b:
        edit(folder, episodes_sha256="the fixed ones")
    assert pair(load(*a), load(*b)).n == 100


def _unpaired(a, b):
    with pytest.raises(UnpairedError) as caught:
        pair(load(a), load(b))
    return str(caught.value)


def test_what_cannot_be_paired_says_why(tmp_path):
    a = make_run(tmp_path / "a")
    assert "seed 0 against 1" in _unpaired(a, make_run(tmp_path / "seed", seed=1))
    assert "shot 1 against 5" in _unpaired(a, make_run(tmp_path / "shot", shot=5))
    moved = make_run(tmp_path / "moved", shot=5)
    edit(moved, episodes_sha256=read(a).summary["episodes_sha256"])  # which does not tell where the support ends
    assert "shot 1 against 5" in _unpaired(a, moved)
    assert "accuracy, the other by mse" in _unpaired(a, make_run(tmp_path / "mse", metric="mse"))
    (make_run(tmp_path / "none", "cnp") / "test_scores.npy").unlink()
    assert "no test_scores.npy" in _unpaired(a, tmp_path / "none")
    np.save(make_run(tmp_path / "few", "cnp") / "test_scores.npy", np.zeros(7))
    assert "100 episodes" in _unpaired(a, tmp_path / "few")
    (make_run(tmp_path / "cut", "cnp") / "test_scores.npy").write_bytes(b"\x93NUMPY")
    assert "cannot be read" in _unpaired(a, tmp_path / "cut")
    np.save(make_run(tmp_path / "pickle", "cnp") / "test_scores.npy", np.array([{}] * 100), allow_pickle=True)
    assert "cannot be read" in _unpaired(a, tmp_path / "pickle")
    np.save(make_run(tmp_path / "inf", "cnp") / "test_scores.npy", np.full(100, np.inf))
    assert "not finite" in _unpaired(a, tmp_path / "inf")
    edit(make_run(tmp_path / "untested", "cnp"), test=None, episodes_sha256=None)
    assert "no test result" in _unpaired(a, tmp_path / "untested")


def test_groups_without_pairs_have_no_distance_to_the_best(tmp_path):
    a, b, c = make_run(tmp_path / "a", score=0.9), make_run(tmp_path / "b", "cnp"), make_run(tmp_path / "c", "rn", seed=4)
    shown = look(load(a, b, c))
    assert {shown.groups[i].key["algo"] for i in shown.versus} == {"cnp"}
    assert not look(load(a, b, c), metric="loss").versus  # scores are kept for the main metric only


def test_numbers_for_people():
    assert number(0.93456) == "0.9346"
    assert number(0.0) == "0.0000"
    assert number(2.75e22) == "2.75e+22"
    assert number(0.00002) == "2e-05"
    assert number(0.00002, like=0.5) == "0.0000"
    assert [duration(seconds) for seconds in (3.21, 600, 7200)] == ["3.2 s", "10.0 min", "2.0 h"]


def sweep(folder, **settings):
    """Runs over the product of settings, for two seeds."""
    combinations = [{}]
    for name, values in settings.items():
        combinations = [{**one, name: value} for one in combinations for value in values]
    for i, one in enumerate(combinations):
        for seed in (0, 1):
            make_run(folder / f"{i}-{seed}", seed=seed, score=0.5 + 0.02 * i + 0.03 * seed, **one)
    return collect([str(folder)]).runs


CURVES = ["learning_curves", "adaptation_curves"]


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"algo": ["maml", "fomaml"]}, CURVES),
        ({"shot": [1, 5], "way": [5, 20]}, [*CURVES, "score_over_shot", "score_over_way"]),
        ({"lr": [1e-4, 1e-3, 1e-2]}, [*CURVES, "hyperparameters"]),
        ({"lr": [1e-4, 1e-3], "inner_lr": [0.1, 0.2]}, [*CURVES, "hyperparameters"]),
        ({"algo": ["maml", "fomaml"], "lr": [1e-4, 1e-3], "inner_lr": [0.1, None], "hidden": [8, 16]}, [*CURVES, "hyperparameters"]),
        ({"metric": ["mse"], "data": ["sinusoid"], "shot": [5, 10]}, [*CURVES, "score_over_shot"]),
    ],
)
def test_the_pictures_that_the_runs_have_data_for(tmp_path, settings, names):
    made = plots.pictures(look(sweep(tmp_path, **settings)))
    assert [picture.name for picture in made] == names
    for picture in made:
        picture.figure.savefig(tmp_path / "x.png")  # layout and glyph warnings are errors here


def test_hyperparameter_kinds(tmp_path):
    line, heat, parallel = (
        plots.pictures(look(sweep(tmp_path / str(i), **settings)))[-1]
        for i, settings in enumerate(
            ({"lr": [1e-4, 1e-3, 1e-2]}, {"lr": [1e-4, 1e-3], "inner_lr": [0.1, 0.2]}, {"lr": [1, 2], "inner_lr": [1, 2], "hidden": [1, 2]})
        )
    )
    assert line.figure.axes[0].get_xscale() == "log"
    (image,) = heat.figure.axes[0].images
    assert image.get_array().shape == (2, 2)
    lines = [line for line in parallel.figure.axes[0].lines if len(line.get_xdata()) == 4]
    assert len(lines) == 8


def test_the_learning_curve_is_the_mean_with_the_std_over_seeds(tmp_path):
    runs = sweep(tmp_path, algo=["maml"])
    (axis,) = plots.learning_curves(look(runs)).figure.axes
    solid = next(line for line in axis.lines if line.get_label() == "maml")
    values = np.array([[point["accuracy"] for point in run.metrics() if point["split"] == "val"] for run in runs])
    np.testing.assert_allclose(solid.get_ydata(), values.mean(0))
    (band,) = axis.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.max() == pytest.approx((values.mean(0) + values.std(0, ddof=1)).max())


def test_a_single_run_has_its_own_interval_as_the_band(tmp_path):
    make_run(tmp_path / "a")
    (axis,) = plots.learning_curves(look(collect([str(tmp_path)]).runs)).figure.axes
    heights = axis.collections[0].get_paths()[0].vertices[:, 1]
    top = max(point["accuracy"] + 0.01 for point in read(tmp_path / "a").metrics() if point["split"] == "val")
    assert heights.max() == pytest.approx(top)


def test_cut_or_missing_metrics_cost_nothing_but_points(tmp_path):
    cut = make_run(tmp_path / "cut")
    text = (cut / "metrics.jsonl").read_text()
    (cut / "metrics.jsonl").write_text(text[: len(text) // 2] + '\n[1]\nnull\n{"step": "x"}')
    (make_run(tmp_path / "gone", seed=1) / "metrics.jsonl").unlink()
    shown = look(collect([str(tmp_path)]).runs)
    assert "learning_curves" in [picture.name for picture in plots.pictures(shown)]
    (cut / "metrics.jsonl").write_text("")
    assert "learning_curves" not in [picture.name for picture in plots.pictures(shown)]


def test_looks_are_distinct_and_stay_the_same(tmp_path):
    shown = look(sweep(tmp_path, lr=[1e-4, 1e-3, 1e-2, 1e-1], inner_lr=[0.1, 0.2], shot=[1, 5]))
    looks = plots.looks_of(shown)
    assert len(set(looks.values())) == len(looks) == 6  # of 8 groups, the best are drawn


def test_labels_are_as_short_as_the_panel_allows(tmp_path):
    runs = sweep(tmp_path, algo=["maml", "protonet"], lr=[1e-3, 1e-2], hidden=[8, 16], shot=[1, 5])
    shown = look([run for run in runs if run.values["shot"] == 1 or run.values["net.hidden"] == 8 or run.values["algo"] == "maml"])
    one, five = plots.panels_of(shown).values()
    assert "maml, hidden 16, lr 0.01" in {*one.values(), *five.values()}
    assert "protonet, lr 0.01" in five.values(), "only one width there"
    alone = look([run for run in runs if run.values["optim.lr"] == 1e-3 and run.values["net.hidden"] == 8])
    assert [*plots.looks_of(alone)] == ["protonet", "maml"], "nothing else differs"


def test_parallel_coordinates_have_the_axes_that_matter(tmp_path):
    random = np.random.default_rng(0)
    for i in range(40):
        run = make_run(tmp_path / str(i), lr=10 ** random.uniform(-4, -1), hidden=int(random.integers(4, 64)))
        knobs = {f"knob{k}": float(random.uniform()) for k in range(20)}
        configure(run, "  hidden:", "".join(f"  {name}: {value}\n" for name, value in knobs.items()) + "  hidden:")
        good = 0.5 - (knobs["knob7"] - 0.5) ** 2 + 0.3 * knobs["knob13"] + 0.01 * random.normal()
        edit(run, val={"accuracy": {"mean": good, "ci95": 0.01, "n": 50}})
    picture = plots.hyperparameters(look(collect([str(tmp_path)]).runs))
    names = [label.get_text() for label in picture.figure.axes[0].get_xticklabels()]
    assert len(names) == 8
    assert {"knob7", "knob13", "val accuracy"} <= set(names)
    assert picture.figure.get_figwidth() < 15
    assert "Of 22 settings, the 7 on which most of the score hangs" in picture.caption


def test_nothing_valid_is_an_error_with_the_first_reason(tmp_path):
    DAMAGES["summary.json is empty"](make_run(tmp_path / "a"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with pytest.raises(UserError, match=r"2 damaged runs .*a: summary.json is empty"):
        collect([str(tmp_path)])
    (tmp_path / "nothing" / "here").mkdir(parents=True)
    (tmp_path / "nothing" / "file").write_text("")
    shutil.rmtree(tmp_path / "nothing" / "here")
    with pytest.raises(UserError, match="no runs"):
        collect([str(tmp_path / "nothing")])


def test_a_foreign_summary_steers_no_terminal_and_is_no_html(tmp_path):
    make_run(tmp_path / "a")
    edit(tmp_path / "a", algo="maml\x1b[2J<img src=x onerror=alert(1)>&")
    shown = look(load(tmp_path / "a"))
    cells = [cell.text for row in table(shown)[1] for cell in row]
    assert all(cell.isprintable() for cell in cells)
    text = markdown(shown)
    assert "&lt;img src=x onerror=alert(1)>&amp;" in text
    assert "<" not in text


TERABYTES = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000,), }"


@pytest.mark.parametrize("content", [TERABYTES, b"\x80\x04."])
def test_hostile_scores_are_damage(tmp_path, content):
    make_run(tmp_path / "a")
    (tmp_path / "a" / "test_scores.npy").write_bytes(content.ljust(127) + b"\n")
    with pytest.raises(DamagedError, match=r"test_scores\.npy cannot be read"):
        read(tmp_path / "a").scores()
