"""miniImageNet: 100 classes of ImageNet, 600 images of each (Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra 2016, arXiv:1606.04080),
in the split that Ravi and Larochelle (2017) published: 64, 16 and 20 classes."""

from __future__ import annotations

import csv
from pathlib import Path

from metarun.data.benchmark import words
from metarun.data.imagenet import ImageNetSubset
from metarun.errors import UserError

LISTS = {
    "train": words("""
        n01532829 n01558993 n01704323 n01749939 n01770081 n01843383 n01910747 n02074367 n02089867 n02091831 n02101006 n02105505
        n02108089 n02108551 n02108915 n02111277 n02113712 n02120079 n02165456 n02457408 n02606052 n02687172 n02747177 n02795169
        n02823428 n02966193 n03017168 n03047690 n03062245 n03207743 n03220513 n03337140 n03347037 n03400231 n03476684 n03527444
        n03676483 n03838899 n03854065 n03888605 n03908618 n03924679 n03998194 n04067472 n04243546 n04251144 n04258138 n04275548
        n04296562 n04389033 n04435653 n04443257 n04509417 n04515003 n04596742 n04604644 n04612504 n06794110 n07584110 n07697537
        n07747607 n09246464 n13054560 n13133613
    """),
    "val": words("""
        n01855672 n02091244 n02114548 n02138441 n02174001 n02950826 n02971356 n02981792 n03075370 n03417042 n03535780 n03584254
        n03770439 n03773504 n03980874 n09256479
    """),
    "test": words("""
        n01930112 n01981276 n02099601 n02110063 n02110341 n02116738 n02129165 n02219486 n02443484 n02871525 n03127925 n03146219
        n03272010 n03544143 n03775546 n04146614 n04149813 n04418357 n04522168 n07613480
    """),
}  # fmt: skip
TABLES = ("train.csv", "val.csv", "test.csv")  # filename,label


class MiniImageNet(ImageNetSubset):
    """The split of Ravi and Larochelle. Where their three tables lie beside the images, only what these list is taken.

    Args:
        seed: unused; the split is given.
        root, size: see ``Benchmark``; customary is 84.
    """

    name = "miniimagenet"
    lists = LISTS
    published = 60_000
    archives = ("miniimagenet", "images")
    wants = (
        "put mini-imagenet.zip (or .tar.gz) with a folder per class (n01532829/ …), such folders themselves, or Ravi's images/ with "
        "train.csv, val.csv and test.csv into data.root"
    )

    def files(self, folder: Path) -> dict[str, Path]:
        found = super().files(folder)
        tables = [folder / table for table in TABLES if (folder / table).is_file()]
        listed = {name: label for table in tables for name, label in _rows(table)}
        if not listed:
            return found
        chosen = {name: path for name, path in found.items() if path.name in listed}
        if missing := sorted(listed.keys() - {path.name for path in chosen.values()}):
            raise UserError(f"{folder} lacks {len(missing):,} of the {len(listed):,} images that its tables list, such as {missing[0]}")
        for name, path in chosen.items():
            if self.label(name) != listed[path.name]:
                raise UserError(
                    f"{folder} has {name}, which the tables say is of the class {listed[path.name]}; put the published ones there"
                )
        return chosen


def _rows(table: Path) -> list[tuple[str, str]]:
    """File names and labels of a table.

    Raises:
        UserError: it is none.
    """
    try:
        with table.open(newline="", encoding="utf-8") as file:
            return [(row["filename"], row["label"]) for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
        raise UserError(f"{table} is not a table with the columns filename and label ({error}); put the published one there") from None
