"""``metarun predict RUN --support DIR|TABLE --query DIR|FILE|TABLE``: the options of a prediction, which ``predict.prediction`` makes."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from metarun.cli.parser import Parser, counted, run_folder
from metarun.errors import UserError

WORDS = "run"


def parser() -> Parser:
    """Its options."""
    parser = Parser(
        "predict",
        "RUN --support DIR|FILE --query DIR|FILE",
        "Adapt a trained run to your own pictures and classify others; or to rows of a table, and tell the class, or a number, of others.",
    )
    parser.option(
        "--support",
        metavar="DIR|FILE",
        required=True,
        help="one folder of pictures per class, any number in each; or labels.csv. Rows of numbers: a table (.csv, .tsv, .jsonl)",
    )
    parser.option(
        "--query",
        metavar="DIR|FILE",
        required=True,
        several=True,
        help="pictures to classify; in folders named like the classes, or with labels.csv: accuracy. May be given several times. "
        "Rows of numbers: a table with the columns of the support, that of the target or not",
    )
    parser.option("--target", metavar="COLUMN", help="the column of a table that is to be told (default: as in the run's data, else label)")
    parser.option("--reject", metavar="RATE", help="answer 'unknown' where no class fits, and lose about RATE (0.05) of those that do")
    parser.option("--steps", metavar="K", help="inner steps of adaptation (default: as in the run's test)")
    parser.option("--checkpoint", choices=("best", "last"), default="best", help="best on development tasks (default), or last")
    parser.option("--out", metavar="DIR|FILE", help="folder for table and sheet, or a .csv or .json file (default: RUN/predict/<n>)")
    parser.option("--format", choices=("csv", "json"), help="of the table (default: csv, or as FILE ends)")
    parser.option("--sheet", metavar="FILE.png", help="where to draw the pictures with their answers (default: in the folder)")
    parser.option("--export", metavar="FILE.pt2", help="write the adapted classifier as a torch.export program")
    return parser


def run(options: Namespace) -> dict[str, Any]:
    """Predict; prints a summary and returns it."""
    folder = run_folder(options.words, "predict")
    if rest := options.words[1:]:
        raise UserError(f"predict takes no '{rest[0]}' (`metarun predict --help` says what it takes)")
    steps = None if options.steps is None else counted(options.steps)
    if options.steps is not None and steps is None:
        raise UserError(f"--steps {options.steps} is not possible: it is a number of inner steps, 0, 1, 2, …")
    try:
        reject = None if options.reject is None else float(options.reject)
    except ValueError:
        raise UserError(f"--reject {options.reject} is not possible: it is a share between 0 and 1, such as 0.05") from None
    from metarun.predict.options import Options
    from metarun.predict.prediction import predict

    return predict(
        Options(
            run=folder,
            support=options.support,
            query=options.query,
            target=options.target,
            reject=reject,
            steps=steps,
            checkpoint=options.checkpoint,
            out=options.out,
            format=options.format,
            sheet=options.sheet,
            export=options.export,
        )
    )
