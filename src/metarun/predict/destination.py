"""Where the answers of ``metarun predict`` and ``metarun classify`` go: a folder or a table, claimed before there is anything to write,
and never over what is asked about, nor among it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal, NamedTuple

from metarun.errors import UserError
from metarun.predict.sources import table_of
from metarun.storage.files import replace_file
from metarun.storage.run_folder import new_folder

BESIDE = ("sheet.png", "confusion.csv", "confusion.png")  # the table, in a folder
Format = Literal["csv", "json"]


class Destination(NamedTuple):
    """Where answers go.

    Attributes:
        table, sheet: files; no sheet is drawn where there is none.
        folder: has room for more than was asked for; None: the table was asked for as a file.
    """

    table: Path
    sheet: Path | None
    folder: Path | None

    @classmethod
    def of(cls, place: Path, format: Format | None, sheet: Path | None) -> Destination:
        """In a folder, or a table as a file, which has no sheet beside it unless that is given.

        Raises:
            UserError: ``place`` can be neither, or is a table of another format.
        """
        if place.suffix in (".csv", ".json") and not place.is_dir():
            if format and place.suffix != f".{format}":
                raise UserError(f"--out {place} and --format {format} contradict each other: leave one out")
            return cls(place, sheet, None)
        if place.suffix or place.is_file():
            raise UserError(f"--out {place} is not possible: give a folder, or a file that ends in .csv or .json")
        return cls(place / f"predictions.{format or 'csv'}", sheet or place / "sheet.png", place)

    @property
    def beside(self) -> list[Path]:
        """What else the folder may get."""
        return [self.folder / name for name in BESIDE] if self.folder else []

    def spare(self, given: Iterable[Path]) -> None:
        """Refuse to write over what is read, or to leave pictures where the next call would read them.

        Args:
            given: folders and files of support and queries.
        """
        written = [path for path in (self.table, self.sheet, *self.beside) if path]
        there, drawn = [path for path in written if path.exists()], [path for path in written if path.suffix == ".png"]
        for place in given:
            if over := next((path for path in there if place.exists() and path.samefile(place)), None):
                raise UserError(f"{over} would be written over, but is one of the files to be read: name another place by --out or --sheet")
            if place.is_dir() and (within := next((path for path in drawn if path.resolve().is_relative_to(place.resolve())), None)):
                raise UserError(
                    f"{within} would lie in {place} and be one of its pictures in the next call: name another place by --out or --sheet"
                )

    def write(self, text: str) -> None:
        """The table, with names of files as they are in the file system; an earlier call's sheet and confusion do not stay beside it."""
        for path in self.beside:
            path.unlink(missing_ok=True)
        replace_file(self.table, lambda handle: handle.write(text.encode(errors="surrogateescape")))


@contextmanager
def destination(out: str | None, format: Format | None, sheet: str | None, kept: Path, given: Sequence[str]) -> Iterator[Destination]:
    """Where the answers of a call go.

    Args:
        out, format, sheet: as the options of these names say.
        kept: the folder that gets a folder for every call without ``out``, at once; it goes again if nothing comes of the call.
        given: folders and files of support and queries, which are spared, see ``Destination.spare``, as are their tables of labels.

    Raises:
        UserError: these do not go together, or no folder can be made.
    """
    if sheet and Path(sheet).suffix != ".png":
        raise UserError(f"--sheet {sheet} is not possible: give a file that ends in .png")
    numbers = (kept / str(n) for n in range(10**6))
    with new_folder(numbers, "name another by --out DIR") if out is None else nullcontext(Path(out)) as place:
        to, places = Destination.of(place, format, Path(sheet) if sheet else None), [Path(name) for name in given]
        to.spare([*places, *filter(None, map(table_of, places))])
        yield to
