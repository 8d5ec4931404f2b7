"""The documentation keeps its promises: the tutorial runs as printed and prints what it quotes, links lead somewhere, commands compose."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from cli_support import program
from helpers import composed
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from metarun.cli import commands as known
from metarun.cli import compare, main
from metarun.config import compose, options, schema
from metarun.errors import UserError
from metarun.session.runs import goes_further

CHECKOUT = Path(__file__).resolve().parents[2]
DOCS = CHECKOUT / "docs"
FIRST_READ = {"README.md", "index.md", "tutorial.md"}
PAGES = [*sorted(CHECKOUT.glob("*.md")), *sorted(DOCS.glob("*.md"))]
# What the quick form of the tutorial adds to each run: the same commands, on less.
GLYPHS = ["data.train_classes=20", "data.val_classes=20", "data.test_classes=20"]
SHORT = ["trainer.iterations=4", "trainer.val_every=2", "trainer.val_episodes=4", "trainer.test_episodes=5", "trainer.meta_batch=1"]


class Block(NamedTuple):
    """A fenced block: its language, what a comment before it tells this test, and its text."""

    language: str
    hint: str
    text: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"(?:^<!-- test: ([\w ]+) -->\n)?^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [Block(language, hint, text) for hint, language, text in found]


def pattern(line: str) -> str:
    """A quoted line as a regular expression: numbers and rules may differ, … stands for anything, spaces for any spaces."""
    words = re.split(r"(…|[+−-]?\d[\d,.]*|─+|\s+)", line.strip())
    kinds = {"…": ".*", "─": "─+"}
    return "".join(
        kinds.get(word[:1]) or (r"\s+" if word.isspace() else r"[+−-]?\d[\d,.]*" if re.search(r"\d", word) else re.escape(word))
        for word in words
        if word
    )


def assert_prints(quoted: str, output: str) -> None:
    """Every quoted line is printed, in this order."""
    left = output.splitlines()
    for line in quoted.splitlines():
        if line.strip(" …"):
            at = next((i for i, printed in enumerate(left) if re.fullmatch(pattern(line), printed.strip())), None)
            assert at is not None, f"the page quotes\n  {line}\nbut the command prints\n{output}"
            left = left[at + 1 :]


def run_here(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """A command in the current folder, in this process where it is our own; returns status and output."""
    if words[0] != "metarun":
        command = [sys.executable if words[0] == "python" else words[0], *words[1:]]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.returncode, done.stdout
    capsys.readouterr()
    status = main.main(words[1:])
    GlobalHydra.instance().clear()  # a real program ends here
    logging.basicConfig(handlers=[], force=True)
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def run_and_interrupt(words: list[str]) -> tuple[int, str]:
    """A run of which Ctrl-C is pressed when it has validated once."""
    folder = Path(next(word.partition("=")[2] for word in words if word.startswith("hydra.run.dir=")))
    with program(*words[1:], cwd=Path.cwd()) as process:
        deadline = time.monotonic() + 300
        while not (folder / "checkpoints" / "last.pt").is_file():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=300)
    return process.returncode, out + err


def shortened(words: list[str]) -> list[str]:
    """A training command on less data and fewer steps; others as they are."""
    if "experiment=tutorial" not in words or "check" in words:
        return words
    given = {word.partition("=")[0] for word in words}
    return [*words, *(GLYPHS if "data=folder" not in words else []), *(word for word in SHORT if word.partition("=")[0] not in given)]


@pytest.fixture
def perform(tmp_path, monkeypatch, capsys):
    """A function that does in an empty folder what a page prints, and asserts what it promises."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # what the pages quote is a CPU's
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def page(name: str, short: bool) -> None:
        output = ""
        for language, hint, text in blocks(DOCS / name):
            if language == "python":
                Path(text.partition("\n")[0].removeprefix("# ")).write_text(text, encoding="utf-8")
            elif language == "text":
                if not (short and hint == "slow"):
                    assert_prints(text, output)
            elif hint != "skip":
                for line in text.splitlines():
                    words = shortened(shlex.split(line)) if short else shlex.split(line)
                    expected = 130 if hint == "interrupt" else int(hint.removeprefix("status ") or 0)
                    status, output = run_and_interrupt(words) if hint == "interrupt" else run_here(words, capsys)
                    assert status == expected, f"{line}\n{output}"

    return page


@pytest.mark.slow
@pytest.mark.parametrize("short", [True, pytest.param(False, marks=pytest.mark.timeout(1800))], ids=["short", "as printed"])
def test_the_tutorial_runs_and_prints_what_it_quotes(perform, short):
    perform("tutorial.md", short)
    for left in ("outputs/compare/report.html", "answers/sheet.png", "outputs/protonet/eval/0/summary.json"):
        assert Path(left).is_file()


@pytest.mark.slow
def test_the_page_on_data_prints_what_it_quotes(perform):
    random = np.random.default_rng(0)
    for name in ("beagle", "collie", "husky", "pug", "spaniel", "tabby", "siamese", "manx", "sphynx", "birman"):
        Path("photos", name).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(random.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(Path("photos", name, f"{i}.jpg"))
    perform("data.md", True)
    assert Path("val.png").is_file()


def slugs(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), f"{page.name} links to {target}, which is not there"
        assert found.is_relative_to(CHECKOUT)
        if anchor:
            assert anchor in slugs(found), f"{page.name} links to {target}; headings: {sorted(slugs(found))}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_no_place_of_one_machine(page):
    assert not re.search(r"(?<![\w.])/(home|work|root|tmp|Users|mnt)/", page.read_text(encoding="utf-8"))


def commands(page: Path) -> Iterator[str]:
    """Every metarun command of a page: in blocks, fenced or indented, and in running text; those that are meant to fail left out."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^<!-- test: status 2 -->\n```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^```(?:text|python|yaml|json)\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r" *\\\n *", " ", text)
    inline = re.findall(r"`((?:torchrun [^`]*-m )?metarun [^`\n]+)`", text)
    for line in [*re.findall(r"^ *(?:[A-Z_]+=\S+ )*((?:torchrun .*?-m )?metarun .*)$", text, re.MULTILINE), *inline]:
        yield re.sub(r"^torchrun .*-m ", "", line).partition(" #")[0].strip()


def vague(line: str) -> bool:
    """A form rather than a command: options in brackets, dots or bare capitals for what the reader puts in."""
    return bool(re.search(r"\[|…|\.\.\.|\bKEY=|\w=NAME\b", line))


@contextlib.contextmanager
def explained(line: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        pytest.fail(f"{line}\n{error}")


COMMANDS = [
    (page.name, line) for page in PAGES if page.name not in ("CONTRIBUTING.md", "your-own.md") for line in commands(page) if not vague(line)
]


def stored(page: str, line: str) -> dict:
    """The configuration of a run that could be evaluated again: that of the preset trained last on the page, or any."""
    before = COMMANDS[: COMMANDS.index((page, line))]
    presets = [
        shlex.split(other)[1:]
        for name, other in before
        if name == page and re.search(" experiment=(omniglot_small|omniglot_oneshot|paper)", other)
    ]
    return composed(*presets[-1] if presets else ())


def typed() -> Iterator[Any]:
    """The commands; `make test` tries those that everybody reads, and of the others one for each experiment or method."""
    seen = set()
    for page, line in dict.fromkeys(COMMANDS):
        chosen = next((word for word in shlex.split(line) if word.startswith(("experiment=", "algo="))), "")
        yield pytest.param(page, line, marks=pytest.mark.slow if chosen in seen and page not in FIRST_READ else [])
        seen.add(chosen)


@pytest.mark.parametrize(("page", "line"), list(typed()))
def test_commands_compose(page, line):
    words = [word for word in shlex.split(line)[1:] if word not in ("--json", "sweep=resume")]  # neither is part of a configuration
    if {"--help", "--version", "-sc"} & set(words):
        return
    command = words[0] if words and words[0] in known.COMMANDS else ""
    with explained(line):
        given = import_module(known.module_of(command)).parser().read(words[bool(command) :])
        if command == "compare":
            compare.parse(given)
        elif command == "eval":
            compose.override(stored(page, line), given.words[1:])
        elif command == "list":
            assert {word.partition("/")[0] for word in given.words} <= options.descriptions().keys()
        elif command in ("predict", "serve"):
            assert len(given.words) <= 1  # the command itself, or with its run
        elif command == "export":
            assert len(given.words) in (0, 2)  # its run, and what of it
        elif command == "resume":
            assert all(goes_further(word) for word in given.words[1:])
        else:
            overrides = [word for word in given.words if "=" in word or command != "show"]
            assert len(given.words) - len(overrides) <= 1  # its run
            for member in compose.members(overrides) if not command and given.multirun else [overrides]:
                schema.validate(composed(*member))


def test_every_algorithm_has_its_line_among_the_methods():
    lines = [line for page in DOCS.glob("*.md") for line in page.read_text(encoding="utf-8").splitlines()]
    for path in sorted((CHECKOUT / "conf" / "algo").glob("*.yaml")):
        line = next((line for line in lines if f"](../conf/algo/{path.name})" in line), None)
        assert line, f"the page of its family in docs/ lacks algo={path.stem}: command, paper, use and [a link](../conf/algo/{path.name})"
        assert f"algo={path.stem}" in line


def test_the_gallery_shows_each_picture_and_its_commands(monkeypatch):
    monkeypatch.syspath_prepend(CHECKOUT / "scripts")
    import gallery

    text = (DOCS / "gallery.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"\]\(pictures/(\w+)\.png\)", text))
    assert shown == gallery.MADE.keys()
    linked = {stem for page in DOCS.glob("*.md") for stem in re.findall(r"\]\(pictures/(\w+)\.\w+\)", page.read_text(encoding="utf-8"))}
    assert linked == {path.stem for path in (DOCS / "pictures").iterdir()}  # the others are made by the scripts that write their pages
    printed = gallery.programs(text) | gallery.programs((DOCS / "tutorial.md").read_text())
    assert printed.keys() == {"adapted_sine.py", "band.py", "shapes.py", "classify.py"}
    assert {words[0] for words in gallery.commands(text)} == {"metarun", "python"}
    for name in shown:
        assert (DOCS / "pictures" / f"{name}.png").stat().st_size <= gallery.LARGEST


def test_the_index_lists_every_page():
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    for page in DOCS.glob("*.md"):
        assert page.name == "index.md" or f"]({page.name})" in text
