"""Neural processes on functions of a Gaussian process and on sawtooth waves: trains what docs/black-box.md has in its table, and prints it.

python scripts/reproduce_np.py [--runs outputs/np] [--only sawtooth_convcnp …] [--write]

Every line is a run of metarun, `experiment=gp_cnp` and so on; finished runs are not repeated. --only: the other lines stay as the page has
them. --write: table and picture go to the page.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pages import PLAIN, finished, put

from metarun.cli import main as program

PAGE = Path(__file__).resolve().parents[1] / "docs" / "black-box.md"
PICTURE = PAGE.parent / "pictures" / "neural_process.png"
# What each experiment is called in the table: data and method.
RUNS = {
    "gp_cnp": ("EQ", "CNP"),
    "gp_attentive": ("EQ", "attentive"),
    "gp_tnp": ("EQ", "transformer"),
    "sawtooth_convcnp": ("sawtooth", "convolutional"),
}
SHOWN = {"run": "gp_attentive", "index": "7"}  # the picture: of which run, and which test function


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("outputs/np"), help="folder of the runs; finished ones are not repeated")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=[*RUNS], help="runs whose lines are made anew")
    parser.add_argument("--write", action="store_true", help="put table and picture into docs/black-box.md")
    options = parser.parse_args()
    text = table({name: line(name, options) if name in options.only else kept(name) for name in RUNS})
    print(text)
    if options.write:
        put(PAGE, "neural processes", text)
    if options.write and SHOWN["run"] in options.only:
        shown = options.runs / SHOWN["run"]
        program.main(["show", str(shown), "--split", "test", "--index", SHOWN["index"], "--out", str(PICTURE)])


def line(name: str, options: argparse.Namespace) -> str:
    """A run's line: its log-likelihood between the bounds."""
    summary: dict[str, Any] = finished([f"experiment={name}", *PLAIN], options.runs / name)
    bounds = [with_error(summary["bounds"].get(bound)) for bound in ("trivial", "oracle")]
    row = [bounds[0], f"**{with_error(summary['test']['ll'])}**", bounds[1], f"{summary['parameters']:,}"]
    return f"{start(name)} {' | '.join([*row, format(summary['iterations'], ','), format(summary['wall_s'] / 60, '.0f')])} |"


def kept(name: str) -> str:
    """The line that the page has."""
    return next(line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(start(name)))


def start(name: str) -> str:
    """How a run's line begins."""
    return f"| {' | '.join(RUNS[name])} |"


def table(lines: dict[str, str]) -> str:
    """Lines by run, in Markdown, with the commands."""
    text = "| functions | method | trivial | log-likelihood | oracle | parameters | iterations | minutes |\n|" + " --- |" * 8 + "\n"
    text += "".join(f"{line}\n" for line in lines.values())
    return text + "\n```\n" + "".join(f"metarun experiment={name}\n" for name in lines) + "```\n"


def with_error(value: dict[str, float] | None) -> str:
    """Mean and 95 % interval; a bound that nobody knows is a dash."""
    return f"{value['mean']:.3f} ± {value['ci95']:.3f}".replace("-", "−") if value else "–"


if __name__ == "__main__":
    main()
