"""Anybody's drawings as inputs: the same as Omniglot's own reading, ink or chalk, square or not."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from metarun.data.omniglot import drawing
from metarun.data.picture import UnreadableError, handwriting, reasons, search, subfolders, suffixes, upright


def letter(width=105, height=105):
    """Black ink on white paper: an L with a slanted end."""
    pixels = np.full((height, width), 255, np.uint8)
    pixels[20:80, 30:36], pixels[74:80, 30:70] = 0, 0
    pixels[np.arange(40, 74), np.arange(40, 74)] = 0
    return Image.fromarray(pixels)


@pytest.fixture
def save(tmp_path):
    def to(image, name="letter.png"):
        image.save(tmp_path / name)
        return tmp_path / name

    return to


@pytest.mark.parametrize("size", [20, 28, 105])
@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_a_square_drawing_is_read_as_omniglot_reads_its_own(save, size, mode):
    png = io.BytesIO()
    letter().convert(mode).save(png, "PNG")
    read = handwriting(save(letter().convert(mode)), size)
    assert read.shape == (1, size, size)
    assert np.array_equal(read[0], drawing(png.getvalue(), size))
    assert read.max() > 128


def test_chalk_on_a_blackboard_is_ink_too(save):
    ink, chalk = handwriting(save(letter()), 28), handwriting(save(ImageOps.invert(letter()), "chalk.png"), 28)
    assert np.array_equal(ink, chalk)
    assert (ink[0, 0] == 0).all()


@pytest.mark.parametrize("paper", [255, 200, 40])
def test_a_long_picture_is_completed_with_its_own_paper(save, paper):
    pixels = np.full((60, 120), paper, np.uint8)
    pixels[25:35, 10:110] = 255 - paper
    read = handwriting(save(Image.fromarray(pixels)), 24)[0]
    background = min(paper, 255 - paper)
    assert (read[:6] == background).all()  # above and below: no edge where the picture ends
    assert (read[-6:] == background).all()
    assert (read[11:13, 4:20] > 200 - background).all()  # the whole stroke, neither cropped nor stretched
    assert (read[:, :2] < background + 20).all()


def test_an_unreadable_file_has_a_reason(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    letter().save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:200])
    (tmp_path / "nowhere.png").symlink_to("absent")
    os.mkfifo(tmp_path / "pipe.png")
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "float.tif")
    reasons = {
        "broken.png": "not a picture, or damaged",
        "cut.png": r"damaged \(.*truncated.*\)",
        "absent.png": "does not exist",
        "nowhere.png": "a link to nothing",
        "pipe.png": "not a regular file",
        "float.tif": "32 bits a channel: save it with 8 or 16",
    }
    for name, reason in reasons.items():
        with pytest.raises(UnreadableError, match=reason):
            handwriting(tmp_path / name, 28)


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "CMYK"])
def test_a_tiff_that_lies_on_its_side_is_turned(tmp_path, mode):
    """Pillow maps a file of one's name into memory, where it mistakes height for width."""
    grey = np.add.outer(6 * np.arange(20), np.arange(12)).astype(np.uint8)
    tag = Image.Exif()
    tag[0x112] = 6  # turned by 90 degrees
    Image.fromarray(grey).transpose(Image.Transpose.ROTATE_90).convert(mode).save(tmp_path / "o.tif", exif=tag)
    with upright(tmp_path / "o.tif", 20) as image:
        assert np.abs(np.asarray(image.convert("L")).astype(int) - grey).max() <= 3


def test_what_would_run_a_program_is_not_opened(tmp_path):
    """EPS is PostScript, which Pillow hands to Ghostscript, whatever the file's name says."""
    letter().convert("RGB").save(tmp_path / "letter.eps")
    (tmp_path / "letter.eps").rename(tmp_path / "letter.png")
    with pytest.raises(UnreadableError, match="not a picture, or damaged"):
        handwriting(tmp_path / "letter.png", 28)
    assert not suffixes().keys() & {".eps", ".ps", ".wmf", ".h5", ".mpg", ".pdf"}


def test_all_of_pillows_formats_are_read(tmp_path):
    assert suffixes().keys() >= {".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".tga", ".jp2"}
    for suffix in ("png", "jfif", "tiff", "gif", "ppm", "tga", "bmp", "webp"):
        letter().convert("RGB").save(tmp_path / f"x.{suffix}")
        assert handwriting(tmp_path / f"x.{suffix}", 28).max() > 128


def huge(width, height):
    """A PNG that promises so many pixels and has none."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height", "megapixels"), [(8192, 8193, 67), (10_000, 10_000, 100), (13_000, 13_000, 169), (65_000, 3_000, 195)]
)
def test_a_picture_above_the_limit_is_refused_before_it_is_decoded(width, height, megapixels):
    with pytest.raises(UnreadableError, match=f"^{megapixels} megapixels, above the limit of 67$"), upright(huge(width, height), 28):
        pass
    with pytest.raises(UnreadableError, match="damaged"), upright(huge(8192, 8192), 28):
        pass


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_lies_on_white(save, mode, monkeypatch):
    """In bands as in one piece: Porter and Duff's "over", c = a c1 + (1 - a) 255."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 30, 4), dtype=np.uint8)
    picture = Image.fromarray(pixels).convert(mode)
    path = save(picture, "clear.png") if mode != "P" else save_transparent(picture, save)
    whole = np.asarray(Image.open(path).convert("RGBA"), np.float64)
    wanted = whole[..., :3] * whole[..., 3:] / 255 + 255 - whole[..., 3:]
    for band in (7, 512):
        monkeypatch.setattr("metarun.data.picture.BAND", band)
        with upright(path, 28) as read:
            assert read.mode == "RGB"
            assert abs(np.asarray(read, np.float64) - wanted).max() <= 1


def save_transparent(picture, save):
    """A palette of which one colour is transparent."""
    picture.info["transparency"] = 3
    return save(picture, "palette.png")


def touch(base, *names):
    for name in names:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).touch()


def test_folders(tmp_path):
    touch(
        tmp_path,
        "b/1.png",
        "a/x/2.PNG",
        "a/x/notes.txt",
        "a/.hidden/3.png",
        "__MACOSX/4.png",
        "empty/no.txt",
        "loose.jpg",
        "b/@eaDir/5.jpg",
    )
    found = search(tmp_path)
    assert found.folders == {"": [tmp_path / "loose.jpg"], "a/x": [tmp_path / "a/x/2.PNG"], "b": [tmp_path / "b/1.png"], "empty": []}
    assert list(found.classes) == ["a/x", "b", "empty"]
    assert found.passed == {
        "__MACOSX": "an operating system's own",
        "b/@eaDir": "an operating system's own",
        "a/x/notes.txt": "no picture that Pillow reads",
        "empty/no.txt": "no picture that Pillow reads",
    }
    assert subfolders(tmp_path) == ["a", "b", "empty"]


def test_links_are_followed_once_and_never_in_a_circle(tmp_path):
    base, outside = tmp_path / "base", tmp_path / "outside"
    touch(base, "a/1.png")
    touch(outside, "b/2.png", "deep/c/3.png")
    (outside / "deep" / "round").symlink_to(outside)
    links = {"a/up": base, "a/top": tmp_path, "again": base / "a", "linked": outside / "b", "out": outside, "self": base / "self"}
    for name, target in links.items():
        (base / name).symlink_to(target)
    (outside / "b" / "back").symlink_to(base)
    found = search(base)
    assert found.folders == {
        "a": [base / "a/1.png"],
        "linked": [base / "linked/2.png"],
        "out/deep/c": [base / "out/deep/c/3.png"],
    }
    assert {path for path, reason in found.passed.items() if reason == "a link to a folder that is here already"} == {
        "a/up", "a/top", "again", "linked/back", "out/b", "out/deep/round",
    }  # fmt: skip


def test_reasons_are_told_once_each():
    assert reasons({"b": "torn", "a": "torn", "c": "huge"}) == "a and 1 more: torn; c: huge"
    assert reasons({str(i): f"reason {i}" for i in range(6)}) == "0: reason 0; 1: reason 1; 2: reason 2; 3: reason 3; and 2 more"


def test_heif_where_its_library_is(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason="pip install -e '.[heif]'")
    heif.register_heif_opener()
    letter().convert("RGB").save(tmp_path / "x.heic")
    assert handwriting(tmp_path / "x.heic", 28).max() > 128
