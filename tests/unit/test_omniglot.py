"""Omniglot's splits, preprocessing, and every way in which its files can be absent or wrong, on archives made here.
The archives have the true alphabets and character counts; the drawings are tiny, and two a character where counts are all that matters."""

import inspect
import io
import itertools
import os
import zipfile
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch
import yaml
from PIL import Image

from metarun.config.schema import check
from metarun.data import omniglot
from metarun.data.archive import Archive, obtain
from metarun.data.omniglot import BACKGROUND, EVALUATION, SMALL1, SMALL2, Omniglot, drawing
from metarun.errors import UserError
from metarun.problem import EpisodeSpec

torch.set_num_threads(1)

ALPHABETS = {
    BACKGROUND: {
        "Alphabet_of_the_Magi": 20,
        "Anglo-Saxon_Futhorc": 29,
        "Arcadian": 26,
        "Armenian": 41,
        "Asomtavruli_(Georgian)": 40,
        "Balinese": 24,
        "Bengali": 46,
        "Blackfoot_(Canadian_Aboriginal_Syllabics)": 14,
        "Braille": 26,
        "Burmese_(Myanmar)": 34,
        "Cyrillic": 33,
        "Early_Aramaic": 22,
        "Futurama": 26,
        "Grantha": 43,
        "Greek": 24,
        "Gujarati": 48,
        "Hebrew": 22,
        "Inuktitut_(Canadian_Aboriginal_Syllabics)": 16,
        "Japanese_(hiragana)": 52,
        "Japanese_(katakana)": 47,
        "Korean": 40,
        "Latin": 26,
        "Malay_(Jawi_-_Arabic)": 40,
        "Mkhedruli_(Georgian)": 41,
        "N_Ko": 33,
        "Ojibwe_(Canadian_Aboriginal_Syllabics)": 14,
        "Sanskrit": 42,
        "Syriac_(Estrangelo)": 23,
        "Tagalog": 17,
        "Tifinagh": 55,
    },
    EVALUATION: {
        "Angelic": 20,
        "Atemayar_Qelisayer": 26,
        "Atlantean": 26,
        "Aurek-Besh": 26,
        "Avesta": 26,
        "Ge_ez": 26,
        "Glagolitic": 45,
        "Gurmukhi": 45,
        "Kannada": 41,
        "Keble": 26,
        "Malayalam": 47,
        "Manipuri": 40,
        "Mongolian": 30,
        "Old_Church_Slavonic_(Cyrillic)": 45,
        "Oriya": 46,
        "Sylheti": 28,
        "Syriac_(Serto)": 23,
        "Tengwar": 25,
        "Tibetan": 42,
        "ULOG": 26,
    },
    SMALL1: {"Balinese": 24, "Early_Aramaic": 22, "Greek": 24, "Korean": 40, "Latin": 26},
    SMALL2: {"Greek": 24, "Japanese_(katakana)": 47, "Latin": 26, "Sanskrit": 42, "Tagalog": 17},
}
CONF = yaml.safe_load((Path(__file__).parents[2] / "conf" / "data" / "omniglot.yaml").read_text())
DEFAULTS = {key: value for key, value in CONF.items() if key not in ("_target_", "name")}


def png(seed: int, side: int = 12) -> bytes:
    """A black stroke on white, as Omniglot has it: one bit a pixel, ink = 0."""
    pixels = np.full((side, side), 255, dtype=np.uint8)
    rng = np.random.default_rng(seed)
    pixels[rng.integers(1, side - 1), 1:-1] = 0
    pixels[2:-2, rng.integers(1, side - 1)] = 0
    file = io.BytesIO()
    Image.fromarray(pixels).convert("1").save(file, "PNG")
    return file.getvalue()


PNGS = [png(seed) for seed in range(50)]


def members(name, drawers, top=True):
    """Pairs (name in the archive, content)."""
    number = itertools.count()
    for alphabet, characters in ALPHABETS[name].items():
        for character in range(1, characters + 1):
            for drawer in range(1, drawers + 1):
                path = f"{alphabet}/character{character:02d}/{character:04d}_{drawer:02d}.png"
                yield (f"{name}/{path}" if top else path), PNGS[next(number) % 50]


def write_zip(folder, name, files):
    with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
        archive.mkdir(name)
        for path, content in files:
            archive.writestr(path, content)
    return folder / f"{name}.zip"


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """A folder with all four archives, two drawings a character."""
    folder = tmp_path_factory.mktemp("omniglot")
    for name in ALPHABETS:
        write_zip(folder, name, members(name, 2))
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def isolated(monkeypatch, cache, tmp_path):
    """Two drawers, own caches, and no way to the network."""

    def offline(*_, **__):
        raise ConnectionError("no network in tests")

    monkeypatch.setattr(omniglot, "DRAWERS", 2)
    monkeypatch.setattr(pooch, "retrieve", offline)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "user-cache" / name)
    monkeypatch.setenv("METARUN_CACHE", str(cache))
    monkeypatch.delenv("METARUN_DATA", raising=False)


def load(root, seed=0, **options):
    return Omniglot(seed, **(DEFAULTS | {"size": 8, "root": root if root is None else str(root)} | options))


def upright(split):
    return [name for name in split.names if "/rot" not in name]


def per_alphabet(split):
    names = [name.split("/")[0] for name in upright(split)]
    return {name: names.count(name) for name in names}


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_alphabets_have_the_published_totals():
    assert {name: sum(counts.values()) for name, counts in ALPHABETS.items()} == omniglot.CHARACTERS
    assert [len(ALPHABETS[name]) for name in (BACKGROUND, EVALUATION, SMALL1, SMALL2)] == [30, 20, 5, 5]


@pytest.mark.parametrize("split", ["small", "minimal1", "minimal2", "vinyals", "lake", "random"])
def test_split_sizes_disjoint_and_rotated(archives, split):
    data = load(archives, split=split)
    names = {part: upright(found) for part, found in data.splits.items()}
    assert {part: len(found) for part, found in names.items()} == omniglot.SIZES[split]
    assert len(set().union(*names.values())) == sum(map(len, names.values()))
    for found in data.splits.values():
        assert found.classes == len(set(found.names)) == 4 * len(upright(found))
        assert found.images.shape == (2 * found.classes, 1, 8, 8)
        assert found.images.dtype == torch.uint8
        assert found.starts.tolist() == list(range(0, 2 * found.classes, 2))
        assert set(found.counts.tolist()) == {2}
    assert data.input_shape == (1, 8, 8)
    assert data.classes == data.splits["train"].classes


def test_vinyals_is_the_published_split(archives):
    splits = load(archives, split="vinyals").splits
    test = {"Gurmukhi": 4} | {name: count for name, count in ALPHABETS[EVALUATION].items() if name > "Gurmukhi"}
    assert per_alphabet(splits["test"]) == test
    assert upright(splits["test"])[:4] == [f"Gurmukhi/character{number}" for number in (42, 43, 44, 45)]
    val = {"Armenian": 41, "Bengali": 46, "Early_Aramaic": 22, "Hebrew": 22, "Mkhedruli_(Georgian)": 41}
    assert per_alphabet(splits["val"]) == val
    everything = ALPHABETS[BACKGROUND] | ALPHABETS[EVALUATION]
    train = {name: count for name, count in everything.items() if name not in val and name not in test} | {"Gurmukhi": 41}
    assert per_alphabet(splits["train"]) == train


def test_lake_and_small_keep_alphabets_apart(archives):
    lake = {part: set(per_alphabet(split)) for part, split in load(archives, split="lake").splits.items()}
    assert lake["test"] == set(ALPHABETS[EVALUATION])
    assert lake["train"] | lake["val"] == set(ALPHABETS[BACKGROUND])
    assert lake["val"] == {"Ojibwe_(Canadian_Aboriginal_Syllabics)", "Sanskrit", "Syriac_(Estrangelo)", "Tagalog", "Tifinagh"}
    small = {part: set(per_alphabet(split)) for part, split in load(archives, split="small").splits.items()}
    assert small["train"] == {"Balinese", "Greek", "Japanese_(katakana)", "Korean", "Sanskrit"}
    assert small["val"] == {"Early_Aramaic"}
    assert small["test"] == {"Latin", "Tagalog"}


def test_minimal_trains_on_one_set_and_tests_on_the_other_if_there(archives, tmp_path):
    both = load(archives, split="minimal1").splits
    assert per_alphabet(both["val"]) == {"Balinese": 4, "Early_Aramaic": 4, "Greek": 4, "Korean": 8, "Latin": 5}
    assert per_alphabet(both["test"]) == {"Japanese_(katakana)": 47, "Sanskrit": 42, "Tagalog": 17}
    assert per_alphabet(load(archives, split="minimal2").splits["test"]) == {"Balinese": 24, "Early_Aramaic": 22, "Korean": 40}
    (tmp_path / f"{SMALL1}.zip").symlink_to(archives / f"{SMALL1}.zip")
    alone = load(tmp_path, split="minimal1")
    assert alone.splits.keys() == {"train", "val"}
    assert alone.splits["train"].names == both["train"].names
    with pytest.raises(UserError, match="no test split"):
        alone.episodes("test", EpisodeSpec(way=5, shot=1, query=1), 0)


def test_random_depends_on_the_seed_and_nothing_else_does(archives):
    names = [load(archives, seed, split="random").splits["test"].names for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]
    assert len(set(upright(load(archives, split="random").splits["train"]))) == 1100
    assert load(archives, 0, split="vinyals").splits["test"].names == load(archives, 1, split="vinyals").splits["test"].names


def test_rotated_classes_are_exact_quarter_turns_in_order(archives):
    split = load(archives, split="small").splits["val"]
    plain = load(archives, split="small", rotate_val=False).splits["val"]
    assert split.names[: plain.classes] == plain.names
    images = split.images.reshape(4, plain.classes, 2, 1, 8, 8)
    assert torch.equal(images[0].reshape(plain.images.shape), plain.images)
    for turn in (1, 2, 3):
        assert split.names[turn * plain.classes :][: plain.classes] == [f"{name}/rot{90 * turn:03d}" for name in plain.names]
        assert torch.equal(images[turn], torch.rot90(images[0], turn, (-2, -1)))
        assert not torch.equal(images[turn], images[0])


def test_each_split_has_its_own_rotation_switch(archives):
    for part in ("train", "val", "test"):
        splits = load(archives, split="small", **{f"rotate_{part}": False}).splits
        assert {name: split.classes // len(upright(split)) for name, split in splits.items()} == {"train": 4, "val": 4, "test": 4} | {
            part: 1
        }


def test_a_test_within_alphabets_asks_about_one_at_a_time_at_one_angle(archives):
    data = load(archives, split="small", within_alphabet=True)
    names = np.array(data.splits["test"].names)
    episodes = data.episodes("test", EpisodeSpec(way=5, shot=1, query=1), 0)
    seen = [{(name.split("/")[0], name.partition("/rot")[2]) for name in names[classes]} for classes in episodes.indices(range(200))[1]]
    assert all(len(one) == 1 for one in seen)
    assert set.union(*seen) == {(alphabet, angle) for alphabet in ("Latin", "Tagalog") for angle in ("", "090", "180", "270")}
    across = load(archives, split="small")
    for part in ("train", "val"):
        assert data.episodes(part, episodes.spec, 0).sha256(3) == across.episodes(part, episodes.spec, 0).sha256(3)


def test_drawing_is_inverted_then_resized():
    image = Image.new("1", (105, 105), 1)
    image.paste(0, (40, 40, 60, 105))
    file = io.BytesIO()
    image.save(file, "PNG")
    kept = drawing(file.getvalue(), 105)
    assert (kept == 255 * (1 - np.asarray(image, dtype=np.uint8))).all()
    small = drawing(file.getvalue(), 28)
    assert small.shape == (28, 28)
    assert small.dtype == np.uint8
    assert small[20, 13] >= 254
    assert small[2, 2] <= 1
    assert small.mean() < 128


def test_episodes_keep_support_and_query_apart(archives):
    data = load(archives, split="vinyals")
    for split in ("train", "val", "test"):
        episodes = data.episodes(split, EpisodeSpec(way=20, shot=1, query=1), seed=3)
        _, classes, rows = episodes.indices(range(50))
        assert (rows[..., 0] != rows[..., 1]).all()
        assert (rows // 2 == classes[..., None]).all()
        x = episodes.batch(range(3)).query.x
        assert x.shape == (3, 20, 1, 8, 8)
        assert 0 <= x.min() < x.mean() < 0.5 < x.max() <= 1


def test_second_load_decodes_nothing(archives, monkeypatch):
    first = load(archives, split="small").splits["train"].images
    monkeypatch.setattr(omniglot, "drawing", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(load(archives, split="small").splits["train"].images, first)


def test_damaged_cache_is_rebuilt(archives, cache):
    first = load(archives, split="minimal1").splits["train"].images
    for file in cache.glob("images/*small1*.npy"):
        file.write_bytes(file.read_bytes()[:-5] + b"12345")
    assert torch.equal(load(archives, split="minimal1").splits["train"].images, first)


def test_changed_archive_is_decoded_again(tmp_path):
    write_zip(tmp_path, SMALL1, members(SMALL1, 2))
    before = load(tmp_path, split="minimal1").splits["val"].images
    write_zip(tmp_path, SMALL1, [(name, PNGS[0]) for name, _ in members(SMALL1, 2)])
    after = load(tmp_path, split="minimal1").splits["val"].images
    assert not torch.equal(before, after)


@pytest.mark.parametrize("nested", [False, True])
def test_unpacked_folder_equals_zip(archives, tmp_path, nested):
    top = tmp_path / SMALL1
    for name, content in members(SMALL1, 2, top=nested):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(content)
    (top / ".DS_Store").touch()
    found, expected = load(tmp_path, split="minimal1").splits["train"], load(archives, split="minimal1").splits["train"]
    assert found.names == expected.names
    assert torch.equal(found.images, expected.images)


def test_places_are_searched_in_order(archives, tmp_path, monkeypatch):
    def put(*folders):
        place = tmp_path.joinpath(*folders)
        place.mkdir(parents=True)
        (place / f"{SMALL1}.zip").symlink_to(archives / f"{SMALL1}.zip")
        return place

    def found(root=None):
        return obtain(Archive(f"{SMALL1}.zip", "", ""), root, "omniglot", download=True).parent

    user = put("user-cache", "metarun", "omniglot")
    assert found() == user
    shared = put("shared")
    monkeypatch.setenv("METARUN_DATA", str(shared))
    assert found() == shared
    root = put("root", "omniglot")
    assert found(str(root.parent)) == root
    assert load(root, split="minimal1").classes == 4 * 111


def test_a_pipe_in_an_unpacked_archive_is_one_clear_line(tmp_path):
    pipe(tmp_path / f"{SMALL1}.zip")
    with pytest.raises(UserError, match=r"is damaged \(.*0007_01\.png: not a regular file\)") as error:
        load(tmp_path, split="minimal1")
    one_line(error)


def test_missing_root_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match=r"data\.root=.*nowhere is not a folder") as error:
        load(tmp_path / "nowhere", split="small")
    one_line(error)


@pytest.mark.parametrize("download", [True, False])
def test_absent_files_without_network_say_which_and_where(tmp_path, download):
    for root, where in ((tmp_path, "put it into " + str(tmp_path)), (None, "data.root=")):
        with pytest.raises(UserError) as error:
            load(root, split="vinyals", download=download)
        line = one_line(error)
        assert "images_background.zip" in line
        assert "data=glyphs" in line
        assert where in line
        assert ("ConnectionError" if download else "data.download=false") in line


def test_download_asks_for_the_published_file(archives, tmp_path, monkeypatch):
    asked = []

    def retrieve(url, known_hash, fname, path, progressbar):
        asked.append((url, known_hash, progressbar))
        path.mkdir(parents=True, exist_ok=True)
        (path / fname).symlink_to(archives / fname)
        return str(path / fname)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    for _ in range(2):  # the second time the files are in the user's cache
        load(None, split="lake")
    assert [(url.rsplit("/", 1)[1], known, bar) for url, known, bar in asked] == [
        ("images_background.zip", "md5:68d2efa1b9178cc56df9314c21c6e718", True),
        ("images_evaluation.zip", "md5:6b91aef0f799c5bb55b94e3f2daec811", True),
    ]


def test_download_with_another_hash_is_refused(monkeypatch):
    def retrieve(*_, **__):
        raise ValueError("MD5 hash of downloaded file does not match\nthe known hash")

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(UserError, match="is not the published file") as error:
        load(None, split="small")
    one_line(error)


def whole(path):
    return dict(members(SMALL1, 2))


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-3000])


def no_zip(path):
    path.write_bytes(b"<html>404: Not Found</html>")


def no_bytes(path):
    path.write_bytes(b"")


def flipped_bit(path):
    content = bytearray(path.read_bytes())
    content[content.find(b"IDAT") + 8] ^= 255
    path.write_bytes(content)


def missing_image(path):
    write_zip(path.parent, SMALL1, list(whole(path).items())[:-1])


def missing_character(path):
    write_zip(path.parent, SMALL1, [pair for pair in whole(path).items() if "Greek/character07" not in pair[0]])


def unreadable_image(path):
    write_zip(path.parent, SMALL1, (whole(path) | {f"{SMALL1}/Greek/character07/0007_01.png": b"not a picture"}).items())


def broken_image(path):
    write_zip(path.parent, SMALL1, (whole(path) | {f"{SMALL1}/Greek/character07/0007_01.png": PNGS[0][:-30]}).items())


def zip_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{SMALL1}/Greek/character07/0007_01.png", bytes(20_000_000))


def picture_bomb(path):
    canvas = io.BytesIO()
    Image.new("1", (9000, 9000)).save(canvas, "PNG")
    write_zip(path.parent, SMALL1, (whole(path) | {f"{SMALL1}/Greek/character07/0007_01.png": canvas.getvalue()}).items())


def pipe(path):
    folder = path.with_suffix("") / "Greek" / "character07"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "0007_01.png")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (zip_bomb, "bytes would unfold to 20,000,000"),
        (picture_bomb, "81 megapixels, above the limit of 67"),
        (cut_short, "not a zip"),
        (no_zip, "not a zip"),
        (no_bytes, "not a zip"),
        (flipped_bit, "Bad CRC-32"),
        (missing_image, "Latin/character26 has 1 images instead of 2"),
        (missing_character, "135 characters instead of 136"),
        (unreadable_image, "Greek/character07/0007_01.png"),
        (broken_image, "Greek/character07/0007_01.png"),
    ],
)
def test_damaged_archive_is_one_clear_line(tmp_path, damage, says):
    path = write_zip(tmp_path, SMALL1, members(SMALL1, 2))
    damage(path)
    with pytest.raises(UserError, match="is damaged") as error:
        load(tmp_path, split="minimal1")
    line = one_line(error)
    assert str(path) in line
    assert says in line
    assert "delete it" in line


def test_other_alphabets_are_refused(tmp_path):
    renamed = [(name.replace("Early_Aramaic", "Aramaic"), content) for name, content in members(SMALL1, 2)]
    write_zip(tmp_path, SMALL1, renamed)
    write_zip(tmp_path, SMALL2, members(SMALL2, 2))
    with pytest.raises(UserError, match="199 instead of 177 train characters") as error:
        load(tmp_path, split="small")
    one_line(error)


def test_unknown_split_names_the_nearest(archives):
    with pytest.raises(UserError, match="did you mean 'vinyals'"):
        load(archives, split="vinyal")


def test_yaml_holds_exactly_the_options():
    signature = inspect.signature(Omniglot.__init__)
    assert list(signature.parameters)[:2] == ["self", "seed"]
    options = list(signature.parameters.values())[2:]
    assert {option.name for option in options} == DEFAULTS.keys()
    assert all(option.kind is option.KEYWORD_ONLY for option in options)
    later = {option.name: option.default for option in options if option.default is not option.empty}  # than runs that are to be read
    assert later == {"within_alphabet": DEFAULTS["within_alphabet"]}


@pytest.mark.parametrize("wrong", [{"size": 7}, {"size": 28.5}, {"split": "vinyal"}, {"rotate_test": 1}, {"root": 3}, {"download": "no"}])
def test_annotations_reject_wrong_values(wrong):
    assert check(Omniglot, DEFAULTS, "data.") == DEFAULTS
    with pytest.raises(UserError, match=f"data.{next(iter(wrong))}"):
        check(Omniglot, DEFAULTS | wrong, "data.")
