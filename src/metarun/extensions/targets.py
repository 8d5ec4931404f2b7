"""Classes of the user: found where the user said, imported when a configuration names one, and every mistake told in one line.
Nothing is run that lies elsewhere, whatever a configuration says: a run folder from somebody else is data, not code."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from metarun.errors import MissingLibrary, RunError, UserError, nearest
from metarun.extensions.sources import sources


def foreign(target: Any) -> bool:
    """Whether a class is not metarun's own."""
    return target.__module__.partition(".")[0] != "metarun"


def load(key: str, path: str, base: type, ours: str) -> type:
    """The class that ``key=path`` of a configuration names.

    Args:
        key: for the error, such as ``algo._target_``.
        path: PACKAGE.MODULE.CLASS, in a folder of ``--with`` or an installed package of the entry point group.
        base: the class that it must derive from.
        ours: for the error, how the paths of metarun's own such classes begin; empty if there are none.

    Raises:
        UserError: it lies elsewhere, cannot be imported, or is no such class.
    """
    module, _, name = path.rpartition(".")
    root = _root(module.partition(".")[0])
    if root is None:
        own = f"below {ours}* are run from a configuration, and those " if ours else ""
        raise UserError(f"{key}={path} is refused: only classes {own}of a folder that you name with --with FOLDER or $METARUN_WITH")
    target = _member(key, path, _imported(key, path, module, root), name)
    if not (inspect.isclass(target) and issubclass(target, base)):
        raise UserError(f"{key}={path} is refused: it is no {base.__name__}; derive the class from {base.__module__}.{base.__name__}")
    if missing := sorted(getattr(target, "__abstractmethods__", ())):
        raise UserError(f"{key}={path} is not complete: it lacks {', '.join(missing)}, which every {base.__name__} has")
    home = Path(inspect.getfile(target)).resolve()
    if not home.is_relative_to(root):
        raise UserError(f"{key}={path} is refused: {name} is defined in {home}, not below {root}; name it where it is defined")
    return target


def _root(package: str) -> Path | None:
    """The folder of the user's that ``package`` lies in; None if it lies elsewhere. Nothing is imported."""
    places = [(source.code, source.installed) for source in sources() if source.code]
    for root, installed in places:
        if not installed and str(root) not in sys.path:
            sys.path.append(str(root))  # never before: what is installed is not replaced by a file of the same name
    importlib.invalidate_caches()
    try:
        spec = importlib.util.find_spec(package) if package else None
    except (ImportError, ValueError):
        return None
    found = [] if spec is None else [spec.origin] if spec.has_location else list(spec.submodule_search_locations or [])
    return next((root for root, _ in places for path in found if path and Path(path).resolve().is_relative_to(root)), None)


def _imported(key: str, path: str, module: str, root: Path) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and module.startswith(error.name):
            raise UserError(f"{key}={path} does not exist: there is no module {error.name} below {root}") from None
        raise UserError(f"{key}={path} cannot be imported: {said(error, root)}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{key}={path} cannot be imported: {said(error, root)}") from error


def _member(key: str, path: str, module: ModuleType, name: str) -> Any:
    if not hasattr(module, name):
        classes = [name for name, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module.__name__]
        raise UserError(f"{key}={path} does not exist: {module.__file__} has no {name}{nearest(name, classes)}")
    return getattr(module, name)


@contextmanager
def told(what: str, target: Any) -> Iterator[None]:
    """Within, a class of the user is at work: whatever goes wrong is one line that says ``what``, and where in the user's file.

    Raises:
        UserError: for every error that is neither told already nor a ``ValueError``, by which a net or method refuses data.
    """
    try:
        yield
    except (UserError, MissingLibrary, RunError):
        raise
    except Exception as error:
        if not foreign(target) or (isinstance(error, ValueError) and type(error) is ValueError):
            raise
        raise UserError(f"{what}: {said(error, Path(inspect.getfile(target)).parent)}") from error


def require(what: str, thing: Any, names: tuple[str, ...]) -> None:
    """Refuse a thing of the user's that lacks one of the attributes ``names``.

    Raises:
        UserError: it does.
    """
    for name in names:
        if not hasattr(thing, name):
            raise UserError(f"{what} {type(thing).__name__} does not say its {name}: set self.{name} in its constructor")


def said(error: BaseException, root: Path) -> str:
    """``FILE, line N: ERROR: what it says``, of the innermost frame below ``root``, in one line."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: SyntaxError: {error.msg}"
    text = next(iter(str(error).splitlines()), "")
    return f"{_place(error, [root])}{type(error).__name__}: {' '.join(text.split())}"


def place(error: BaseException) -> str:
    """``FILE, line N: `` of the innermost frame in a file of the user's; empty where there is none."""
    return _place(error, [source.code for source in sources() if source.code])


def _place(error: BaseException, roots: list[Path]) -> str:
    homes = [root.resolve() for root in roots]
    frames = traceback.extract_tb(error.__traceback__) if homes else []
    mine = [frame for frame in frames if any(Path(frame.filename).resolve().is_relative_to(home) for home in homes)]
    return f"{mine[-1].filename}, line {mine[-1].lineno}: " if mine else ""
