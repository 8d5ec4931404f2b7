"""What scripts share that write tables into docs/: the runs behind a table, and its place on a page."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, Literal

import metarun
from metarun.config import schema
from metarun.config.compose import compose, resolve
from metarun.config.stored import read_config
from metarun.experiment import train

PLAIN = ["device=cpu", "logger=quiet"]  # words of runs whose figures alone are wanted
ONE_THREAD = [*PLAIN, "engine.threads=1"]
PARTS = ("algo", "net", "optim", "trainer", "train", "eval", "augment")  # of a configuration, that decide what a run finds, beside its data


def finished(words: list[str], folder: Path) -> dict[str, Any]:
    """The summary of a training, from its folder if it is finished; one that was interrupted goes on.

    Raises:
        SystemExit: the folder holds a run with other settings than these words give; where data and other runs lie does not matter.
    """
    values = resolve(compose(words))
    if (folder / "config.yaml").is_file() and settings(values) != settings(read_config(folder)):
        sys.exit(f"{folder} holds a run with other settings than 'metarun {' '.join(words)}' has; move it away, or choose other --runs")
    if not (folder / "summary.json").is_file():
        print("metarun", *words, flush=True)
        return train(values, folder, resume=(folder / "checkpoints" / "last.pt").is_file())
    return read(folder / "summary.json")


def evaluated(folder: Path, words: str, split: Literal["test", "val"] = "test") -> dict[str, Any]:
    """The summary of ``metarun eval`` of a run under these words, from the run's folder where it was done already; none: the run's own."""
    if not words:
        return read(folder / "summary.json")
    kept = folder / evaluation(words, split)
    if not kept.is_file():
        print("metarun eval", folder, words, flush=True)
        kept.write_text(json.dumps(metarun.evaluate(folder, words, split=split)), encoding="utf-8")
    return read(kept)


def evaluation(words: str, split: Literal["test", "val"] = "test") -> str:
    """The name of the file in a run's folder with what an evaluation found; no words: the run's own."""
    return f"eval-{'val-' * (split == 'val')}{words.replace(' ', '-')}.json" if words else "summary.json"


def read(file: Path) -> dict[str, Any]:
    """What a file of JSON holds."""
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def settings(values: dict[str, Any]) -> list[Any]:
    """What of a configuration decides what its run finds."""
    valid = schema.validate(values)
    data = {key: value for key, value in valid.data.values.items() if key != "root"}
    source = valid.root.init_from and Path(valid.root.init_from).name
    return [valid.root.seed, valid.root.precision, source, valid.data.target, data, *(getattr(valid, part) for part in PARTS)]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table of Markdown, line by line."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


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
