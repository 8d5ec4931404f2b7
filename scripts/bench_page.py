"""What bench.py found, for people: a line for the terminal, and docs/benchmarks.md, or docs/benchmarks-gpu.md."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
APART = TIME_TO_ACCURACY, ACCURACY = "W9", "accuracy"  # measured by scripts of their own
NAMES = {"cpu": "benchmarks", "cuda": "benchmarks-gpu"}  # of page and numbers
TURNS = ("rounds", "seconds", "episodes", "peer_episodes")
Found = dict[str, Any]

PREFACE = """# Benchmarks: metarun beside other libraries

This page and [benchmarks.json](benchmarks.json) are written by `make bench` and by nobody's hand. Machine: {device}, {threads} threads,
{cpu_capability}, torch {torch}; a large matrix product reaches {fp32:.0f} GFLOP/s in fp32 here, and {bf16:.0f} in bf16.

Each library does the same work in a process of its own, in turn, A B A B …, {rounds} turns of at least {seconds} s each: same net, weights,
episodes, threads and torch; fp32 unless bf16 is said. Before that, losses and meta-gradients are compared. A ratio is that of two
neighbouring turns, as median (least to greatest); times are medians. GFLOP are those of learn2learn's convolutions and matrix
products. Memory is the peak of the process, torch itself included. W5 runs {episodes} episodes, and its time is given for 600.

"""
PREFACE_GPU = """# Benchmarks on a GPU: metarun beside other libraries

This page and [benchmarks-gpu.json](benchmarks-gpu.json) are written by `python scripts/bench.py --device cuda --write` and by nobody's
hand. Machine: {device}, {cpu} with {threads} threads, torch {torch}; a large matrix product reaches {fp32:.0f} GFLOP/s in fp32 here,
{tf32:.0f} in TF32, and {bf16:.0f} in bf16.

Each library does the same work in a process of its own, in turn, A B A B …, {rounds} turns of at least {seconds} s each: same net,
weights, episodes and torch, all of them on the GPU, which has ended one step before the next is timed; fp32 unless bf16 is said. Before
that, losses and meta-gradients of a few tasks are compared in float64, on the GPU as well. A ratio is that of two neighbouring turns, as
median (least to greatest); times are medians. GFLOP are those of learn2learn's convolutions and matrix products. Memory is the most that
tensors take on the GPU. W5 and W5f run {episodes} episodes, of which learn2learn, which takes one after the other, does {peer_episodes};
times are given for 600.

"""
HEAD = [
    "work",
    "must be",
    "times as fast as learn2learn",
    "metarun, ms",
    "learn2learn, ms",
    "GFLOP/s (of sgemm)",
    "MB, metarun / learn2learn",
    "differences of loss, gradient",
    "times as fast as parallel-metalearn",
]
NOTES = """
What the sides do differently: metarun sets glibc's allocator to keep freed memory, as its command line does, and the others do not.
All have libgomp's own settings.
The others' net is written in torch's own layers, without the biases that a batch norm takes away and without running statistics.
learn2learn's meta-test keeps the graph of second derivatives, as in its examples; in W5f it is told not to.
"""
NOTES_GPU = """
All sides have torch's own settings: convolutions of fp32 numbers may be computed in TF32 (`torch.backends.cudnn.allow_tf32`), matrix
products are not (`torch.get_float32_matmul_precision()` is `highest`).
The others' net is written in torch's own layers, without the biases that a batch norm takes away and without running statistics.
learn2learn's meta-test keeps the graph of second derivatives, as in its examples; in W5f it is told not to.
Sampling (W7) is the processor's work and not measured here.
"""
MEMORY = """
W8, {title}: {ratio:.2f} times the peak with metarun (`algo.mode=mixed`; must be at most {bar}), {peer_ratio:.2f} times with learn2learn.
Beyond what there is before it, the step takes {ours} MB with metarun and {theirs} MB with learn2learn.
"""

TIME = """
W9, {title}: {ratio:.2f} times as fast as learn2learn (must be {bar}); {metarun_s:.0f} s, at iteration {metarun_step}, against
{peer_s:.0f} s, at iteration {peer_step}; seed {seed} (`python scripts/bench_time_to_accuracy.py --omniglot PATH{option} --write`).
"""

PRECISIONS = """
What `precision=bf16` does to accuracy: the presets of real Omniglot `small`, tested 5-way 1-shot, seed 0, 1000 test episodes, ± 1.96
standard errors over episodes (`python scripts/bench_precision.py --omniglot PATH --write`).

"""


def write(found: Found) -> None:
    """Numbers and page of a device into docs/."""
    name = NAMES[found["on"]]
    (DOCS / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (DOCS / f"{name}.md").write_text(page(found), encoding="utf-8")


def written(device: str) -> Found:
    """What docs/ has of a device.

    Raises:
        SystemExit: nothing yet.
    """
    file = DOCS / f"{NAMES[device]}.json"
    if not file.is_file():
        sys.exit(f"there is no {file}: scripts/bench.py --device {device} --write makes it")
    return {"on": device, **json.loads(file.read_text(encoding="utf-8"))}


def kept(names: Iterable[str], device: str) -> Found:
    """What docs/ has of these pieces of work; nothing of those that were not measured yet."""
    works = written(device)["works"] if (DOCS / f"{NAMES[device]}.json").is_file() else {}
    return {name: works[name] for name in names if name in works}


def line(name: str, found: Found, sgemm: float) -> str:
    """One piece of work, for the terminal."""
    if "peaks_mb" in found:
        return f"{name:4} memory ratio {found['ratio']:.2f} (must be at most {found['bar']}); learn2learn {found['peer_ratio']:.2f}"
    bar = f" (must be {found['bar']})" if found["bar"] else ""
    parts = [
        f"{name:4} {spread(found)}{bar}",
        f"{1e3 * found['metarun_s']:.1f} against {1e3 * found['peer_s']:.1f} ms",
        f"{rate(found, sgemm)} GFLOP/s",
        f"{found['metarun_mb']:.0f} against {found['peer_mb']:.0f} MB",
        f"differences {differences(found)}",
    ]
    if "metalearn" in found:
        parts.append(f"parallel-metalearn {spread(found['metalearn'])}, differences {differences(found['metalearn'])}")
    return "; ".join(parts)


def page(found: Found) -> str:
    """The page of a device."""
    sgemm, works, gpu = found["peaks_gflops"]["fp32"], found["works"], found["on"] == "cuda"
    numbers = found["machine"] | found["peaks_gflops"] | {name: found[name] for name in TURNS if name in found}
    text = (PREFACE_GPU if gpu else PREFACE).format(**numbers)
    rows = [HEAD, ["---"] * len(HEAD)]
    for name, work in works.items():
        if "gflop" in work:
            cells = [
                f"{name}: {work['title']}",
                work["bar"] or "–",
                spread(work),
                f"{1e3 * work['metarun_s']:.1f}",
                f"{1e3 * work['peer_s']:.1f}",
            ]
            cells += [rate(work, sgemm), f"{work['metarun_mb']:.0f} / {work['peer_mb']:.0f}", differences(work)]
            rows.append([*map(str, cells), spread(work["metalearn"]) if "metalearn" in work else "–"])
    text += "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n" + (NOTES_GPU if gpu else NOTES)
    text += "".join(MEMORY.format(**work, **growth(work)) for work in works.values() if "peaks_mb" in work)
    option = " --device cuda" if gpu else ""
    text += "".join(TIME.format(**work, option=option) for name, work in works.items() if name == TIME_TO_ACCURACY)
    return text + "".join(PRECISIONS + table(work["rows"]) for name, work in works.items() if name == ACCURACY)


def table(rows: list[Found]) -> str:
    """What precision does to accuracy and time."""
    lines = ["| method | precision | accuracy % | norm | iterations | wall, training and test | tasks/s |", "| --- " * 7 + "|"]
    for row in rows:
        accuracy = f"{100 * row['accuracy']['mean']:.2f} ± {100 * row['accuracy']['ci95']:.2f}"
        cells = [row["method"], row["precision"], accuracy, row["bn_mode"], row["iterations"], f"{row['wall_s']:.0f} s"]
        lines.append(f"| {' | '.join(map(str, [*cells, round(row['tasks_per_s'])]))} |")
    return "\n".join(lines) + "\n"


def growth(found: Found) -> dict[str, str]:
    """What a step alone takes at many inner steps, and at one."""
    sides = {"ours": "metarun", "theirs": "learn2learn"}
    return {key: "{1:.0f} against {0:.0f}".format(*found["grown_mb"][side]) for key, side in sides.items()}


def spread(found: Found) -> str:
    """A ratio, median and range."""
    return f"{found['ratio']:.2f} ({found['ratio_min']:.2f} to {found['ratio_max']:.2f})"


def rate(found: Found, sgemm: float) -> str:
    """Arithmetic per second, and its share of the machine's."""
    achieved = found["gflop"] / found["metarun_s"]
    return f"{achieved:.0f} ({achieved / sgemm:.0%})" if achieved else "–"


def differences(found: Found) -> str:
    """How far losses and gradients are apart."""
    return ", ".join(f"{error:.0e}" for error in found["errors"].values()) or "–"
