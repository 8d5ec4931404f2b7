"""Lake's 20 one-shot runs: pairing, order, preprocessing and faults, on a small archive with drawings made here.
The label of a test image is checked against what is drawn on it, not against the file that says so."""

import inspect
import io
import random
import zipfile
from pathlib import Path

import pooch
import pytest
import torch
import yaml
from PIL import Image, ImageDraw

from metarun.config.schema import check
from metarun.data.omniglot import drawing
from metarun.data.omniglot_oneshot import OmniglotOneshot
from metarun.errors import UserError
from metarun.problem import EpisodeSpec

torch.set_num_threads(1)

CONF = yaml.safe_load((Path(__file__).parents[2] / "conf" / "data" / "omniglot_oneshot.yaml").read_text())
DEFAULTS = {key: value for key, value in CONF.items() if key not in ("_target_", "name")}


def stroke(kind: int, run: int, drawer: int) -> bytes:
    """Character ``kind`` of 20: a bar at its own height, drawn a little longer by the second drawer; 42 x 42, ink = 0."""
    image = Image.new("1", (42, 42), 1)
    ImageDraw.Draw(image).line((2, 2 * kind + 1, 20 + run % 8 + 8 * drawer, 2 * kind + 1), fill=0)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def runs() -> dict[str, bytes]:
    """All files of all_runs.zip; the test images of a run are in random order."""
    files = {}
    for run in range(1, 21):
        order = random.Random(run).sample(range(20), 20)
        lines = [
            f"run{run:02d}/test/item{item + 1:02d}.png run{run:02d}/training/class{kind + 1:02d}.png" for item, kind in enumerate(order)
        ]
        files[f"run{run:02d}/class_labels.txt"] = "\n".join(lines).encode() + b"\n"
        for place in range(20):
            files[f"run{run:02d}/training/class{place + 1:02d}.png"] = stroke(place, run, 0)
            files[f"run{run:02d}/test/item{place + 1:02d}.png"] = stroke(order[place], run, 1)
    return files


FILES = runs()


def write_zip(folder, files, top=""):
    with zipfile.ZipFile(folder / "all_runs.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(top + name, content)


def write_folder(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path):
    def offline(*_, **__):
        raise ConnectionError("no network in tests")

    monkeypatch.setattr(pooch, "retrieve", offline)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "user-cache")
    monkeypatch.delenv("METARUN_DATA", raising=False)


def load(root, **options):
    return OmniglotOneshot(0, **(DEFAULTS | {"root": root if root is None else str(root)} | options))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("oneshot")
    write_zip(root, FILES)
    return load(root)


@pytest.fixture(scope="module")
def episodes(data):
    return data.episodes("test", EpisodeSpec(way=5, shot=5, query=15), seed=0)  # the spec has no say here


def test_shapes_and_ranges(data, episodes):
    assert data.fixed_spec == EpisodeSpec(way=20, shot=1, query=1)
    assert data.input_shape == (1, 28, 28)
    assert episodes.length == 20
    task = episodes.batch(range(20))
    assert task.context.support.x.shape == task.query.x.shape == (20, 20, 1, 28, 28)
    assert task.context.support.x.dtype == torch.float32
    assert task.query.y.shape == (20, 20)
    assert task.query.y.dtype == torch.int64
    assert task.context.support.y.tolist() == [list(range(20))] * 20
    assert task.context.classes.tolist() == [list(range(20 * run, 20 * run + 20)) for run in range(20)]
    assert task.context.key.shape == (20,)
    assert len(set(task.context.key.tolist())) == 20
    assert 0 <= task.query.x.min() < task.query.x.mean() < 0.5 < task.query.x.max() <= 1


def test_labels_say_what_is_drawn(episodes):
    task = episodes.batch(range(20))
    row = torch.arange(28.0)
    height = [((batch.x.sum(-1) * row).sum(-1) / batch.x.sum((-1, -2))).squeeze(-1) for batch in (task.context.support, task.query)]
    nearest = (height[1][:, :, None] - height[0][:, None, :]).abs().argmin(-1)
    assert torch.equal(nearest, task.query.y)
    assert (task.query.y.sort(-1).values == torch.arange(20)).all()
    assert len({tuple(y) for y in task.query.y.tolist()}) == 20


def test_images_are_preprocessed_as_omniglot_and_in_order(episodes):
    task = episodes.batch([6])
    for place in range(20):
        for batch, name in ((task.context.support, f"training/class{place + 1:02d}"), (task.query, f"test/item{place + 1:02d}")):
            expected = torch.from_numpy(drawing(FILES[f"run07/{name}.png"], 28).copy()) / 255
            assert torch.equal(batch.x[0, place, 0], expected)


def test_episodes_do_not_depend_on_batching(episodes):
    together = episodes.batch([3, 17])
    for place, index in enumerate((3, 17)):
        alone = episodes.batch([index])
        assert torch.equal(alone.query.x[0], together.query.x[place])
        assert alone.context.key[0] == together.context.key[place]
    assert episodes.identity(range(20)) != episodes.identity(range(19, -1, -1))
    assert episodes.sha256(20) == episodes.sha256(20) != episodes.sha256(19)


def test_only_a_test_split(data):
    for split in ("train", "val"):
        with pytest.raises(UserError, match=f"no {split} split"):
            data.episodes(split, data.fixed_spec, 0)


@pytest.mark.parametrize("layout", ["nested zip", "folder", "nested folder", "loose"])
def test_every_layout_gives_the_same(tmp_path, episodes, layout):
    if layout == "nested zip":
        write_zip(tmp_path, FILES, top="all_runs/")
    else:
        write_folder(tmp_path / {"folder": "all_runs", "nested folder": "all_runs/all_runs", "loose": ""}[layout], FILES)
        write_folder(tmp_path, {"__MACOSX/run01/test/._item01.png": b"junk", "run01.txt": b"junk", "notes/run01/test/item21.png": b"junk"})
    found, expected = load(tmp_path).episodes("test", load(tmp_path).fixed_spec, 0).batch(range(20)), episodes.batch(range(20))
    assert torch.equal(found.query.x, expected.query.x)
    assert torch.equal(found.context.support.x, expected.context.support.x)
    assert torch.equal(found.query.y, expected.query.y)


def drop(name):
    return {key: value for key, value in FILES.items() if key != name}


LABELS = FILES["run05/class_labels.txt"].decode().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (drop("run05/class_labels.txt"), "run05/class_labels.txt is missing"),
        (drop("run05/test/item03.png"), "run05/class_labels.txt"),
        (drop("run05/training/class20.png"), "run05/class_labels.txt"),
        (FILES | {"run05/class_labels.txt": "".join(LABELS[:-1]).encode()}, "run05/class_labels.txt"),
        (FILES | {"run05/class_labels.txt": "".join([*LABELS[:-1], LABELS[0]]).encode()}, "run05/class_labels.txt"),
        (FILES | {"run05/class_labels.txt": "".join([*LABELS, LABELS[0]]).encode()}, "run05/class_labels.txt"),
        (FILES | {"run05/class_labels.txt": LABELS[0].split()[0].encode()}, "run05/class_labels.txt"),
        (FILES | {"run05/class_labels.txt": b"\xff\x00\xfe"}, "run05/class_labels.txt"),
        (FILES | {"run05/test/item21.png": stroke(0, 0, 0)}, "run05/class_labels.txt"),
        (FILES | {"run05/test/item03.png": b"not a picture"}, "run05/test/item03.png"),
        ({}, "run01/class_labels.txt is missing"),
    ],
)
def test_faults_are_one_clear_line(tmp_path, files, says):
    write_zip(tmp_path, files)
    with pytest.raises(UserError, match="is damaged") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)
    assert says in str(error.value)
    assert "all_runs.zip" in str(error.value)


def test_truncated_zip_is_one_clear_line(tmp_path):
    write_zip(tmp_path, FILES)
    (tmp_path / "all_runs.zip").write_bytes((tmp_path / "all_runs.zip").read_bytes()[:-2000])
    with pytest.raises(UserError, match="is damaged") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_absent_file_says_which_and_where(tmp_path):
    with pytest.raises(UserError, match=r"all_runs\.zip is not on this machine") as error:
        load(tmp_path)
    assert "\n" not in str(error.value)
    assert f"put it into {tmp_path}" in str(error.value)


def test_yaml_holds_exactly_the_options():
    options = list(inspect.signature(OmniglotOneshot.__init__).parameters.values())[2:]
    assert {option.name for option in options} == DEFAULTS.keys()
    assert check(OmniglotOneshot, DEFAULTS, "data.") == DEFAULTS
