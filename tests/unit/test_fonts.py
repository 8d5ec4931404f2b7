"""Class names in any alphabet, and in bytes that are none, are drawn with what fonts there are."""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from metarun.drawing import figures
from metarun.predict import contact_sheet
from metarun.runtime import fonts
from metarun.task import Batch

STIX = Path(matplotlib.get_data_path(), "fonts", "ttf", "STIXGeneral.ttf")
BROKEN = os.fsdecode(b"caf\xe9")  # a folder's name in Latin-1
CAT = "猫"


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The fonts of this machine: none, until a test adds some."""
    found: list[Path] = []
    monkeypatch.setattr(fonts, "_of_this_machine", lambda: found)
    for cached in (fonts.covering, fonts.legible):
        cached.cache_clear()
    yield found
    for cached in (fonts.covering, fonts.legible):
        cached.cache_clear()


def only_in_stix() -> str:
    """A letter that DejaVu lacks."""
    return chr(min(fonts._letters(STIX) - fonts._letters(fonts.dejavu())))


def test_what_no_font_has_is_written_as_its_code() -> None:
    assert fonts.legible("spaniel") == "spaniel"
    assert fonts.legible("Жук ψ é") == "Жук ψ é"
    assert fonts.legible(f"{CAT} 1") == r"\u732b 1"
    assert fonts.legible(BROKEN) == r"caf\xe9"
    assert fonts.legible("a\nb") == r"a\nb"


def test_a_font_of_the_machine_is_taken_where_dejavu_lacks_letters(machine: list[Path], tmp_path: Path) -> None:
    (tmp_path / "no.ttf").write_bytes(b"no font")
    machine += [tmp_path / "no.ttf", STIX]
    letter = only_in_stix()
    assert fonts.covering("plain") == fonts.dejavu()
    assert fonts.covering(letter) == STIX
    assert fonts.legible(letter) == letter
    assert fonts.families(["plain", letter]) == ["DejaVu Sans", "STIXGeneral"]


def test_pictures_are_drawn_without_a_warning(tmp_path: Path) -> None:
    """A missing glyph is a warning of matplotlib's, and a warning is an error here; a lone surrogate was one before."""
    names = [CAT, BROKEN, "$x$", "plain"]
    batch = Batch(torch.rand(8, 1, 8, 8), torch.arange(4).repeat(2))
    figure = figures._images([figures.Panel("images", figures.QUERY, batch)], [figures._short(name) for name in names], "title")
    figures.save(figure, tmp_path / "figure.png")
    image = np.zeros((1, 8, 8), np.uint8)
    answers = [contact_sheet.Answer(f"{name}.png", image, dict.fromkeys(names, 0.25), CAT) for name in names]
    contact_sheet.draw(tmp_path / "sheet.png", [CAT, BROKEN], [(name, image) for name in names], answers)
    for name in ("figure.png", "sheet.png"):
        with Image.open(tmp_path / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 5
