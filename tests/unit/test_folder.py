"""The user's own pictures: layouts, splits, decoding, skipping, and one clear line for every mistake."""

import inspect
import itertools
import logging
import os

import numpy as np
import pytest
import torch
import yaml
from helpers import small
from PIL import Image

from metarun import experiment
from metarun.data import folder as module
from metarun.data.division import divide
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
    for part in data.splits.values():  # every image knows its file
        assert part.files == [f"{name}/{j}.png" for name in part.names for j in range(3)]
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


@pytest.mark.parametrize(("n", "val", "test"), [(2, 1, 1), (3, 2, 1), (5, 2, 3)])
def test_nothing_is_left_for_a_training_that_has_no_share(n, val, test):
    found = divide("abcde"[:n], "letters", 0.5, 0.5, 0, 0)
    assert {split: len(names) for split, names in found.items()} == {"val": val, "test": test}
    assert sorted(found["val"] + found["test"]) == [*"abcde"[:n]]


def test_given_splits(tmp_path):
    data = make(layout(tmp_path, train="a b c", val="d e", test="f g"))
    assert {split: part.names for split, part in data.splits.items()} == {"train": [*"abc"], "val": [*"de"], "test": [*"fg"]}


def test_nested_classes_links_and_what_is_passed_over(root, caplog):
    paint(root / "greek" / "alpha" / "1.png", 240)
    (root / "c0" / "notes.txt").write_text("no picture")
    (root / "c0" / ".hidden.png").write_text("no picture")
    (root / "c0" / ".thumbs").mkdir()
    (root / "__MACOSX").mkdir()
    (root / "readme.md").write_text("no class")
    (root / "c1" / "loop").symlink_to(root, target_is_directory=True)
    (root / "again").symlink_to(root / "c2", target_is_directory=True)
    for j in range(3):
        paint(root.parent / "elsewhere" / f"{j}.png", 200 + j)
    (root / "linked").symlink_to(root.parent / "elsewhere", target_is_directory=True)
    (root / "c3" / "@eaDir").mkdir()
    paint(root / "c3" / "@eaDir" / "thumbnail.jpg")
    paint(root / "greek" / "alpha" / "2.PNG", 250)
    with caplog.at_level(logging.INFO):
        data = make(root)
    count = {name: n for part in data.splits.values() for name, n in zip(part.names, part.counts, strict=True)}
    assert count == {**{f"c{i}": 3 for i in range(8)}, "greek/alpha": 2, "linked": 3}
    assert caplog.messages == [
        "passed over: again and 1 more: a link to a folder that is here already",
        "passed over: __MACOSX and 1 more: an operating system's own; c0/notes.txt and 1 more: no picture that Pillow reads",
    ]


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "jfif", "bmp", "webp", "tif", "tiff", "gif", "ppm"])
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
            "passed over: c0/broken.png and 4 more: not a picture, or damaged; c5/nowhere.png: a link to nothing",
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


def test_small_classes_are_left_out_and_named(root, caplog):
    (root / "c3" / "0.png").unlink()
    (root / "empty").mkdir()
    paint(root / "alone" / "1.png", 250)
    with caplog.at_level(logging.WARNING):
        data = make(root, min_images=3)
    assert caplog.messages == ["left out, as they have fewer than data.min_images=3 readable pictures: alone (1), c3 (2), empty (0)"]
    names = [name for part in data.splits.values() for name in part.names]
    assert sorted(names) == [f"c{i}" for i in range(8) if i != 3]


def test_a_class_whose_pictures_are_broken_is_left_out_of_its_split(root, caplog):
    """Which ones are readable is known after the division, which stays."""
    before = {split: part.names for split, part in make(root).splits.items()}
    lost = before["train"][1]
    for j in range(2):
        (root / lost / f"{j}.png").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        data = make(root)
    assert f"left out, as they have fewer than data.min_images=2 readable pictures: {lost} (1)" in caplog.messages
    assert {split: part.names for split, part in data.splits.items()} == {**before, "train": [n for n in before["train"] if n != lost]}
    for part in data.splits.values():
        for name, start, count in zip(part.names, part.starts, part.counts, strict=True):
            assert part.images[start : start + count, 0, 0, 0].tolist() == [20 * int(name[1]) + j for j in range(3)]


def test_a_split_without_a_class_that_is_large_enough(root):
    with pytest.raises(
        UserError, match=r"no class of data\.root has data\.min_images=4 readable pictures; the largest is 'c0' with 3: add"
    ):
        make(root, min_images=4)
    for name in make(root).splits["val"].names:
        for j in range(3):
            (root / name / f"{j}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"no class of val has data\.min_images=2 readable pictures; the largest is 'c\d' with 0"):
        make(root)


def test_too_few_classes(tmp_path):
    for i, name in enumerate("ab"):
        for j in range(2):
            paint(tmp_path / "data" / name / f"{j}.png", 2 * i + j)
    with pytest.raises(UserError, match="2 classes are too few for the splits train, val, test; add some or set"):
        make(tmp_path / "data")


def test_folds_test_every_class_once(root):
    tested = [make(root, fold=k).splits["test"].names for k in range(4)]
    assert sorted(itertools.chain(*tested)) == [f"c{i}" for i in range(8)]
    assert tested[0] == make(root).splits["test"].names == make(root, fold=4).splits["test"].names
    for k in range(4):
        names = [name for part in make(root, fold=k).splits.values() for name in part.names]
        assert sorted(names) == [f"c{i}" for i in range(8)]


def test_folders_within_a_class_folder(tmp_path):
    """``depth`` says how many folders name a class; by default every folder with pictures is one."""
    for value, (name, year) in enumerate(itertools.product("abcd", ("2021", "2022"))):
        for j in range(2):
            paint(tmp_path / "data" / name / year / f"{j}.png", 10 * value + j)
    assert sum(part.classes for part in make(tmp_path / "data").splits.values()) == 8
    data = make(tmp_path / "data", depth=1)
    assert sorted(name for part in data.splits.values() for name in part.names) == list("abcd")
    assert all((part.counts == 4).all() for part in data.splits.values())


def test_fractions_above_one(root):
    with pytest.raises(UserError, match=r"data\.val_fraction=0\.7 \+ data\.test_fraction=0\.7 is above 1"):
        make(root, val_fraction=0.7, test_fraction=0.7)


def test_a_class_in_two_splits(tmp_path):
    for split in ("train", "test"):
        paint(tmp_path / "data" / split / "cat" / "1.png")
    with pytest.raises(UserError, match="class 'cat' is in train and in test, but splits must not share classes"):
        make(tmp_path / "data")


def layout(folder, **splits):
    """Folders of splits in ``folder/data`` with classes of two pictures; no two pictures are equal."""
    base = folder / "data"
    for value, (split, name) in enumerate((split, name) for split, names in splits.items() for name in names.split()):
        for j in range(2):
            paint(base / split / name / f"{j}.png", 2 * value + j)
    return base


@pytest.mark.parametrize("names", ["train val test", "Train Val Test", "TRAINING valid TESTING", "train validation test", "train dev Test"])
def test_the_users_own_splits_go_by_many_names(tmp_path, names):
    base = layout(tmp_path, **dict(zip(names.split(), ("a b", "c d", "e f"), strict=True)))
    data = make(base)
    assert {split: part.names for split, part in data.splits.items()} == {"train": ["a", "b"], "val": ["c", "d"], "test": ["e", "f"]}


def test_a_folder_that_fits_no_split_is_refused_by_name(tmp_path):
    layout(tmp_path, train="a b", val="c d", test="e f", extra="g h")
    with pytest.raises(UserError, match=r"has test/, train/, val/ and beside them extra/, which fits no split: move it out of data\.root"):
        make(tmp_path / "data")


def test_two_folders_for_one_split_are_refused(tmp_path):
    layout(tmp_path, train="a b", val="c d", valid="e f")
    with pytest.raises(UserError, match="has val/ and valid/, both for the split val: keep one"):
        make(tmp_path / "data")


def test_a_split_that_is_not_there_says_how_to_get_it(root, tmp_path):
    spec = EpisodeSpec(way=2, shot=1, query=1)
    for data, split, line in (
        (
            make(layout(tmp_path / "given", train="a b", test="e f")),
            "val",
            r"only train, test; put val/ with classes of its own into data\.root",
        ),
        (make(root, val_fraction=0.0), "val", r"only train, test; set data\.val_fraction above 0"),
        (
            make(root, val_fraction=0.0, test_fraction=1.0),
            "train",
            r"only test; make data\.val_fraction \+ data\.test_fraction less than 1",
        ),
    ):
        with pytest.raises(UserError, match=f"these data have no {split} split, {line}"):
            data.episodes(split, spec, 0)


def test_a_class_may_be_called_train(tmp_path):
    """CIFAR-100 has one."""
    for value, name in enumerate(("train", "test", "bus", "tram", "ship")):
        for j in range(2):
            paint(tmp_path / "data" / name / f"{j}.png", 2 * value + j)
    assert sum(part.classes for part in make(tmp_path / "data").splits.values()) == 5


@pytest.mark.parametrize(("one", "other"), [("cat", "Cat"), ("STRASSE", "straße"), ("caf\u00e9", "cafe\u0301")])
def test_names_that_differ_in_capitals_only(tmp_path, caplog, one, other):
    layout(tmp_path / "two", train=f"{one} a", test=f"{other} b")
    with pytest.raises(
        UserError, match=f"class '{one}' is in train and '{other}', which differs in capitals only, in test, but splits must"
    ):
        make(tmp_path / "two" / "data")
    layout(tmp_path / "one", train=f"{one} {other}", test="a b")
    with caplog.at_level(logging.WARNING):
        make(tmp_path / "one" / "data")
    assert len(caplog.messages) == 1
    assert "differ in capitals only: merge them unless they are two" in caplog.messages[0]


def test_a_picture_in_two_splits_is_refused(tmp_path):
    """The same bytes, or other bytes of the same picture."""
    base = layout(tmp_path, train="a b", val="c d", test="e f")
    paint(base / "test" / "e" / "9.bmp", 0)  # as train/a/0.png
    with pytest.raises(UserError, match=r"^1 picture is in two splits, such as train/a/0\.png and test/e/9\.bmp: learners would be tested"):
        make(base)
    (base / "test" / "f" / "8.png").write_bytes((base / "val" / "c" / "1.png").read_bytes())
    with pytest.raises(UserError, match=r"^2 pictures are in two splits, such as "):
        make(base)


def test_linked_pictures_in_two_splits_are_refused(tmp_path):
    base = layout(tmp_path, train="a b", val="c d", test="e f")
    (base / "train" / "g").symlink_to(base / "test" / "e")
    with pytest.raises(UserError, match=r"^2 pictures are in two splits, such as train/g/0\.png and test/e/0\.png"):
        make(base)


def test_copies_within_a_split_are_counted_and_named(root, caplog):
    for name in ("c0", "c1"):
        for i in range(3):
            (root / name / f"copy{i}.png").write_bytes((root / name / "0.png").read_bytes())
    (root / "c2" / "wrong.png").write_bytes((root / "c0" / "0.png").read_bytes())
    with caplog.at_level(logging.WARNING):
        make(root, val_fraction=0.0, test_fraction=1.0)
    assert caplog.messages == [
        "6 pictures are twice in a class, such as c0/0.png and c0/copy0.png: support and query of an episode may be the same; "
        "remove one of each pair",
        "1 picture is in two classes of a split, such as c0/0.png (c0) and c2/wrong.png (c2): remove the wrong one",
    ]


def test_a_pipe_and_a_bomb_are_passed_over_with_the_reason(root, caplog):
    os.mkfifo(root / "c0" / "pipe.png")
    Image.new("1", (9000, 9000)).save(root / "c1" / "bomb.png")
    with caplog.at_level(logging.WARNING):
        make(root)
    assert caplog.messages == ["passed over: c0/pipe.png: not a regular file; c1/bomb.png: 81 megapixels, above the limit of 67"]


def test_a_picture_that_changes_in_place_is_noticed(root):
    """Same size, same modification time: only the time of the change itself differs."""
    path = root / "c0" / "0.bmp"
    for value in (99, 77):
        paint(path, value)
        os.utime(path, ns=(10**18, 10**18))
        assert make(root, val_fraction=0.0, test_fraction=1.0).splits["test"].images[0].unique().tolist() == [value]


def test_a_run_on_colour_is_not_for_grey_data(root, tmp_path):
    """It was told as "size mismatch for net.blocks.0.conv.weight"."""
    words = ["algo=protonet", "data=folder", f"data.root={root}", "data.size=16", "way=2", "shot=1", "query=1", "trainer.iterations=1"]
    for channels, other, line in (
        (3, 1, r"trained on images that are in colour \(3 channels\), but these are grey \(1 channel\): .* with data\.channels=3$"),
        (1, 3, r"trained on images that are grey \(1 channel\), but these are in colour \(3 channels\): .* with data\.channels=1$"),
    ):
        values = small(*words, f"data.channels={channels}")
        experiment.train(values, tmp_path / f"run{channels}")
        values["data"]["channels"] = other
        with pytest.raises(UserError, match=line):
            experiment.evaluate(values, tmp_path / f"run{channels}", "best", tmp_path / "eval")
    values = small(*words, "net.hidden=12")
    with pytest.raises(UserError, match=r"the checkpoint does not fit this configuration: net\.blocks\.0\.conv\.weight is "):
        experiment.evaluate(values, tmp_path / "run3", "best", tmp_path / "eval")


def test_yaml_holds_every_argument(request):
    values = yaml.safe_load((request.config.rootpath / "conf/data/folder.yaml").read_text())
    assert values.pop("_target_") == "metarun.data.folder.Folder"
    assert values.pop("name") == "folder"
    assert set(values) == set(inspect.signature(Folder).parameters) - {"seed"}
    assert values["root"] is None
