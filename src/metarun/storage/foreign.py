"""Files of a run's folder, which may be somebody else's: data, never code and never a path to elsewhere.
Read without following links, within limits that are checked before any work, and as plain values that are safe to print."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from metarun.errors import RunError, UserError

HUGE = 4_000_000  # bytes; no config, summary or sweep comes near it
DEEP = 50  # levels of lists and dicts
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times the speed of the pure Python one


class DamagedError(RunError):
    """A file or folder that cannot be used; the message is the reason."""


def open_plain(path: Path) -> BinaryIO:
    """A plain file, to be read.

    Raises:
        DamagedError: it is a pipe or a device.
        OSError: there is none, or it is a link.
    """
    # Not blocking: a pipe without a writer would be waited for.
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise DamagedError(f"{path.name} is no plain file")
    return open(handle, "rb")


def read(path: Path, limit: int = HUGE) -> bytes:
    """The content of a plain file.

    Raises:
        DamagedError: there is none, it is a link, a pipe or a device, longer than ``limit`` bytes, or it cannot be read.
    """
    try:
        with open_plain(path) as file:
            if os.fstat(file.fileno()).st_size > limit:
                raise DamagedError(f"{path.name} is too large to be one")
            return file.read(limit)
    except FileNotFoundError:
        raise DamagedError(f"{path.name} is missing") from None
    except OSError as error:
        why = "it is a link" if path.is_symlink() else one_line(error)
        raise DamagedError(f"{path.name} cannot be read ({why})") from None


def text(path: Path) -> str:
    """The content of a text file that is not empty.

    Raises:
        DamagedError: see ``read``; or it is no text.
    """
    try:
        found = read(path).decode()
    except UnicodeDecodeError as error:
        raise DamagedError(f"{path.name} cannot be read ({one_line(error)})") from None
    if not found.strip("\0 \n"):
        raise DamagedError(f"{path.name} is empty")
    return found


def yaml_text(path: Path) -> str:
    """The text of a YAML file that is safe to load: no alias, which could unfold to gigabytes, and no nesting that overruns the stack.

    Raises:
        DamagedError: see ``text``; or it is not such a file.
    """
    found, depth = text(path), 0
    try:
        for event in yaml.parse(found, Loader=LOADER):  # flat, whatever the file holds
            if isinstance(event, yaml.AliasEvent):
                raise DamagedError(f"{path.name} has YAML aliases, which metarun never writes")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEP:
                raise DamagedError(f"{path.name} is nested more than {DEEP} levels deep")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path.name} is not valid YAML ({one_line(error)})") from None
    return found


def yaml_mapping(path: Path) -> dict[Any, Any]:
    """A YAML file that holds a mapping, its texts safe to print.

    Raises:
        DamagedError: see ``yaml_text``; or it holds something else.
    """
    found = yaml_text(path)
    try:
        value = yaml.load(found, Loader=LOADER)
    except (yaml.YAMLError, ValueError) as error:
        raise DamagedError(f"{path.name} is not valid YAML ({one_line(error)})") from None
    if not isinstance(value, dict):
        raise DamagedError(f"{path.name} holds no configuration")
    return printable(value)


def json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object, its texts safe to print.

    Raises:
        DamagedError: see ``text``; or it holds something else.
    """
    found = text(path)
    try:
        value = parse_json(found)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path.name} is not complete JSON ({one_line(error)})") from None
    if not isinstance(value, dict):
        raise DamagedError(f"{path.name} holds no object")
    return printable(value)


def parse_json(found: str | bytes) -> Any:
    """A JSON text as a value.

    Raises:
        ValueError, RecursionError: it is none, or holds an integer that no counter reaches.
    """
    return json.loads(found, parse_int=_integer)


def _integer(digits: str) -> int:
    if len(digits) > 19:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def printable(value: Any) -> Any:
    """Nested values with "�" for every character in their texts that would steer a terminal."""
    if isinstance(value, str):
        return value if value.isprintable() else "".join(c if c.isprintable() else "�" for c in value)
    if isinstance(value, dict):
        return {printable(key): printable(inner) for key, inner in value.items()}
    return [printable(inner) for inner in value] if isinstance(value, list) else value


def refuse_links(folder: Path) -> None:
    """What is in a run's or a sweep's folder is written as well as read: nothing in it may lead out of it.

    Raises:
        UserError: there is a link, a pipe or a device in it, at any depth.
    """
    for base, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(base, name)
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                what = "a link" if stat.S_ISLNK(mode) else "no plain file"
                raise UserError(f"{path} is {what}, which metarun never makes: put what it stands for in its place, or delete it")


def one_line(error: BaseException) -> str:
    """An exception's text on one line, kept short."""
    return printable(" ".join(str(error).split())[:120])
