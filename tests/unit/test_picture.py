"""Anybody's drawings as inputs: the same as Omniglot's own reading, ink or chalk, square or not."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from metarun.data.omniglot import drawing
from metarun.data.picture import class_folders, handwriting, pictures_in


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


def test_an_unreadable_file_is_none(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    assert handwriting(tmp_path / "broken.png", 28) is None
    assert handwriting(tmp_path / "absent.png", 28) is None


def test_folders(tmp_path, save):
    for name in ("b/1.png", "a/x/2.PNG", "a/x/notes.txt", "a/.hidden/3.png", "__MACOSX/4.png", "empty/no.txt", "loose.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert class_folders(tmp_path) == {"a/x": [tmp_path / "a/x/2.PNG"], "b": [tmp_path / "b/1.png"], "empty": []}
    assert pictures_in(tmp_path) == [tmp_path / "loose.jpg"]
