"""Tables of anybody's, CSV or lines of JSON, as one record per line. Every mistake names file and line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator
from typing import Any

from metarun.errors import UserError, nearest

ENDINGS = (".csv", ".tsv", ".jsonl")  # of the files that are read


def records(name: str, content: bytes, columns: Collection[str], form: str) -> Iterator[tuple[int, Any]]:
    """The number of every line, from 1, and what it holds by column; of lines of JSON whatever they are.

    A CSV table begins with a line that names its columns. Between them are commas, or semicolons or tabs where that line has more of them.

    Args:
        name: of the file, whose ending tells which of the two it is.
        columns: that a table must have.
        form: how a line of JSON should look, for a message.

    Raises:
        UserError: the content is no text, or no such table, or a column is missing or there twice, or a line has more cells than columns.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is no text in UTF-8 ({error})") from None
    yield from _lines(name, text, form) if name.lower().endswith(".jsonl") else _table(name, text, columns)


def _lines(name: str, text: str, form: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{name} line {number} is not JSON ({error}); write it as {form}") from None


def _table(name: str, text: str, columns: Collection[str]) -> Iterator[tuple[int, Any]]:
    heading = text.partition("\n")[0]
    rows = csv.DictReader(io.StringIO(text), delimiter=max(",;\t", key=heading.count), skipinitialspace=True)
    try:
        there = [column.strip() for column in rows.fieldnames or ()]
        rows.fieldnames = there
        if missing := [column for column in columns if column not in there]:
            raise UserError(
                f"{name} has no column {missing[0]}{nearest(missing[0], there)}; its first line names the columns, "
                f"{' and '.join(columns)} among them"
            )
        if twice := [column for i, column in enumerate(there) if column in there[:i]]:
            raise UserError(f"{name} has two columns {twice[0]!r}: rename or remove one")
        for row in rows:
            if row.pop(None, None):
                raise UserError(f"{name} line {rows.line_num} has more cells than the {len(there)} columns of the first line")
            yield rows.line_num, row
    except csv.Error as error:
        raise UserError(f"{name} line {rows.line_num} is no line of a table ({error})") from None
