"""attributes.csv: what is read of it, where it comes to lie, and one clear line for every mistake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metarun.data.attributes import read_attributes
from metarun.data.folder import Folder
from metarun.errors import UserError

CLASSES = ["beagle", "spaniel", "dogs/tabby"]
GOOD = "beagle,1,0.5\nspaniel, -2e3 ,0\ndogs/tabby,0,0\n"


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "attributes.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    "text", [GOOD, "Class,fur,size\n" + GOOD, "\ufeff" + GOOD.replace("\n", "\r\n\r\n"), GOOD.replace("beagle", '"beagle"')]
)
def test_a_table_with_or_without_heading(tmp_path: Path, text: str) -> None:
    found = read_attributes(written(tmp_path, text), CLASSES)
    assert {name: vector.tolist() for name, vector in found.items()} == {"beagle": [1, 0.5], "spaniel": [-2000, 0], "dogs/tabby": [0, 0]}
    assert all(vector.dtype == np.float32 for vector in found.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "attributes.csv is empty; give one line per class"),
        ("class,fur\n", "attributes.csv is empty; give one line per class"),
        ("beagle,1\nspaniel,2\n", "has no line for class 'dogs/tabby'; give one line per class"),
        ("beagle,1\n", "has no line for class 'dogs/tabby' and 1 others; "),
        (GOOD + "spanie,1,2\n", "line 4: there is no class 'spanie'; did you mean 'spaniel'[?]; remove the line"),
        (GOOD + "beagle,1,2\n", "line 4: class 'beagle' for the second time"),
        ("beagle,1,2\nspaniel,1\n", "line 2: class 'spaniel' has 1 numbers, the first class 2"),
        ("beagle\n", "line 1: class 'beagle' has 0 numbers"),
        ("beagle,1,yes\n", "line 1: 'yes' of class 'beagle' is not a number"),
        ("beagle,1,\n", "line 1: '' of class 'beagle' is not a number"),
        ("beagle,nan\n", "line 1: 'nan' of class 'beagle' is not a number"),
        ("beagle,1e99\n", "line 1: '1e99' of class 'beagle' is not a number"),
        (b"beagle,\xff\n", "is not a table in UTF-8"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_attributes(written(tmp_path, text), CLASSES)
    assert "\n" not in str(caught.value)


def test_a_folder_of_pictures_hands_them_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    for i in range(6):
        for j in range(2):
            path = tmp_path / "data" / f"c{i}" / f"{j}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 40 * i + j).save(path)

    def make() -> Folder:
        sizes = {"val_fraction": 0.3, "test_fraction": 0.3, "split_seed": 0, "min_images": 2}
        return Folder(0, root=str(tmp_path / "data"), channels=1, size=8, invert=False, **sizes)

    assert make().attributes == 0
    written(tmp_path / "data", "".join(f"c{i},{i},1,{i * i}\n" for i in range(6)))
    data = make()
    assert data.attributes == 3
    for split in data.splits.values():
        numbers = [int(name[1]) for name in split.names]
        assert torch.equal(split.attributes, torch.tensor([[i, 1, i * i] for i in numbers], dtype=torch.float32))
    written(tmp_path / "data", "c0,1\n")
    with pytest.raises(UserError, match="no line for class 'c1'"):
        make()
