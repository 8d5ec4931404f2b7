"""The cache of decoded images: a hit does not build, and nothing damaged, stale or half-written is ever handed out.
Building is counted, so a test fails both when the cache is not used and when it is trusted too much."""

import json
import logging
import os

import numpy as np
import pytest

from metarun.data import cache

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 2, 3, 5), dtype=np.uint8)
NOTES = {"names": ["α", "b"], "counts": [3, 4]}


class Builder:
    """Returns the images and counts how often it was asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return IMAGES.copy(), NOTES


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


@pytest.fixture
def build():
    return Builder()


def check(found):
    images, notes = found
    assert images.dtype == np.uint8
    assert np.array_equal(images, IMAGES)
    assert notes == NOTES


def test_second_time_is_a_hit(folder, build):
    check(cache.cached_images({"name": "a"}, build))
    check(cache.cached_images({"name": "a"}, build))
    assert build.calls == 1
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".npy"]  # no temporary file stays behind


def test_another_key_is_a_miss(folder, build):
    cache.cached_images({"name": "a", "size": 28}, build)
    cache.cached_images({"name": "a", "size": 32}, build)
    assert build.calls == 2


def flip_last_byte(npy, side):
    content = bytearray(npy.read_bytes())
    content[-1] ^= 1
    npy.write_bytes(content)


def truncate(npy, side):
    npy.write_bytes(npy.read_bytes()[:-10])


def empty(npy, side):
    npy.write_bytes(b"")


def not_numpy(npy, side):
    npy.write_bytes(b"hello" * 100)


def other_shape(npy, side):
    np.save(npy, IMAGES.reshape(7, 3, 2, 5))


def other_dtype(npy, side):
    np.save(npy, IMAGES.view(np.int8))


def pickled(npy, side):
    np.save(npy, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def no_note(npy, side):
    side.unlink()


def torn_note(npy, side):
    side.write_bytes(side.read_bytes()[:20])


def foreign_note(npy, side):
    side.write_text(json.dumps(json.loads(side.read_text()) | {"key": "another"}))


def list_note(npy, side):
    side.write_text("[1, 2]")


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    "damage",
    [
        flip_last_byte,
        truncate,
        empty,
        not_numpy,
        other_shape,
        other_dtype,
        pickled,
        no_note,
        torn_note,
        foreign_note,
        list_note,
    ],
)
def test_damage_is_noticed_and_mended(folder, build, damage, large, monkeypatch):
    if large:
        monkeypatch.setattr(cache, "LARGE", 10)
    check(cache.cached_images({"name": "a"}, build))
    damage(next(folder.glob("*.npy")), next(folder.glob("*.json")))
    check(cache.cached_images({"name": "a"}, build))
    assert build.calls == 2
    check(cache.cached_images({"name": "a"}, build))
    assert build.calls == 2


def test_large_files_are_memory_mapped_and_safe_to_write_to(folder, build, monkeypatch):
    monkeypatch.setattr(cache, "LARGE", 10)
    for _ in range(2):  # the first, which builds, and the second, which finds
        images, _ = cache.cached_images({"name": "a"}, build)
        assert isinstance(images, np.memmap)
        images[:] = 0
    check(cache.cached_images({"name": "a"}, build))
    assert build.calls == 1


def test_unwritable_folder_is_not_fatal_and_warns_once(tmp_path, build, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "file"))  # a file where the folder should be: fails for root too
    with caplog.at_level(logging.WARNING):
        check(cache.cached_images({"name": "a"}, build))
        check(cache.cached_images({"name": "b"}, build))
    assert build.calls == 2
    assert len(caplog.records) == 1
    assert "METARUN_CACHE" in caplog.text


def test_failed_write_leaves_no_file(folder, build, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    check(cache.cached_images({"name": "a"}, build))
    assert list(folder.iterdir()) == []


def test_what_a_killed_process_left_is_taken_away_and_what_another_writes_is_not(folder, build):
    folder.mkdir(parents=True)
    old, new = folder / ".a-1.npy.0123abcd.tmp", folder / ".a-2.npy.0123abcd.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    check(cache.cached_images({"name": "b"}, build))
    assert (old.exists(), new.exists()) == (False, True)


def test_failed_build_leaves_no_file(folder):
    def build():
        raise ValueError("cannot decode")

    with pytest.raises(ValueError, match="cannot decode"):
        cache.cached_images({"name": "a"}, build)
    assert not folder.exists()


def test_only_uint8(folder):
    with pytest.raises(TypeError, match="float64"):
        cache.cached_images({"name": "a"}, lambda: (np.zeros(3), None))


def test_fingerprint_changes_with_content_size_time_and_place(tmp_path):
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "a.png"
    file.write_bytes(b"abc")
    (tmp_path / "link.png").symlink_to("nowhere")
    seen = [cache.fingerprint(tmp_path), cache.fingerprint(file)]
    assert cache.fingerprint(tmp_path) == seen[0]
    os.utime(file, (1, 1))
    seen.append(cache.fingerprint(tmp_path))
    file.write_bytes(b"abcd")
    os.utime(file, (1, 1))
    seen.append(cache.fingerprint(tmp_path))
    file.rename(tmp_path / "in" / "b.png")
    seen.append(cache.fingerprint(tmp_path))
    assert len({json.dumps(mark) for mark in seen}) == len(seen)
