"""How time per task and memory grow: with inner steps, way, shot, tasks, width, image side, threads and ranks; beside other libraries.

python scripts/bench_scaling.py [--axes way shot] [--rounds 3] [--write]

Second-order MAML, Conv4-64 with strides, 5-way 1-shot 5-query, 1 inner step, 8 tasks of glyphs, but for the axis: one number is varied, the
libraries take turns, each point and library in a process of its own. Memory is a process's peak above that before its first round. With
--write docs/scaling.md and its picture are written anew; the axes that were not measured keep their rows.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from bench import CHECKOUT, Process, Work, ask_on, interpreter, machine, maml, prepare, surroundings
from bench_steps import take_turn
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

matplotlib.use("agg")
PAGE, PICTURE, NUMBERS = (CHECKOUT / "docs" / name for name in ("scaling.md", "pictures/scaling.png", "scaling.json"))
LIBRARIES = ("metarun", "learn2learn", "metalearn")
LONG = 20  # seconds of a step of another library, above which the axis ends for it


class Axis(NamedTuple):
    """What is varied."""

    title: str
    values: tuple[int, ...]
    kind: str = "train"
    peers: tuple[str, ...] = LIBRARIES[1:]


AXES = {
    "steps": Axis("inner steps", (1, 5, 10, 20, 50, 100)),
    "way": Axis("way, 2 tasks", (5, 20, 50, 100, 200)),
    "shot": Axis("shot", (1, 5, 10, 15)),
    "tasks": Axis("tasks per step", (1, 4, 16, 64, 256)),
    "width": Axis("width of the net", (16, 32, 64, 128, 256)),
    "side": Axis("side of an image, pixels", (28, 42, 56, 84)),
    "threads": Axis("threads", (1, 2)),
    "test": Axis("inner steps of a meta-test, 16 tasks", (1, 5, 10, 20, 50, 100), "test", ("learn2learn",)),
    "ranks": Axis("ranks of torchrun, a thread each", (1, 2), "ranks", ()),
}


def point(axis: str, value: int) -> tuple[list[str], int]:
    """metarun's words, and the tasks of a step."""
    at = {axis: value}
    way, shot, tasks = at.get("way", 5), at.get("shot", 1), at.get("tasks", {"way": 2, "test": 16}.get(axis, 8))
    words = maml(way, shot, 1 if axis == "way" else 5, at.get("steps", 1), "algo.inner_lr=0.01", f"algo.test_steps={at.get('test', 1)}")
    words += [f"net.hidden={at.get('width', 64)}", f"data.size={at.get('side', 28)}"]
    return [*words, "data.train_classes=250", "data.val_classes=10", "data.test_classes=50"], tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="*", choices=AXES, default=[*AXES], metavar="AXIS", help=f"of {', '.join(AXES)}; all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every process")
    parser.add_argument("--write", action="store_true", help="write docs/scaling.md, .json and the picture")
    options = parser.parse_args()
    options.device = "cpu"
    found: dict[str, Any] = json.loads(NUMBERS.read_text()) if options.write and NUMBERS.exists() else {}
    for name in options.axes:
        rows = ranks(AXES[name], options.rounds) if AXES[name].kind == "ranks" else measured(name, options)
        print(f"{AXES[name].title}: ms per task, MB more\n{table(name, rows)}", flush=True)
        found[name] = {"machine": machine("cpu", options.threads), "rounds": options.rounds, "rows": rows}
        if options.write:
            NUMBERS.write_text(json.dumps(found, indent=1) + "\n")
            write({axis: found[axis] for axis in AXES if axis in found})


def measured(name: str, options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """By value and library: ms per task and megabytes."""
    axis, rows = AXES[name], {}
    libraries = ["metarun", *(peer for peer in axis.peers if interpreter(peer))]
    for value in axis.values:
        words, tasks = point(name, value)
        told = argparse.Namespace(**vars(options) | ({"threads": value} if name == "threads" else {}))
        seconds: dict[str, list[float]] = {library: [] for library in libraries}
        memory = dict.fromkeys(libraries, 0.0)
        with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
            sides = {library: stack.enter_context(closing(Process(library))) for library in libraries}
            for side in sides.values():
                ask_on(side, *prepare(Work(name, words, tasks, None, None, axis.kind), tasks, told), folder)
            for turn in range(1 + options.rounds):
                for library, side in sides.items():  # in the first turn metarun compiles and records
                    answer = take_turn(side, library, turn)
                    memory[library] += answer["peak_mb"] - answer["before_mb"]
                    if turn:
                        seconds[library].append(statistics.median(answer["seconds"]))
        rows[str(value)] = {library: [1e3 * statistics.median(times) / tasks, memory[library]] for library, times in seconds.items()}
        libraries = [library for library in libraries if library == "metarun" or statistics.median(seconds[library]) < LONG]
    return rows


def ranks(axis: Axis, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Training tasks a second of the command itself, which a summary tells; memory is the peak of the first rank's process."""
    found: dict[int, list[dict[str, float]]] = {value: [] for value in axis.values}
    for _ in range(rounds):
        for value in axis.values:
            words, _ = point("ranks", value)
            with tempfile.TemporaryDirectory() as folder:
                few = {"iterations": 100, "meta_batch": 16, "val_every": 100, "val_episodes": 2, "test_episodes": 2}
                more = [f"trainer.{key}={number}" for key, number in few.items()]
                command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={value}", "-m", "metarun"]
                subprocess.run(
                    [*command, *words, *more, "logger=quiet", "device=cpu", f"hydra.run.dir={folder}/run"],
                    env=surroundings() | {"OMP_NUM_THREADS": "1"},
                    check=True,
                    capture_output=True,
                )
                found[value].append(json.loads(Path(folder, "run", "summary.json").read_text()))
    return {
        str(value): {"metarun": [1e3 / statistics.median(s["tasks_per_s"] for s in all_), max(s["peak_memory_mb"] for s in all_)]}
        for value, all_ in found.items()
    }


def table(name: str, rows: dict[str, dict[str, list[float]]]) -> str:
    """Markdown: ms per task and megabytes of each library, and how many times as fast metarun is."""
    libraries = [library for library in LIBRARIES if any(library in row for row in rows.values())]
    title = AXES[name].title
    head = [title, *(f"{library}, ms" for library in libraries), *(f"{library} / metarun" for library in libraries[1:])]
    head += [f"{library}, MB" for library in libraries]
    lines = [head, ["---"] * len(head)]
    for value, row in rows.items():
        ours = row["metarun"][0]
        cells = [f"{row[library][0]:{'.3g' if row[library][0] < 1000 else '.0f'}}" if library in row else "–" for library in libraries]
        cells += [f"{row[library][0] / ours:.1f}" if library in row else "–" for library in libraries[1:]]
        cells += [f"{row[library][1]:.0f}" if library in row else "–" for library in libraries]
        lines.append([value, *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write(found: dict[str, Any]) -> None:
    """The tables between the page's markers, and the picture."""
    text = PAGE.read_text()
    parts = []
    for name, axis in found.items():
        about = axis["machine"]
        parts.append(
            f"### {AXES[name].title[0].upper()}{AXES[name].title[1:]}\n\n{table(name, axis['rows'])}\n"
            f"{about['device']}, torch {about['torch']}{'' if name in ('threads', 'ranks') else ', {} threads'.format(about['threads'])}, "
            f"median of {axis['rounds']} turns.\n"
        )
    PAGE.write_text(re.sub(r"(<!-- measured -->\n).*(<!-- end -->)", lambda m: m[1] + "\n".join(parts) + m[2], text, flags=re.DOTALL))
    rows = -(-len(found) // 3)
    figure = Figure(figsize=(11, 3 * rows), layout="constrained")
    panels = figure.subplots(rows, 3).ravel()
    for axes, (name, axis) in zip(panels, found.items()):
        for library, colour in zip(LIBRARIES, ("#2f6690", "#c8553d", "#7fb69a")):
            points = [(int(value), row[library][0]) for value, row in axis["rows"].items() if library in row]
            if points:
                axes.plot(*zip(*points), "o-", color=colour, label=library, markersize=4)
        axes.set(xscale="log", yscale="log", title=AXES[name].title, ylabel="ms per task")
        ticks = [int(value) for value in axis["rows"]]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.set_xticks([], minor=True)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, (low * high) ** 0.5 / 2), max(high, (low * high) ** 0.5 * 2))  # a small difference is to look small
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
