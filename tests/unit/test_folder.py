"""The user's own pictures: layouts, splits, decoding, skipping, and one clear line for every mistake."""

import inspect
import itertools
import logging

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from metarun.data import folder as module
from metarun.data.folder import Folder, decode
from metarun.errors import UserError
from metarun.problem import EpisodeSpec

DEFAULTS = {
    "channels": 1,
    "size": 8,
    "invert": False,
    "val_fraction": 0.25,
    "test_fraction": 0.25,
    "split_seed": 0,
    "min_images": 2,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))


def make(root, seed=0, **changes):
    return Folder(seed, root=root if root is None else str(root), **{**DEFAULTS, **changes})


def paint(path, value=0, size=(8, 8), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


@pytest.fixture
def root(tmp_path):
    """Eight classes c0..c7 of three pictures; class i is painted in greys around 20 i."""
    for i in range(8):
        for j in range(3):
            paint(tmp_path / "data" / f"c{i}" / f"{j}.png", 20 * i + j)
    return tmp_path / "data"


def test_divides_classes(root):
    data = make(root)
    names = {split: part.names for split, part in data.splits.items()}
    assert [len(names[split]) for split in ("train", "val", "test")] == [4, 2, 2]
    assert sorted(itertools.chain(*names.values())) == [f"c{i}" for i in range(8)]
    assert data.input_shape == (1, 8, 8)
    assert data.classes == 4
    for part in data.splits.values():
        for name, start, count in zip(part.names, part.starts, part.counts, strict=True):
            values = part.images[start : start + count, 0, 0, 0]
            assert values.tolist() == [20 * int(name[1]) + j for j in range(3)]
    task = data.episodes("val", EpisodeSpec(way=2, shot=1, query=2), 0).batch(range(3))
    assert task.query.x.shape == (3, 4, 1, 8, 8)


def test_division_hangs_on_split_seed_alone(root):
    def division(**options):
        return {split: part.names for split, part in make(root, **options).splits.items()}

    assert division(seed=0) == division(seed=1)
    assert len({str(division(split_seed=s)) for s in range(4)}) > 1


def test_a_fraction_of_zero_or_one(root):
    assert list(make(root, val_fraction=0.0).splits) == ["train", "test"]
    assert list(make(root, val_fraction=0.0, test_fraction=1.0).splits) == ["test"]
    assert make(root, val_fraction=0.001).splits["val"].classes == 1


def test_given_splits(tmp_path):
    for split, classes in (("train", "abc"), ("val", "de"), ("test", "fg")):
        for name in classes:
            paint(tmp_path / "data" / split / name / "1.png")
            paint(tmp_path / "data" / split / name / "2.png")
    data = make(tmp_path / "data")
    assert {split: part.names for split, part in data.splits.items()} == {"train": [*"abc"], "val": [*"de"], "test": [*"fg"]}


def test_nested_classes_and_what_is_ignored(root):
    paint(root / "greek" / "alpha" / "1.png")
    paint(root / "greek" / "alpha" / "2.PNG")
    (root / "c0" / "notes.txt").write_text("no picture")
    (root / "c0" / ".hidden.png").write_text("no picture")
    (root / "c0" / ".thumbs").mkdir()
    (root / "__MACOSX").mkdir()
    (root / "readme.md").write_text("no class")
    (root / "c1" / "loop").symlink_to(root, target_is_directory=True)
    (root / "linked").symlink_to(root / "c2", target_is_directory=True)
    data = make(root)
    count = {name: n for part in data.splits.values() for name, n in zip(part.names, part.counts, strict=True)}
    assert count == {**{f"c{i}": 3 for i in range(8)}, "greek/alpha": 2, "linked": 3}


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "bmp", "webp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_formats(tmp_path, suffix, channels):
    paint(tmp_path / f"x.{suffix}", (200, 200, 200), (20, 30), "RGB")
    image = decode(tmp_path / f"x.{suffix}", channels, 8, invert=False)
    assert image.shape == (channels, 8, 8)
    assert image.dtype == np.uint8
    assert abs(image.astype(int) - 200).max() <= 3


def test_resizes_the_shorter_side_and_crops_about_the_centre(tmp_path):
    wide = np.zeros((16, 48), np.uint8)
    wide[:, 16:32] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    image = decode(tmp_path / "wide.png", 1, 8, invert=False)
    assert image[0, :, 1:-1].min() > 240
    assert decode(tmp_path / "wide.png", 1, 8, invert=True)[0, :, 1:-1].max() < 15


def test_exif_orientation_transparency_and_16_bits(tmp_path):
    half = Image.fromarray(np.repeat(np.array([[255, 0]], np.uint8), 8, 0).repeat(4, 1))  # left half light
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise: the light half comes on top
    half.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    image = decode(tmp_path / "turned.jpg", 1, 8, invert=False)[0]
    assert image[:3].min() > 200
    assert image[5:].max() < 50
    paint(tmp_path / "clear.png", (0, 0, 0, 0), mode="RGBA")
    assert decode(tmp_path / "clear.png", 1, 8, invert=False).min() == 255
    Image.fromarray(np.full((8, 8), 32768, np.uint16)).save(tmp_path / "deep.png")
    assert (decode(tmp_path / "deep.png", 1, 8, invert=False) == 128).all()


def test_broken_pictures_are_named_and_skipped(root, caplog):
    for i in range(5):
        (root / f"c{i}" / "broken.png").write_bytes(b"\x89PNG nothing")
    (root / "c5" / "nowhere.png").symlink_to(root / "absent.png")
    for _ in range(2):  # the second time out of the cache
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            data = make(root, val_fraction=0.0, test_fraction=1.0)
        assert caplog.messages == [
            "6 of 30 pictures cannot be read and are skipped: c0/broken.png, c1/broken.png, c2/broken.png, …",
        ]
        assert (data.splits["test"].counts == 3).all()
        assert data.splits["test"].images[:, 0, 0, 0].tolist() == [20 * i + j for i in range(8) for j in range(3)]


def test_decodes_once_until_a_file_changes(root, monkeypatch):
    first = make(root, val_fraction=0.0, test_fraction=1.0).splits["test"].images
    with monkeypatch.context() as patch:
        patch.setattr(module, "decode", lambda *_: pytest.fail("decoded again"))
        assert torch.equal(make(root, val_fraction=0.0, test_fraction=1.0).splits["test"].images, first)
    paint(root / "c0" / "0.png", 99, (9, 9))
    assert make(root, val_fraction=0.0, test_fraction=1.0).splits["test"].images[0, 0, 0, 0] == 99
    assert make(root, val_fraction=0.0, test_fraction=1.0, channels=3).input_shape == (3, 8, 8)


def test_no_root():
    with pytest.raises(UserError, match=r"needs data\.root=FOLDER, where FOLDER holds one folder of pictures per class"):
        make(None)


def test_root_is_missing_a_file_or_empty(tmp_path):
    with pytest.raises(UserError, match=r"absent does not exist; give data\.root="):
        make(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file is not a folder; give data\.root="):
        make(tmp_path / "file")
    paint(tmp_path / "loose" / "1.png")
    with pytest.raises(UserError, match=r"loose has no class folders; give data\.root="):
        make(tmp_path / "loose")


def test_an_empty_given_split(tmp_path):
    paint(tmp_path / "data" / "train" / "a" / "1.png")
    (tmp_path / "data" / "val").mkdir()
    with pytest.raises(UserError, match="val has no class folders"):
        make(tmp_path / "data")


def test_too_few_images(root):
    (root / "c3" / "0.png").unlink()
    (root / "c3" / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"class 'c3' has 2 readable pictures, but data\.min_images=3"):
        make(root, min_images=3)
    with pytest.raises(UserError, match=r"class 'c3' has 1 readable pictures, but data\.min_images=2; add pictures or remove"):
        make(root)
    (root / "empty").mkdir()
    with pytest.raises(UserError, match="class 'empty' has 0"):
        make(root)


def test_too_few_classes(tmp_path):
    for name in "ab":
        paint(tmp_path / "data" / name / "1.png")
    with pytest.raises(UserError, match="2 class folders are too few for the splits train, val, test; add classes or set"):
        make(tmp_path / "data")


def test_fractions_above_one(root):
    with pytest.raises(UserError, match=r"data\.val_fraction=0\.7 \+ data\.test_fraction=0\.7 is above 1"):
        make(root, val_fraction=0.7, test_fraction=0.7)


def test_a_class_in_two_splits(tmp_path):
    for split in ("train", "test"):
        paint(tmp_path / "data" / split / "cat" / "1.png")
    with pytest.raises(UserError, match="class 'cat' is in train and in test, but splits must not share classes"):
        make(tmp_path / "data")


def test_yaml_holds_every_argument(request):
    values = yaml.safe_load((request.config.rootpath / "conf/data/folder.yaml").read_text())
    assert values.pop("_target_") == "metarun.data.folder.Folder"
    assert values.pop("name") == "folder"
    assert set(values) == set(inspect.signature(Folder).parameters) - {"seed"}
    assert values["root"] is None
