"""What ``metarun export`` writes of a run for use elsewhere: what it is, which methods have it, and who writes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from metarun.abilities import UpdateRule, WeighsExamples
from metarun.errors import UserError, nearest
from metarun.predict import audit, optimizer
from metarun.run import Run


class Export(NamedTuple):
    """One thing that a run can give away."""

    write: Callable[[Run, Path, Path | None], dict[str, Any]]  # to a file, and a picture of it, if one is wanted; tells what it wrote
    what: str  # it is, for help
    ending: str  # of the file
    of: type  # the ability of methods that have it


EXPORTS = {
    "weights": Export(audit.export, "a weight for every file of the user's folder, the most suspicious first", ".csv", WeighsExamples),
    "optimizer": Export(optimizer.export, "a learned optimizer, for metarun.optimizer(FILE, params)", ".pt", UpdateRule),
}


def chosen(what: str) -> Export:
    """The export of this name.

    Raises:
        UserError: there is none.
    """
    if what not in EXPORTS:
        raise UserError(f"there is nothing called '{what}' to export{nearest(what, EXPORTS)} ({', '.join(EXPORTS)})")
    return EXPORTS[what]


def export(run: Run, what: str, out: Path, picture: Path | None) -> dict[str, Any]:
    """Write ``what`` of a run to ``out``; returns what was written.

    Raises:
        UserError: the method has no such thing, or a path does not end as it should.
    """
    found = chosen(what)
    if not isinstance(run.algorithm, found.of):
        has = ", ".join(name for name, other in EXPORTS.items() if isinstance(run.algorithm, other.of)) or "nothing else"
        raise UserError(f"algo={run.values['algo']['name']} has no {what} to export, and {has}")
    if out.suffix != found.ending:
        raise UserError(f"--out {out} is not possible: give a file that ends in {found.ending}")
    if picture and picture.suffix != ".png":
        raise UserError(f"--sheet {picture} is not possible: give a file that ends in .png")
    return found.write(run, out, picture)
