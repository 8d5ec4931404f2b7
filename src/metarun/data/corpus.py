"""Labelled texts as files: lines of JSON, tables, class folders, and archives of several corpora. Every mistake names file and line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from metarun.data.archive import read
from metarun.data.picture import search
from metarun.data.records import records
from metarun.errors import UserError, nearest

LINE = '{"text": "…", "label": "…"}'
FORMS = (
    "give data.root=FILE, lines of JSON (.jsonl) or a table (.csv) with the columns text and label; or a folder with one folder of .txt "
    "files per class; or an archive (.zip) or folder of corpora, with data.corpus=NAME"
)
# The parts of a corpus by its own division, which is not used: classes are divided, not texts.
PART = r"(?:.*/)?(?P<corpus>[^/]+)/(?:train|valid|val|dev|test)\.(?:jsonl|csv)"
RELATIONS = r"(?:.*/)?val_(?P<corpus>[^/]+)\.json"  # as FewRel's


def gather(root: Path, corpus: str | None) -> dict[str, list[str]]:
    """All texts by the name of their class.

    A corpus is a folder with ``train``, ``valid`` and ``test`` as ``.jsonl`` or ``.csv``, all of which is taken, in an archive or folder;
    or a file ``val_NAME.json`` of relations as FewRel publishes them, whose two things are marked in the text.

    Args:
        root: a file, folder or archive.
        corpus: which one of several, in small letters or not.

    Raises:
        UserError: there is no such file, folder or corpus, or a line that is none.
    """
    if not root.exists():
        raise UserError(f"data.root={root} does not exist; {FORMS}")
    if corpus is not None or root.suffix == ".zip":
        return _collect(_corpus(root, corpus))
    if root.is_dir():
        return _folders(root)
    if root.suffix not in (".jsonl", ".csv") or not root.is_file():
        raise UserError(f"data.root={root} is no file of texts; {FORMS}")
    return _collect(_records(root.name, root.read_bytes()))


def _collect(records: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    classes: dict[str, list[str]] = {}
    for label, text in records:
        classes.setdefault(label, []).append(text)
    return classes


def _corpus(root: Path, corpus: str | None) -> Iterator[tuple[str, str]]:
    pattern = re.compile(f"(?:{PART})|(?:{RELATIONS.replace('corpus', 'relations')})")
    files = []
    for name, content in read(root, pattern):
        found = pattern.fullmatch(name)
        assert found
        files.append((found["corpus"] or found["relations"], name, content))
    known = sorted({name for name, _, _ in files})
    chosen = [file for file in files if corpus and file[0].lower() == corpus.lower()]
    if not chosen:
        asked = f"there is no corpus {corpus} in {root}{nearest(corpus, known)}" if corpus else f"{root} holds several corpora"
        raise UserError(f"{asked}; choose data.corpus={' or '.join(known)}" if known else f"{root} holds no corpus; {FORMS}")
    for _, name, content in chosen:
        yield from _relations(name, content) if name.endswith(".json") else _records(name, content)


def _records(name: str, content: bytes) -> Iterator[tuple[str, str]]:
    """Label and text of every line."""
    for number, record in records(name, content, ["text", "label"], LINE):
        where = f"{name} line {number}"
        if not isinstance(record, dict) or not isinstance(record.get("text"), str) or not isinstance(record.get("label"), (str, int)):
            raise UserError(f"{where} has no text and label; write it as {LINE}" if name.endswith(".jsonl") else f"{where} is too short")
        if not record["text"].strip() or not str(record["label"]).strip():
            raise UserError(f"{where} has an empty {'label' if record['text'].strip() else 'text'}; remove the line")
        yield str(record["label"]).strip(), record["text"]


def _relations(name: str, content: bytes) -> Iterator[tuple[str, str]]:
    """Relation and sentence, its two things in brackets: ``[ada lovelace] was born in [london] .``"""
    try:
        for relation, sentences in json.loads(content).items():
            for sentence in sentences:
                words = list(sentence["tokens"])
                for thing in (sentence["h"], sentence["t"]):
                    for at in thing[2]:
                        words[at[0]] = f"[{words[at[0]]}"
                        words[at[-1]] = f"{words[at[-1]]}]"
                yield relation, " ".join(words)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise UserError(f"{name} is no file of relations as FewRel's ({type(error).__name__}: {error})") from None


def _folders(root: Path) -> dict[str, list[str]]:
    """A class per folder, a text per file."""
    classes = search(root, (".txt",)).classes
    if not any(classes.values()):
        raise UserError(f"{root} has no class folders with .txt files; {FORMS}")
    found: dict[str, list[str]] = {}
    for name, paths in classes.items():
        for path in paths:
            if not path.is_file():  # a pipe would wait for ever
                raise UserError(f"{path} is not a regular file; remove it")
            try:
                text = path.read_text(encoding="utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"{path} is no text in UTF-8 ({error})") from None
            if not text.strip():
                raise UserError(f"{path} is an empty text; remove the file")
            found.setdefault(name, []).append(text)
    return found
