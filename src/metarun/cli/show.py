"""``metarun show``: a picture of an episode, of a split's classes, of augmentation, of a net's cell; of a RUN, with its answers."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from metarun.cli.parser import Parser, counted, is_folder, overrides
from metarun.errors import UserError
from metarun.storage.foreign import refuse_links

WORDS = "run or overrides"
DRAWINGS = {"episode": "", "classes": "classes-", "augmentation": "augmentation-", "cell": "cell-"}  # and how their files' names begin
SPLITS = ("train", "val", "test")


def parser() -> Parser:
    """Its options."""
    parser = Parser(
        "show",
        "[RUN] [KEY=VALUE ...]",
        "Draw what a learner gets: support and query of an episode. With a RUN's folder first, an episode of that run's\n"
        "configuration, and, where it has a checkpoint, what its learner answers after adapting, or which augmentation it has learned.",
    )
    parser.option("--what", choices=tuple(DRAWINGS), default="episode", help="what to draw (default: episode)")
    parser.option("--split", choices=SPLITS, help="of which split (default: the first there is; of a RUN, val)")
    parser.option("--index", metavar="N", default="0", help="number of the episode, or of the sheet of classes (default: 0)")
    parser.option("--checkpoint", choices=("best", "last"), default="best", help="of a RUN: best on development tasks (default), or last")
    parser.option(
        "--out", metavar="FILE.png", help="where to (default: below outputs/show, or RUN/show); FILE.gif: trajectories on a plane as a film"
    )
    return parser


def run(options: Namespace) -> dict[str, Any]:
    """Draw; prints the picture's path."""
    index = counted(options.index)
    if index is None:
        raise UserError(f"--index {options.index} is not possible: it is the number of an episode or of a sheet of classes, 0, 1, 2, …")
    folder, values = _configuration(options.words)
    if folder and not options.out:
        refuse_links(folder)  # the picture goes there
    from metarun import run
    from metarun.cli.summary_table import show_found
    from metarun.drawing import figures
    from metarun.storage import checkpoint
    from metarun.tracking.console import start_logging

    start_logging()
    stored = folder / "checkpoints" / f"{options.checkpoint}.pt" if folder else None
    trained = checkpoint.load(stored) if stored and stored.is_file() else None
    built = run.Run(values, trained)
    order = SPLITS[1:] + SPLITS[:1] if folder and options.what != "augmentation" else SPLITS
    split = options.split or next(name for name in order if name in built.data.splits)
    name = f"{split}-{DRAWINGS[options.what]}{index}.png"
    path = Path(options.out or (folder / "show" / name if folder else f"outputs/show/{values['name']}-{name}"))
    answered = {"answered": True} if trained and options.what == "episode" else {}
    if options.what == "episode" and path.suffix.lower() == ".gif":
        figures.film(built, split, index, path)
    else:
        figures.save(getattr(figures, options.what)(built, split, index, **answered), path)
    found = built.algorithm.found() if trained and options.what == "augmentation" else {}
    show_found(found)
    print(path)
    return {"picture": str(path), "answered": bool(answered)} | ({"found": found} if found else {})


def _configuration(words: list[str]) -> tuple[Path | None, dict[str, Any]]:
    """The RUN's folder, if the first word is one, and what is to be drawn."""
    from metarun.config import compose

    if words and is_folder(words[0]) and not words[0].startswith("~"):
        from metarun.config.stored import read_config

        return Path(words[0]), compose.override(read_config(Path(words[0])), words[1:])
    return None, compose.resolve(compose.compose(overrides(words, "show")))
