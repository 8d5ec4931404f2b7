"""Where options and classes come from beside metarun itself: folders of ``--with`` and ``$METARUN_WITH`` and packages of the entry point
group ``metarun``, with code; folders of ``--config-dir``, YAML alone. The environment carries them into the jobs of a sweep."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from metarun.errors import UserError, nearest

WITH, CONFIG_DIR = "METARUN_WITH", "METARUN_CONFIG_DIR"


class Source(NamedTuple):
    """A place that options come from, and perhaps classes."""

    name: str  # what people know it by
    conf: Path  # its YAML, in folders by group
    code: Path | None  # the folder that its classes are defined below; None: it has none
    installed: bool = False  # Python finds its packages by itself


def sources() -> list[Source]:
    """All of them: folders of the user first, then installed packages, then YAML alone.

    Raises:
        UserError: a folder is none, or an installed package is not to be found.
    """
    mine = [_folder(name) for name in _listed(WITH)]
    yaml = [Source(name, _existing(name, "--config-dir"), None) for name in _listed(CONFIG_DIR)]
    return [*mine, *_packages(), *yaml]


@contextmanager
def given(folders: Iterable[str | Path], config_dirs: Iterable[str | Path] = ()) -> Iterator[None]:
    """Within: ``folders`` with code and ``config_dirs`` of YAML alone count, beside those of the environment.

    Raises:
        UserError: see ``sources``.
    """
    for folder in folders:
        _folder(str(folder))  # so that an error names it as it was given
    for folder in config_dirs:
        _existing(str(folder), "--config-dir")
    wanted = {WITH: [*_listed(WITH), *map(str, folders)], CONFIG_DIR: [*_listed(CONFIG_DIR), *map(str, config_dirs)]}
    before = {name: os.environ.get(name) for name in wanted}
    for name, paths in wanted.items():
        os.environ[name] = os.pathsep.join(dict.fromkeys(map(os.path.abspath, paths)))
    try:
        sources()
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _listed(name: str) -> list[str]:
    return [path for path in os.environ.get(name, "").split(os.pathsep) if path]


def _existing(name: str, option: str) -> Path:
    path = Path(name)
    if not path.is_dir():
        siblings = [str(other) for other in path.parent.iterdir() if other.is_dir()] if path.parent.is_dir() else []
        raise UserError(f"{option} {name} {'is not a folder' if path.exists() else 'does not exist'}{nearest(name, siblings)}")
    return path.resolve()


def _folder(name: str) -> Source:
    path = _existing(name, "--with")
    if not (path / "conf").is_dir() and not any(path.glob("*.py")) and not any(path.glob("*/*.py")):
        raise UserError(f"--with {name} has neither a conf/ folder nor Python files: name the folder that holds them")
    return Source(path.name, path / "conf", path)


@cache
def _packages() -> list[Source]:
    """Installed packages: ``[project.entry-points.metarun] NAME = "PACKAGE"``, with options in PACKAGE/conf. None is imported."""
    found = []
    for point in sorted(entry_points(group="metarun"), key=lambda point: point.name):
        top, *below = point.value.split(".")
        spec = find_spec(top)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"the installed package {top} (entry point {point.name}) is not to be found: install it again, or uninstall it")
        home = Path(next(iter(spec.submodule_search_locations))).resolve()
        found.append(Source(top, home.joinpath(*below, "conf"), home, installed=True))
    return found
