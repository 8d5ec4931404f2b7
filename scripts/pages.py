"""What scripts share that write tables into docs/: the runs behind a table, and its place on a page."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from metarun.config import schema
from metarun.config.compose import compose, resolve
from metarun.config.stored import read_config
from metarun.experiment import train

PARTS = ("algo", "net", "optim", "trainer", "train", "eval", "augment")  # of a configuration, that decide what a run finds, beside its data


def finished(words: list[str], folder: Path) -> dict[str, Any]:
    """The summary of a run, from its folder if it is finished; one that was interrupted goes on.

    Raises:
        SystemExit: the folder holds a run with other settings than these words give; where its data lay does not matter.
    """
    values = resolve(compose(words))
    if (folder / "config.yaml").is_file() and settings(values) != settings(read_config(folder)):
        sys.exit(f"{folder} holds a run with other settings than 'metarun {' '.join(words)}' has; move it away, or choose other --runs")
    if not (folder / "summary.json").is_file():
        print("metarun", *words, flush=True)
        return train(values, folder, resume=(folder / "checkpoints" / "last.pt").is_file())
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return summary


def settings(values: dict[str, Any]) -> list[Any]:
    """What of a configuration decides what its run finds."""
    valid = schema.validate(values)
    data = {key: value for key, value in valid.data.values.items() if key != "root"}
    return [valid.root.seed, valid.data.target, data, *(getattr(valid, part) for part in PARTS)]


def put(page: Path, name: str, text: str) -> None:
    """Write a text between the page's marks ``<!-- name: … -->`` and ``<!-- /name -->``.

    Raises:
        SystemExit: it has none of this name.
    """
    marks = re.compile(rf"(<!-- {name}: .*? -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    before = page.read_text(encoding="utf-8")
    if not marks.search(before):
        sys.exit(f"{page.name} has no place for the table '{name}'")
    page.write_text(marks.sub(lambda found: found[1] + text + found[2], before), encoding="utf-8")
