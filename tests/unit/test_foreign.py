"""Files of somebody else's run folder: refused before any work, in one line, whatever is in them."""

from __future__ import annotations

import os
import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from metarun.config.compose import compose, resolve
from metarun.config.schema import validate
from metarun.config.stored import read_config
from metarun.data.word_vectors import read_word_vectors
from metarun.errors import RunError, UserError
from metarun.run import Run
from metarun.storage import checkpoint, foreign
from metarun.storage.foreign import DamagedError, refuse_links

STATE = {"problem": {"classes": 9, "outputs": 3}, "algorithm": {"w": torch.arange(3.0)}, "outer": {}, "progress": {}}


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    path.with_name("victim").write_text("way: 5\n")
    path.symlink_to(path.with_name("victim"))


def aliases(path: Path) -> None:
    levels = [f"a{n}: &a{n} [{', '.join(f'*a{n - 1}' for _ in range(9))}]" for n in range(1, 10)]
    path.write_text("\n".join(["a0: &a0 [x]", *levels]))


HOSTILE = {
    "a pipe": (pipe, "is no plain file"),
    "a link": (link, "it is a link"),
    "a folder": (Path.mkdir, "is no plain file"),
    "zeros without end": (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 2**40), "is too large to be one"),
    "aliases": (aliases, "has YAML aliases"),
    "brackets": (lambda path: path.write_text("[" * 100_000), "is nested more than 50 levels deep"),
    "dashes": (lambda path: path.write_text("- " * 100_000), "is nested more than 50 levels deep"),
    "braces, closed": (lambda path: path.write_text("{a: " * 1000 + "}" * 1000), "is nested more than 50 levels deep"),
    "code": (lambda path: path.write_text("a: !!python/object/apply:os.system [true]"), "cannot be read"),
    "a reference": (lambda path: path.write_text("name: ${oc.env:HOME}"), r"is refused: \$\{oc.env:HOME\}"),
    "bytes": (lambda path: path.write_bytes(b"\x00\xff"), "cannot be read"),
    "nothing": (lambda path: path.write_text(" \n"), "is empty"),
}


@pytest.mark.parametrize(("make", "why"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_configuration_is_refused_at_once(tmp_path: Path, make: Callable[[Path], object], why: str) -> None:
    make(tmp_path / "config.yaml")
    begun = time.process_time()
    with pytest.raises(UserError, match=why) as caught:
        read_config(tmp_path)
    assert time.process_time() - begun < 10
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000, '{"a": ' + "9" * 5000 + "}", "{", '[{"a": 1}]'])
def test_a_hostile_summary_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(DamagedError, match=r"summary\.json"):
        foreign.json_object(tmp_path / "summary.json")


def test_what_is_read_cannot_steer_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"al\\u001bgo": ["\\u001b[2Jmaml\\u0007", "\\u202egnp", "naïve 猫"]}')
    assert foreign.json_object(tmp_path / "summary.json") == {"al�go": ["�[2Jmaml�", "�gnp", "naïve 猫"]}


@pytest.mark.parametrize("place", ["metrics.jsonl", "tb", "eval", "checkpoints/last.pt", ".jobs"])
def test_a_link_in_a_runs_folder_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    refuse_links(tmp_path / "run")
    (tmp_path / "run" / place).symlink_to(tmp_path)
    with pytest.raises(UserError, match=rf"run/{place} is a link, which metarun never makes"):
        refuse_links(tmp_path / "run")


def saved(tmp_path: Path, **changes: object) -> Path:
    """A checkpoint as torch writes it, with other content."""
    path = tmp_path / "run" / "checkpoints" / "best.pt"
    path.parent.mkdir(parents=True)
    torch.save({**STATE, **changes}, path)
    return path


def test_every_flipped_bit_of_a_checkpoint_that_matters_is_seen(tmp_path: Path) -> None:
    """Whatever bit is flipped, the content is refused or it is the very same."""
    path = saved(tmp_path)
    whole = path.read_bytes()
    said = set()
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :])
        try:
            found = checkpoint.load(path)["algorithm"]["w"].tolist()
        except RunError as error:
            found = str(error)
        said.add(str(found))
    assert said == {"[0.0, 1.0, 2.0]", f"the checkpoint {path} is damaged and cannot be read"}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"algorithm": {"w": torch.tensor([1.0, float("nan")])}}, r"holds weights that are not finite numbers \(w\)"),
        ({"outer": {"m": [torch.tensor(float("inf"))]}}, "holds an optimizer whose numbers are not finite"),
        ({"problem": {"classes": 9, "outputs": 10**9}}, "says outputs=1000000000, for which it has no weights"),
        ({"problem": {"classes": -1, "outputs": 3}}, "says classes=-1"),
        ({"algorithm": {"w": torch.zeros(1).expand(10**9)}}, "is damaged"),
        ({"algorithm": {"w\x1b[2J": torch.zeros(1)}}, "is damaged"),
        ({"algorithm": [1]}, "is damaged"),
    ],
)
def test_a_checkpoint_that_no_run_has_written_is_refused(tmp_path: Path, changes: dict[str, object], why: str) -> None:
    with pytest.raises(RunError, match=why) as caught:
        checkpoint.load(saved(tmp_path, **changes))
    assert str(caught.value).isprintable()


def test_a_packed_checkpoint_is_refused_before_it_unfolds(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("best/data.pkl", pickle.dumps(0))
        archive.writestr("best/data/0", bytes(10**8))
    assert path.stat().st_size < 200_000
    with pytest.raises(RunError, match="is damaged"):
        checkpoint.load(path)


def bomb(path: Path) -> None:
    np.savez_compressed(path, edges=np.zeros(40_000_000, np.int8))


@pytest.mark.parametrize(
    ("words", "name", "make", "why"),
    [
        ("nas201 algo=random_search", "x.npz", bomb, "would unfold to 40,000"),
        ("graph algo=gcn", "x.npz", bomb, "would unfold to 40,000"),
        ("text algo=nearest", "a/x.txt", pipe, "is not a regular file"),
        ("text algo=nearest", "x.zip", pipe, "not a regular file"),
        ("text algo=nearest", "x.jsonl", pipe, "is no file of texts"),
        ("speech algo=nearest", "x.zip", pipe, "is neither a folder nor a .zip"),
    ],
)
def test_data_that_would_fill_memory_or_be_waited_for(
    tmp_path: Path, words: str, name: str, make: Callable[[Path], object], why: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    make(tmp_path / name)
    root = tmp_path if "/" in name else tmp_path / name
    with pytest.raises(UserError, match=why):
        Run(resolve(compose([*f"data={words} data.root={root} way=2 device=cpu".split()])))


def test_word_vectors_that_would_fill_memory(tmp_path: Path) -> None:
    bomb(tmp_path / "x.npz")
    with pytest.raises(UserError, match="would unfold to 40,000"):
        read_word_vectors(tmp_path / "x.npz", ["cat"])


def test_lists_that_hold_themselves_end(tmp_path: Path) -> None:
    twice: list[object] = []
    for _ in range(60):
        twice = [twice, twice]
    with pytest.raises(RunError, match="holds weights"):
        checkpoint.load(saved(tmp_path, outer={"x": twice}, algorithm={"w": torch.tensor(float("nan"))}))


def test_the_good_checkpoint_is_named_and_no_bad_one(tmp_path: Path) -> None:
    path = saved(tmp_path, algorithm={"w": torch.tensor(float("nan"))})
    last = path.with_name("last.pt")
    checkpoint.save(last, STATE)
    with pytest.raises(RunError, match=r"last\.pt beside it can be used: metarun eval \S+/run --checkpoint last"):
        checkpoint.load(path)
    last.write_bytes(last.read_bytes()[:-9])
    with pytest.raises(RunError, match=r"finite numbers \(w\)$"):
        checkpoint.load(path)


def test_numbers_that_are_none_are_never_saved(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, STATE)
    before = path.read_bytes()
    with pytest.raises(RunError, match=r"weights that are not finite numbers .* stays as it was"):
        checkpoint.save(path, {**STATE, "algorithm": {"w": torch.tensor(float("inf"))}})
    assert path.read_bytes() == before


@pytest.mark.parametrize("section", ["algo", "data", "net", "optim"])
def test_a_name_is_a_name(section: str) -> None:
    values = resolve(compose([]))
    with pytest.raises(UserError, match=rf"{section}\.name=.* is not possible") as caught:
        validate({**values, section: {**values[section], "name": "[link=file:///etc]\x1b[2Jx"}})
    assert str(caught.value).isprintable()
