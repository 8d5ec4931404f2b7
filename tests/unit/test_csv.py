"""Tables of numbers: classes and regression tasks, their scaling in and out of training, and one clear line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import small

import metarun
from metarun import experiment
from metarun.config import inputs
from metarun.data.csv_classes import CsvClasses
from metarun.data.csv_regression import CsvRegression
from metarun.errors import UserError
from metarun.problem import EpisodeSpec
from metarun.task import select

SHARES = {"val_fraction": 0.25, "test_fraction": 0.25, "split_seed": 0, "fold": 0, "min_rows": 2, "standardise": True}


def classes(root, **changes) -> CsvClasses:
    return CsvClasses(0, root=str(root), **{"label": "label", "ignore": [], **SHARES, **changes})


def tasks(root, **changes) -> CsvRegression:
    return CsvRegression(0, root=str(root), **{"task": "task", "inputs": None, "targets": None, **SHARES, **changes})


@pytest.fixture
def flowers(tmp_path) -> Path:
    """Eight classes of ten rows; the first number of row j of class i is 1000 i + j, the second is noise, the third constant."""
    random = np.random.default_rng(0)
    lines = [f"{1000 * i + j},{random.normal():.4f},7,k{i},note {j}" for j in range(10) for i in range(8)]
    path = tmp_path / "flowers.csv"
    path.write_text("\n".join(["a,b,c,label,remark", *lines]))
    return path


@pytest.fixture
def waves(tmp_path) -> Path:
    """Twelve tasks of 30 rows: y1 = i x1 + 100 and y2 = x2 − i."""
    random = np.random.default_rng(0)
    lines = [f"t{i:02},{x:.4f},{z:.4f},{i * x + 100:.4f},{z - i:.4f}" for i in range(12) for x, z in random.normal(size=(30, 2))]
    path = tmp_path / "waves.csv"
    path.write_text("\n".join(["task,x1,x2,y1,y2", *random.permutation(lines)]))
    return path


def test_classes_are_divided_and_columns_standardised_by_the_training_rows(flowers):
    data = classes(flowers, ignore=["remark"])
    assert {split: part.classes for split, part in data.splits.items()} == {"train": 4, "val": 2, "test": 2}
    assert sorted(name for part in data.splits.values() for name in part.names) == [f"k{i}" for i in range(8)]
    assert data.input_shape == (3,)
    train = data.splits["train"].images
    torch.testing.assert_close(train.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-5, rtol=0)
    for split, part in data.splits.items():
        raw = data.scaling.back(part.images.double())
        for name, start, count in zip(part.names, part.starts, part.counts, strict=True):
            assert raw[start : start + count, 0].round().tolist() == [1000 * int(name[1]) + j for j in range(10)], split
    plain = classes(flowers, ignore=["remark"], standardise=False)
    assert plain.scaling is None
    assert plain.splits["train"].images[0, 2] == 7
    assert data.describe("val") == "2 classes, 20 rows of 3 numbers"


def test_a_folder_of_tables_is_divided_already(flowers, tmp_path):
    lines = flowers.read_text().splitlines()
    (tmp_path / "parts").mkdir()
    for split, which in (("train", "0123"), ("val", "45"), ("test", "67")):
        kept = [line for line in lines[1:] if line.split(",")[3][1] in which]
        (tmp_path / "parts" / f"{split}.csv").write_text("\n".join([lines[0], *kept]))
    data = classes(tmp_path / "parts", ignore=["remark"])
    assert {split: part.names for split, part in data.splits.items()}["val"] == ["k4", "k5"]
    (tmp_path / "parts" / "test.csv").write_text("a,b,d,label,remark\n1,2,3,k9,x\n1,2,4,k9,x")
    with pytest.raises(UserError, match=r"train\.csv and .*test\.csv have other columns \(c, d\): give them the same"):
        classes(tmp_path / "parts", ignore=["remark"])


def test_small_groups_are_left_out_and_named(flowers, caplog):
    with flowers.open("a") as file:
        file.write("\n1,2,3,rare,x")
    data = classes(flowers, ignore=["remark"])
    assert caplog.messages == ["classes left out, as they have fewer than data.min_rows=2 rows: rare (1)"]
    assert sum(part.classes for part in data.splits.values()) == 8


def test_episodes_of_points(waves):
    data = tasks(waves)
    assert (data.input_shape, data.kind.size, data.splits) == ((2,), 2, ["train", "val", "test"])
    assert data.describe("train") == "6 tasks, 180 rows of 2 inputs and 2 targets"
    episodes = data.episodes("train", EpisodeSpec(way=1, shot=5, query=7), 0)
    batch = episodes.batch(range(40))
    assert batch.context.support.x.shape == (40, 5, 2)
    assert batch.query.y.shape == (40, 7, 2)
    x, y = (torch.cat([part[0], part[1]], 1) for part in zip(batch.context.support, batch.query))
    x, y = data.scaling.back(x.double()), data.target_scaling.back(y.double())
    slopes = (y[..., 0] - 100) / x[..., 0]
    numbers = (x[..., 1] - y[..., 1]).round()
    assert (numbers == numbers[:, :1]).all()  # all points of an episode are of one task …
    ordinary = x[..., 0].abs() > 0.1
    assert ((slopes - numbers).abs()[ordinary] < 0.01).all()
    assert len(set(numbers[:, 0].tolist())) == 6  # … and every task comes
    assert all(len({tuple(row) for row in one.tolist()}) == 12 for one in x)  # distinct rows
    again = data.episodes("train", EpisodeSpec(way=1, shot=5, query=7), 0)
    assert torch.equal(again.batch([3]).query.x[0], select(batch, 3).query.x)
    assert again.sha256(9) == episodes.sha256(9) != data.episodes("train", EpisodeSpec(way=1, shot=5, query=7), 1).sha256(9)


def test_too_few_rows_of_a_task(waves):
    with pytest.raises(UserError, match=r"shot=20 \+ query=11 = 31 rows per task, but task 't\d\d' of the val split has 30; choose shot"):
        tasks(waves).episodes("val", EpisodeSpec(way=1, shot=20, query=11), 0)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("tsk,x,y\na,1,2", r"has no column task; did you mean 'tsk'"),
        ("task,x,y\na,1", r"line 2 is too short: it has nothing in the column y"),
        ("task,x,y\na,1,2,3", r"line 2 has more cells than the 3 columns"),
        ("task,x,y\na,1,nan", r"line 2: nan in the column y is not finite"),
        ("task,x,y\na,1,", r"line 2: '' in the column y is no number"),
        ("task,x,y\na,1,2\nb,inf,2", r"line 3: inf in the column x is not finite"),
        ("task,x,y\na,one,2", r"line 2: 'one' in the column x is no number"),
        ("task,x,y\n,1,2", r"line 2 has nothing in the column task"),
        ("task,x,z\na,1,2", r"has no column whose name begins with y: name those meant with data\.targets"),
        ("task,a,y\na,1,2", r"has no column whose name begins with x: name those meant with data\.inputs"),
        ("task,x,y\n", r"has no lines of numbers"),
        ("task,x,y\na,1,2\nb,1,2", r"none of the tasks has data\.min_rows=2 rows"),
        ("task,x,y\na,1,2\na,1,2\nb,1,2\nb,1,2", r"2 tasks are too few for the splits train, val, test"),
    ],
)
def test_every_mistake_names_file_and_line(tmp_path, content, line):
    (tmp_path / "points.csv").write_text(content)
    with pytest.raises(UserError, match=line) as told:
        tasks(tmp_path / "points.csv")
    assert "\n" not in str(told.value)


def test_files_that_are_not_there(tmp_path, flowers):
    for root, line in (
        (None, "data=csv needs data.root; give data.root=FILE.csv"),
        (tmp_path / "absent.csv", "does not exist"),
        (tmp_path / "empty", "holds no train.csv, val.csv or test.csv"),
        (tmp_path / "a.xlsx", "is no table by its name"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        (tmp_path / "a.xlsx").write_bytes(b"PK")
        with pytest.raises(UserError, match=line):
            CsvClasses(0, root=root and str(root), label="label", ignore=[], **SHARES)
    with pytest.raises(UserError, match=r"'note 0' in the column remark is no number"):
        classes(flowers)
    with pytest.raises(UserError, match=r"data\.ignore names the column remarks, which the table does not have; did you mean 'remark'"):
        classes(flowers, ignore=["remarks"])
    (tmp_path / "p.csv").write_text("task,x,y\na,1,2")
    with pytest.raises(UserError, match=r"data\.targets names the column y9"):
        tasks(tmp_path / "p.csv", targets=["y9"])


def test_lines_of_json(tmp_path):
    (tmp_path / "t.jsonl").write_text("\n".join(f'{{"label": "k{i % 8}", "a": {i}, "b": 0.5}}' for i in range(32)))
    assert classes(tmp_path / "t.jsonl").input_shape == (2,)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"label": "k", "a": 1%s}' % ("0" * 400), "line 1: 10* in the column a is not finite"),
        ('{"label": "k", "a": 1%s}' % ("0" * 5000), "line 1 is not JSON"),
        ('{"label": "k", "a": true}', "line 1: 'True' in the column a is no number"),
        ('{"label": {"k": 1}, "a": 1}', "line 1 has nothing in the column label"),
    ],
    ids=["400 digits", "5000 digits", "true", "an object"],
)
def test_lines_of_json_that_are_no_rows(tmp_path, line, message):
    (tmp_path / "T.JSONL").write_text(line)
    with pytest.raises(UserError, match=message):
        classes(tmp_path / "T.JSONL")


def test_a_run_on_classes_answers_raw_rows(flowers, tmp_path):
    """What is standardised in training is so in prediction."""
    words = ["data=csv", f"data.root={flowers}", "data.ignore=[remark]", "net=mlp", "net.norm=none", "algo=nearest", "way=2"]
    experiment.train(small(*words, "data.val_fraction=0.25", "data.test_fraction=0.25"), tmp_path / "run")
    model = metarun.load(tmp_path / "run", device="cpu")
    rows = np.array([[1000 * i + j, 0.0, 7.0] for i in (1, 2, 5) for j in range(4)])
    labels = [name for name in "abc" for _ in range(4)]
    fitted = model.adapt(rows[[0, 4, 8]], list("abc"))
    assert fitted.predict(rows) == labels
    fitted.export(tmp_path / "flowers.pt2")
    program = torch.export.load(tmp_path / "flowers.pt2", extra_files=(extra := {"metarun.json": ""})).module()
    torch.testing.assert_close(program(torch.from_numpy(rows).float()), fitted.probabilities(rows))
    assert json.loads(extra["metarun.json"])["inputs"] == [*model.form.inputs]
    torch.testing.assert_close(model.inputs(rows), classes(flowers, ignore=["remark"]).scaling(torch.from_numpy(rows)).float())


def test_a_run_on_tasks_answers_in_the_units_of_the_table(waves, tmp_path):
    words = ["data=csv_regression", f"data.root={waves}", "net=mlp", "algo=alpaca", "way=1", "shot=5", "query=5"]
    summary = experiment.train(small(*words, "trainer.iterations=200", "optim.lr=0.01"), tmp_path / "run")
    assert summary["test"]["mse"]["mean"] < 0.8  # in deviations of the targets: the mean would be about 1
    model = metarun.load(tmp_path / "run", device="cpu")
    random = np.random.default_rng(1)
    x = random.normal(size=(40, 2))
    y = np.stack([3 * x[:, 0] + 100, x[:, 1] - 3], 1)
    fitted = model.adapt(x[:25], y[:25])
    assert (fitted.predict(x[25:]).numpy() - y[25:]).std() < y[25:, 0].std()
    assert (fitted.predict(x[25:])[:, 0] - 100).abs().mean() < 5
    assert fitted.deviations(x[25:]).shape == (15, 2)
    program = tmp_path / "program.pt2"
    fitted.export(program)
    answered = torch.export.load(program).module()(torch.from_numpy(x[25:]).float())
    torch.testing.assert_close(answered, fitted.predict(x[25:]), rtol=1e-3, atol=1e-2)


def test_a_trained_learner_keeps_the_columns_of_its_table(waves, tmp_path, caplog):
    words = ["data=csv_regression", f"data.root={waves}", "net=mlp", "algo=alpaca", "way=1", "shot=5", "query=5"]
    experiment.train(small(*words, "trainer.iterations=2"), tmp_path / "run")
    x, y = np.random.default_rng(1).normal(size=(2, 20, 2))
    before = metarun.load(tmp_path / "run", device="cpu").adapt(x, y).predict(x)
    text = waves.read_text()
    heading, *lines = text.splitlines()
    columns = heading.split(",")
    a, b = (columns.index(name) for name in sorted(name for name in columns if name.startswith("x")))

    def written(exchange, power):
        rows = [heading.split(","), *(line.split(",") for line in lines)]
        for i, row in enumerate(rows):
            if exchange:
                row[a], row[b] = row[b], row[a]
            if i:
                row[a] = str(float(row[a]) ** power)
        waves.write_text("\n".join(map(",".join, rows)))

    written(exchange=False, power=3)
    assert torch.equal(metarun.load(tmp_path / "run", device="cpu").adapt(x, y).predict(x), before)
    with caplog.at_level("WARNING"):
        metarun.evaluate(tmp_path / "run")
    assert "the data of test have changed since this run began" in caplog.text
    written(exchange=True, power=1)
    assert torch.equal(metarun.load(tmp_path / "run", device="cpu").adapt(x, y).predict(x), before)
    with pytest.raises(UserError, match=r"the table has the columns x2, x1, and the run was trained with x1, x2: give it"):
        metarun.evaluate(tmp_path / "run")
    waves.unlink()
    assert torch.equal(metarun.load(tmp_path / "run", device="cpu").adapt(x, y).predict(x), before)
    waves.write_text(text)
    for damage in ('{"table": {"inputs": ["x1", "x2"]}}', "[" * 10_000, '{"table": {"inputs": [1, 2], "targets": ["y1", "y2"]}}'):
        inputs.path(tmp_path / "run").write_text(damage)  # as of an earlier version: the table is needed
        assert torch.equal(metarun.load(tmp_path / "run", device="cpu").adapt(x, y).predict(x), before)


def test_a_column_without_a_name_is_refused(tmp_path):
    """What a program has written before every line, such as its number, tells the classes of a sorted table."""
    (tmp_path / "t.csv").write_text(",a,b,label\n" + "".join(f"{i},{i % 3},{i % 2},{'pqr'[i // 4]}\n" for i in range(12)))
    with pytest.raises(UserError, match=r"t.csv has a column without a name, as of line numbers .*: name it, or remove it"):
        classes(tmp_path / "t.csv")
    assert classes(tmp_path / "t.csv", ignore=[""]).form.inputs == ("a", "b")
