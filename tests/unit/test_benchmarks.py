"""Benchmarks by name: their published splits, class folders and archives in all forms, and one clear line for everything that is missing.
Made-up images of the true classes; where the published lists lie beside the checkout, the splits are compared with them."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch
import yaml
from helpers import small
from PIL import Image

from metarun import experiment
from metarun.config.schema import schema
from metarun.data import cifar100
from metarun.data.benchmark import Benchmark
from metarun.data.cifar_fs import CifarFS
from metarun.data.cub import CUB
from metarun.data.fc100 import FC100
from metarun.data.miniimagenet import MiniImageNet
from metarun.data.tieredimagenet import TieredImageNet
from metarun.errors import UserError
from metarun.problem import EpisodeSpec

CHECKOUT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("METARUN_TEST_SHARED") or CHECKOUT.parent / "shared")
BENCHMARKS = {
    CifarFS: ((64, 16, 20), 60_000), FC100: ((60, 20, 20), 60_000), MiniImageNet: ((64, 16, 20), 60_000),
    TieredImageNet: ((351, 97, 160), 779_165), CUB: ((100, 50, 50), 11_788),
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))


def load(benchmark: type[Benchmark], root: Path | None, size: int = 8) -> Benchmark:
    download = {"download": False} if benchmark.source else {}
    return benchmark(0, root=root and str(root), size=size, **download)


def folder_of(label: str) -> str:
    return f"{label}.Bird_{label}" if label.isdecimal() else label


def png(value: int) -> bytes:
    """A flat colour that says which picture it is."""
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (value % 256, value // 256, 7)).save(content, "PNG")
    return content.getvalue()


def pictures(benchmark: type[Benchmark], images: int = 2, layout: str = "{split}/{folder}/{image}.png") -> dict[str, bytes]:
    """A picture file for each class of the benchmark, and an image number that rises through the classes in the order of the lists."""
    found: dict[str, bytes] = {}
    for split, labels in benchmark.lists.items():
        for label in labels:
            for image in range(images):
                name = layout.format(split=split, folder=folder_of(label), image=image, label=label)
                found[name] = png(len(found))
    return found


def unpack(files: dict[str, bytes], folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def pack_zip(files: dict[str, bytes], path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in reversed(files.items()):  # the order in an archive says nothing
            archive.writestr(f"any/{name}", content)
    return path.parent


def pack_tar(files: dict[str, bytes], path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in reversed(files.items()):
            member = tarfile.TarInfo(f"any/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path.parent


def numbers(data: Benchmark) -> list[int]:
    """Which picture every image shows, in the order of train, val and test."""
    images = torch.cat([part.images for part in data.splits.values()])[:, :, 0, 0].int()
    assert (images[:, 2] == 7).all()
    return (images[:, 0] + 256 * images[:, 1]).tolist()


@pytest.mark.parametrize(("benchmark", "sizes", "published"), [(name, *facts) for name, facts in BENCHMARKS.items()])
def test_the_split_is_the_published_one_in_size(benchmark: type[Benchmark], sizes: tuple[int, ...], published: int) -> None:
    assert tuple(map(len, benchmark.lists.values())) == sizes
    assert list(benchmark.lists) == ["train", "val", "test"]
    assert len({label for labels in benchmark.lists.values() for label in labels}) == sum(sizes)
    assert benchmark.published == published


def test_the_splits_are_those_of_the_published_lists() -> None:
    if not (SHARED / "splits").is_dir():
        pytest.skip("no shared/splits beside the checkout (METARUN_TEST_SHARED may name another shared)")
    cifar = json.loads((SHARED / "splits" / "cifar100.json").read_text())
    imagenet = json.loads((SHARED / "splits" / "imagenet_wnids.json").read_text())
    for benchmark, lists in (
        (CifarFS, cifar["cifar_fs"]),
        (FC100, cifar["fc100"]),
        (MiniImageNet, imagenet["mini_imagenet_classes"]),
        (TieredImageNet, imagenet["tiered_imagenet_classes"]),
    ):
        assert {split: list(labels) for split, labels in benchmark.lists.items()} == lists
    for split, superclasses in cifar["fc100_superclasses"].items():
        assert set(FC100.lists[split]) == {label for name in superclasses for label in cifar["superclasses"][name]}


def test_cub_takes_species_in_turn() -> None:
    """Chen et al. number the species from 0: even ones train, of every four the second validates and the fourth tests."""
    for i in range(200):
        split = "train" if i % 2 == 0 else "val" if i % 4 == 1 else "test"
        assert f"{i + 1:03d}" in CUB.lists[split]


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_folders_and_archives_of_class_folders_are_the_same(benchmark: type[Benchmark], tmp_path: Path) -> None:
    files = pictures(benchmark)
    roots = [
        unpack(files, tmp_path / "by split"),
        unpack(pictures(benchmark, layout="images/{folder}/{image}.png"), tmp_path / "flat"),
        pack_zip(files, _archive(benchmark, tmp_path, "zip")),
        pack_tar(files, _archive(benchmark, tmp_path, "tar.gz")),
    ]
    for root in roots:
        data = load(benchmark, root)
        assert numbers(data) == list(range(len(files)))
        assert data.input_shape == (3, 8, 8)
        assert data.note == "2 a class"
        for split, labels in benchmark.lists.items():
            assert data.splits[split].names == [folder_of(label) for label in labels]
            assert (data.splits[split].counts == 2).all()
    hashes = {load(benchmark, root).episodes("test", EpisodeSpec(way=5, shot=1, query=1), 0).sha256(10) for root in roots}
    assert len(hashes) == 1


def _archive(benchmark: type[Benchmark], tmp_path: Path, suffix: str) -> Path:
    folder = tmp_path / suffix
    folder.mkdir(exist_ok=True)
    name = {"cifar_fs": "cifar_fs", "fc100": "FC100", "miniimagenet": "mini-imagenet", "tieredimagenet": "tiered_imagenet"}
    return folder / f"{name.get(benchmark.name, 'CUB_200_2011')}.{suffix}"


def test_a_second_run_reads_the_cache_and_notices_a_changed_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = unpack(pictures(MiniImageNet), tmp_path / "data")
    first = numbers(load(MiniImageNet, root))
    with monkeypatch.context() as patch:
        patch.setattr("metarun.data.benchmark.decode", lambda *_: pytest.fail("decoded again"))
        assert numbers(load(MiniImageNet, root)) == first
    (root / "val" / MiniImageNet.lists["val"][0] / "1.png").write_bytes(png(999))
    assert numbers(load(MiniImageNet, root))[2 * 64 + 1] == 999


def test_a_set_that_is_not_whole_says_so_in_every_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = unpack(pictures(CifarFS, images=4), tmp_path / "data")
    words = ["algo=nearest", "data=cifar_fs", f"data.root={root}", "data.size=16", "way=3", "shot=1", "query=2"]
    assert experiment.train(small(*words), tmp_path / "run")["data"] == "cifar_fs, 4 a class"
    assert load(CifarFS, root).describe("test") == "20 classes, 80 images of 3x8x8 (4 a class)"
    (root / "test" / "baby" / "3.png").unlink()
    assert load(CifarFS, root).note == "399 of 60,000 images"
    monkeypatch.setattr(cifar100.Cifar100, "published", 399)
    assert load(CifarFS, root).describe("test") == "20 classes, 79 images of 3x8x8"


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    data = load(CifarFS, unpack(pictures(CifarFS), tmp_path / "data"))
    assert "train" in data.splits["train"].names


def test_other_classes_beside_those_of_the_benchmark_are_left_alone(tmp_path: Path) -> None:
    files = pictures(MiniImageNet) | {"train/n99999999/0.png": png(5), "readme.txt": b"", "loose.png": png(6)}
    assert numbers(load(MiniImageNet, unpack(files, tmp_path / "data"))) == list(range(200))


def refused(benchmark: type[Benchmark], root: Path | None, match: str) -> None:
    with pytest.raises(UserError, match=match) as error:
        load(benchmark, root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_nothing_there_says_which_file_to_put_where(benchmark: type[Benchmark], tmp_path: Path) -> None:
    refused(benchmark, tmp_path, "; put .* into data.root, or use data=glyphs")
    refused(benchmark, None, "not on this machine.*; put .* into data.root, or use data=glyphs")


def test_a_missing_class_is_named(tmp_path: Path) -> None:
    files = {name: content for name, content in pictures(CUB).items() if "/003." not in name and "/200." not in name}
    refused(CUB, unpack(files, tmp_path), r"lacks 2 of the 200 classes of data=cub, such as 003; put CUB_200_2011\.tgz")


def test_a_class_in_two_folders_is_named(tmp_path: Path) -> None:
    files = pictures(CifarFS) | {"again/bear/9.png": png(4)}
    refused(CifarFS, unpack(files, tmp_path), r"pictures of the class bear in (train/bear and in again|again/bear and in train)/bear; name")


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    files = pictures(CifarFS) | {"train/bear/0.png": b"no picture"}
    refused(CifarFS, unpack(files, tmp_path), r"is damaged \(train/bear/0\.png: not a picture, or damaged\)")


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_a_damaged_archive_and_a_bomb_are_named(tmp_path: Path, suffix: str) -> None:
    path = _archive(CUB, tmp_path, suffix)
    pack = pack_zip if suffix == "zip" else pack_tar
    pack(pictures(CUB), path)
    path.write_bytes(path.read_bytes()[:5000])
    refused(CUB, path.parent, r"CUB_200_2011\.\S+ is damaged")
    if suffix == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("001.A/1.png", bytes(20_000_000))
    else:
        pack_tar({"001.A/1.png": bytes(20_000_000)}, path)
    refused(CUB, path.parent, r"is damaged \(its [\d,]+ bytes would unfold to 20,0\d\d,\d\d\d\)")


def test_a_bomb_in_the_headers_of_an_archive_is_named(tmp_path: Path) -> None:
    """The name of a file may be as long as it likes, and is read before anything is known of the file."""
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 50_000_000
    with gzip.open(tmp_path / "CUB_200_2011.tgz", "wb") as file:
        file.write(member.tobuf() + bytes(member.size))
    refused(CUB, tmp_path, r"is damaged \(its [\d,]+ bytes would unfold to 50,000,\d\d\d\)")


@pytest.mark.parametrize("packing", ["", "gz", "bz2", "xz"])
def test_tar_files_of_any_packing(tmp_path: Path, packing: str) -> None:
    files = pictures(CUB, images=1)
    with tarfile.open(tmp_path / f"CUB_200_2011.tar{'.' * bool(packing)}{packing}", f"w:{packing}") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert numbers(load(CUB, tmp_path)) == list(range(200))


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "mini-imagenet-cache-train.pkl").write_bytes(b"\x80\x04.")
    refused(MiniImageNet, tmp_path, r"\(mini-imagenet-cache-train\.pkl is a pickle, which may run any program .*\); put mini-imagenet\.zip")


def test_downloads_ask_for_the_published_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def retrieve(url: str, known_hash: str, fname: str, path: Path, progressbar: bool) -> str:
        asked.append((url, known_hash))
        pack_tar(pictures(CUB), path.parent / fname)
        return str(path.parent / fname)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    (tmp_path / "user" / "metarun").mkdir(parents=True)
    assert CUB(0, root=None, size=8, download=True).classes == 100
    address = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
    assert asked == [(address, "md5:97eceeb196236b17998738112f37df78")]


def test_both_divisions_of_cifar_100_find_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_DATA", str(tmp_path))
    for folder in ("cifar100", "fc100", "cifar_fs"):
        unpack(pictures(CifarFS), tmp_path / folder)
        assert [load(benchmark, None).note for benchmark in (CifarFS, FC100)] == ["2 a class"] * 2
        (tmp_path / folder).rename(tmp_path / f"not {folder}")
    refused(FC100, None, "not on this machine")


class TestRavisTables:
    """images/ in one folder, and three tables that say what is of which class."""

    def files(self) -> dict[str, bytes]:
        return pictures(MiniImageNet, layout="images/{label}0000000{image}.png")

    def tables(self, folder: Path, changes: dict[str, str]) -> Path:
        for split, labels in MiniImageNet.lists.items():
            rows = {f"{label}0000000{image}.png": label for label in labels for image in range(2)} | changes
            lines = ["filename,label", *(f"{name},{label}" for name, label in rows.items())]
            (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
        return folder

    def test_only_what_they_list_is_taken(self, tmp_path: Path) -> None:
        extra = {f"images/{MiniImageNet.lists['train'][0]}00000009.png": png(3)}
        data = load(MiniImageNet, self.tables(unpack(self.files() | extra, tmp_path / "data"), {}))
        assert numbers(data) == list(range(200))
        assert data.splits["val"].names == list(MiniImageNet.lists["val"])
        plain = load(MiniImageNet, unpack(self.files() | extra, tmp_path / "without"))
        assert len(numbers(plain)) == 201

    def test_what_they_list_and_is_not_there_is_named(self, tmp_path: Path) -> None:
        root = self.tables(unpack(self.files(), tmp_path / "data"), {"n0153282900000099.png": "n01532829"})
        refused(MiniImageNet, root, r"lacks 1 of the 201 images that its tables list, such as n0153282900000099\.png")

    def test_another_class_than_the_name_says_is_named(self, tmp_path: Path) -> None:
        root = self.tables(unpack(self.files(), tmp_path / "data"), {"n0153282900000001.png": "n01558993"})
        refused(MiniImageNet, root, r"n0153282900000001\.png, which the tables say is of the class n01558993")

    def test_no_table_is_one_line(self, tmp_path: Path) -> None:
        root = unpack(self.files() | {"val.csv": b"a,b\n1,2\n"}, tmp_path / "data")
        refused(MiniImageNet, root, r"val\.csv is not a table with the columns filename and label")


class TestBinaryArchive:
    """CIFAR-100 as its authors offer it to programs in C, here with 2 + 1 instead of 500 + 100 images of a class."""

    LABELS = sorted(label for labels in CifarFS.lists.values() for label in labels)

    @pytest.fixture(autouse=True)
    def little(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cifar100, "PARTS", {"train.bin": 2, "test.bin": 1})
        monkeypatch.setattr(cifar100.Cifar100, "published", 300)

    def parts(self) -> dict[str, bytes]:
        """Flat images whose red says the class and whose green says the part and the image; classes are shuffled, as in the archive."""
        rng = np.random.default_rng(0)
        parts: dict[str, bytes] = {"fine_label_names.txt": "\n".join(self.LABELS).encode() + b"\n"}
        for first, (part, each) in zip((0, 100), cifar100.PARTS.items(), strict=True):
            records = [(label, i) for i in range(each) for label in range(100)]
            order = rng.permutation(100) if each == 1 else np.concatenate([rng.permutation(100), 100 + rng.permutation(100)])
            rows = [bytes([0, label, *[label] * 1024, *[first + i] * 1024, *[7] * 1024]) for label, i in (records[j] for j in order)]
            parts[part] = b"".join(rows)
        return parts

    def archive(self, tmp_path: Path, **changes: bytes) -> Path:
        files = self.parts() | {name.replace("_bin", ".bin").replace("_txt", ".txt"): content for name, content in changes.items()}
        return pack_tar({f"cifar-100-binary/{name}": content for name, content in files.items()}, tmp_path / "cifar-100-binary.tar.gz")

    @pytest.mark.parametrize("benchmark", [CifarFS, FC100])
    @pytest.mark.parametrize("size", [32, 16])
    def test_all_images_of_a_class_are_together_training_part_first(self, tmp_path: Path, benchmark: type[Benchmark], size: int) -> None:
        data = load(benchmark, self.archive(tmp_path), size)
        assert data.note == ""
        for split, labels in benchmark.lists.items():
            part = data.splits[split]
            assert part.names == list(labels)
            assert part.images.shape == (3 * len(labels), 3, size, size)
            shown = part.images[:, :, 3, 3].view(len(labels), 3, 3)
            assert shown[:, :, 0].tolist() == [[self.LABELS.index(label)] * 3 for label in labels]
            assert shown[:, :, 1].tolist() == [[0, 1, 100]] * len(labels)

    def test_what_is_not_as_published_is_named(self, tmp_path: Path) -> None:
        refused(CifarFS, self.archive(tmp_path, train_bin=b"short"), r"train\.bin has 5 bytes instead of 614,800")
        refused(CifarFS, self.archive(tmp_path, fine_label_names_txt=b"cat\n"), "does not name the 100 classes of CIFAR-100")
        twice = self.parts()["test.bin"][: 99 * cifar100.RECORD]
        refused(
            CifarFS, self.archive(tmp_path, test_bin=twice + twice[: cifar100.RECORD]), r"test\.bin does not have 1 images of every class"
        )


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_yaml_holds_every_argument(benchmark: type[Benchmark]) -> None:
    values = yaml.safe_load((CHECKOUT / "conf" / "data" / f"{benchmark.name}.yaml").read_text())
    assert values.pop("_target_") == f"{benchmark.__module__}.{benchmark.__qualname__}"
    assert values.pop("name") == benchmark.name
    assert set(values) == set(schema(benchmark).model_fields)


@pytest.mark.skipif(not (SHARED / "cifar_fs" / "cifar_fs.zip").is_file(), reason="no shared/cifar_fs beside the checkout")
@pytest.mark.slow
def test_the_real_images(caplog: pytest.LogCaptureFixture) -> None:
    """The first 100 training images of every class of CIFAR-100."""
    with caplog.at_level(logging.WARNING):
        data = load(CifarFS, SHARED / "cifar_fs", 32)
    assert data.note == "100 a class"
    assert [part.images.shape for part in data.splits.values()] == [(6400, 3, 32, 32), (1600, 3, 32, 32), (2000, 3, 32, 32)]
    images = torch.cat([part.images for part in data.splits.values()])
    assert 100 < images.float().mean() < 140  # of all of CIFAR-100 it is 121.9
    assert len({image.numpy().tobytes() for image in images}) > 9_990
    other = load(FC100, SHARED / "cifar_fs", 32)
    bear = data.splits["train"].names.index("bear"), other.splits["val"].names.index("bear")
    assert torch.equal(*(part.images[100 * i : 100 * i + 100] for part, i in zip((data.splits["train"], other.splits["val"]), bear)))
    assert caplog.messages == []
