"""metarun beside learn2learn and parallel-metalearn: the same work in turn, A B A B …, each library in a process of its own.

make bench                                       everything; writes docs/benchmarks.md and docs/benchmarks.json
make bench-quick                                 fewer and shorter rounds; writes nothing
python scripts/bench.py --device cuda --rounds 3 --seconds 0.3 --write
                                                 on a GPU, with bars of its own; writes docs/benchmarks-gpu.md and .json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bench_page import APART, TURNS, kept, line, write, written
from torch import Tensor

from metarun.config.compose import compose, resolve
from metarun.run import Run
from metarun.runtime.recording import EAGER

CHECKOUT = Path(__file__).resolve().parents[1]
PROGRAMS = {"metarun": "with_metarun.py", "learn2learn": "with_learn2learn.py", "metalearn": "with_metalearn.py"}
AGREEMENT = 1e-8  # relative difference of losses and meta-gradients that two sides may have in float64
COMPARED = {"cpu": 64, "cuda": 8}  # most tasks whose losses and meta-gradients are compared
ONE_BY_ONE = {"cpu": 1, "cuda": 20}  # of W5's episodes learn2learn does one in so many: on a GPU each takes as long as any other
OUTER_LR = 1e-9  # Adam does all its work, and every round finds the same weights

Answer = dict[str, Any]


class Work(NamedTuple):
    """A piece of work: metarun's words, tasks at a time, and how many times as fast as learn2learn it must be: on two cores, on a GPU."""

    title: str
    words: list[str]
    tasks: int
    bar: float | None
    bar_gpu: float | None
    kind: str = "train"  # | test | curve | sample; sampling is the processor's work, wherever the images lie
    peers: tuple[str, ...] = ("learn2learn",)


def maml(way: int, shot: int, query: int, steps: int, *more: str) -> list[str]:
    net = ["net.down=stride", "net.flatten=false"]
    return ["algo=maml", *net, f"way={way}", f"shot={shot}", f"query={query}", f"algo.inner_steps={steps}", *more]


PROTONET = ["algo=protonet", "net.down=pool", "way=20", "shot=1", "query=5"]
BF16 = "precision=bf16"
RESNET = ["net=resnet12", "data.size=84", "way=5", "shot=5", "query=5"]
MANY_STEPS = maml(20, 1, 1, 5, "algo.inner_lr=0.1")
TEST = maml(5, 1, 15, 1, "algo.test_steps=10")
BOTH = ("learn2learn", "metalearn")
SECOND_ORDER = ["algo=maml", "algo.inner_steps=1", *RESNET]
WORKS = {
    "W1": Work("second-order MAML step, 5-way 1-shot 1-query, 1 inner step, 32 tasks", maml(5, 1, 1, 1), 32, 2.5, 30.0, peers=BOTH),
    "W2": Work("the same, 5-shot 5-query", maml(5, 5, 5, 1), 32, 1.7, 20.0, peers=BOTH),
    "W3": Work("the same, 20-way 1-shot 1-query, 5 inner steps, 16 tasks", MANY_STEPS, 16, 1.7, 20.0, peers=BOTH),
    "W4": Work("first-order MAML step, else as W2", maml(5, 5, 5, 1, "algo.first_order=true"), 32, 1.7, 20.0),
    "W5": Work("meta-test of MAML, 600 episodes 5-way 1-shot 15-query, 10 steps", TEST, 600, 2.5, 50.0, "test"),
    "W5f": Work("the same, learn2learn told to keep no graph", [*TEST, "algo.first_order=true"], 600, None, None, "test"),
    "W6": Work("ProtoNet step, pooling, 20-way 1-shot 5-query, 4 tasks", PROTONET, 4, 1.7, 5.0, peers=BOTH),
    "W1b": Work("W1, metarun in bf16", maml(5, 1, 1, 1, BF16), 32, 3.0, 40.0),
    "W2b": Work("W2, metarun in bf16", maml(5, 5, 5, 1, BF16), 32, 2.5, 30.0),
    "W6b": Work("W6, metarun in bf16", [*PROTONET, BF16], 4, 3.0, 8.0),
    "W7": Work("sampling of 20-way 1-shot 5-query episodes, in memory", PROTONET, 32, 30.0, None, "sample"),
    "W10": Work("ProtoNet step of ResNet-12, 5-way 5-shot 5-query, 84 by 84 pixels, 1 task", ["algo=protonet", *RESNET], 1, None, None),
    "W10m": Work("second-order MAML step of ResNet-12, the same episode, 1 inner step", SECOND_ORDER, 1, None, None),
}
MEMORY = "W8"  # 50 inner steps against 1
MEMORY_WORDS = ["algo.mode=mixed", "algo.inner_lr=0.01"]
MEMORY_BAR = 1.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", nargs="*", choices=[*WORKS, MEMORY], metavar="W", help="all of the device by default")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each side")
    parser.add_argument("--seconds", type=float, default=1.5, help="of a turn, at least one repetition")
    parser.add_argument("--episodes", type=int, default=600, help="of W5, whose time is given for 600")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every side")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--write", action="store_true", help="write the page and the numbers in docs/")
    options = parser.parse_args()
    if not interpreter("learn2learn"):
        sys.exit("learn2learn is not there; build it with: make peers")
    torch.set_num_threads(options.threads)
    peaks = peaks_gflops(options.device)
    all_works = works_on(options.device, bf16=peaks["bf16"] > peaks["fp32"])
    names = options.works or all_works
    options.peer_episodes = -(-options.episodes // ONE_BY_ONE[options.device])
    turns, here, page = {name: getattr(options, name) for name in TURNS}, machine(options.device, options.threads), {}
    if options.write and set(names) != set(all_works):
        page = written(options.device)
        if any(page[name] != turn for name, turn in turns.items()) or page["machine"] != here:
            parser.error("some works alone go into the page of the same machine and the same --rounds, --seconds and --episodes")
    speeds = ", ".join(f"{gflops:.0f} in {name}" for name, gflops in peaks.items())
    print(f"matrix products, GFLOP/s: {speeds}; {options.threads} threads", flush=True)
    about = {"on": options.device, "machine": here, "peaks_gflops": peaks, **turns} | page
    works = page.get("works", kept(APART, options.device))
    wrong = []
    with closing(Sides(lasting=options.device == "cuda")) as sides:
        for name in names:
            found = memory(sides, options) if name == MEMORY else compare(WORKS[name], sides, options)
            print(line(name, found, peaks["fp32"]), flush=True)
            if disagree(found):
                wrong.append(name)
            elif options.write:  # after each, so that what was measured stays when it is interrupted
                works[name] = found
                write(about | {"works": {name: works[name] for name in [*WORKS, MEMORY, *APART] if name in works}})
    if wrong:
        sys.exit(f"metarun and a peer disagree on {', '.join(wrong)}: losses or gradients differ by more than {AGREEMENT:g}")


def works_on(device: str, bf16: bool = True) -> list[str]:
    """All that is measured on a device; ``bf16``: whether that is faster than fp32 there, as nobody would choose it otherwise."""
    here = (name for name, work in WORKS.items() if (device == "cpu" or work.kind != "sample") and (bf16 or BF16 not in work.words))
    return [*here, MEMORY]


def disagree(found: Answer) -> bool:
    """Whether metarun and a peer find different losses or gradients, or none that are numbers."""
    errors = [*found.get("errors", {}).values(), *found.get("metalearn", {}).get("errors", {}).values()]
    return not all(error <= AGREEMENT for error in errors)


def interpreter(library: str) -> Path | None:
    """Whose Python runs a library's side: that of `make peers`, else this one if it has the library; None: it is not there."""
    environment = CHECKOUT / ".peers" / library
    if any(environment.glob(f"lib/python*/site-packages/{library}")):
        return environment / "bin" / "python"
    return Path(sys.executable) if importlib.util.find_spec(library) else None


def surroundings() -> dict[str, str]:
    """Environment variables of a side: this checkout, what this process finds in PYTHONPATH, and no settings of OpenMP."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    path = [str(CHECKOUT / "src"), str(CHECKOUT / "scripts" / "sides"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return environment | {"PYTHONPATH": os.pathsep.join(path), "PYTHONWARNINGS": "ignore"}


class Process:
    """One side, in a process of its own, with the same environment variables as the other beside ``more``."""

    def __init__(self, library: str, **more: str) -> None:
        command = [str(interpreter(library)), str(CHECKOUT / "scripts" / "sides" / PROGRAMS[library])]
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.said}
        self.process = subprocess.Popen(command, **pipes, text=True, env=surroundings() | more)

    def ask(self, do: str, **more: Any) -> Answer:
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps({"do": do, **more}), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            self.said.seek(0)
            sys.exit(f"a side of the benchmark failed:\n{self.said.read()}")
        return json.loads(answer)

    def close(self) -> None:
        self.process.communicate()
        self.said.close()


class Sides:
    """The processes of the libraries.

    On a CPU each piece of work gets new ones, as the peak of a process's memory is that of all it did. On a GPU, whose memory is counted
    by the work, they last, as each start would take longer than the work.
    """

    def __init__(self, lasting: bool) -> None:
        self.lasting = lasting
        self.running: dict[str, Process] = {}

    def take(self, names: Iterable[str]) -> dict[str, Process]:
        """A process of each of these libraries."""
        if not self.lasting:
            self.close()
        for name in names:
            if name not in self.running:
                self.running[name] = Process(name)
        return {name: self.running[name] for name in names}

    def close(self) -> None:
        for side in self.running.values():
            side.close()
        self.running = {}


def prepare(work: Work, tasks: int, options: argparse.Namespace, dtype: torch.dtype = torch.float32) -> tuple[Answer, Answer]:
    """What a side is told of a piece of work, and its weights and episodes."""
    run = Run(resolve(compose([*work.words, "device=cpu"])))
    spec, net = run.spec["train"], run.values["net"]
    told = {key: value for key, value in run.values["algo"].items() if key != "_target_"}
    told |= {"algo": run.values["algo"]["name"], "words": work.words, "kind": work.kind, "tasks": tasks, "classes": run.data.classes}
    told |= {"way": spec.way, "shot": spec.shot, "query": spec.query, "net": net["name"]}
    told |= {"down": net.get("down"), "flatten": net["flatten"]}
    told |= {"device": options.device, "threads": options.threads, "outer_lr": OUTER_LR, "exact": dtype == torch.float64}
    if work.kind == "sample":
        return told, {}
    episodes = run.episodes("test" if work.kind == "test" else "train").batch(range(tasks))
    support, query = episodes.context.support, episodes.query
    data = {"xs": support.x.to(dtype), "ys": support.y.contiguous(), "xq": query.x.to(dtype), "yq": query.y.contiguous()}
    return told, data | {"weights": {name: value.to(dtype) for name, value in run.algorithm.state_dict().items()}}


def compare(work: Work, sides: Sides, options: argparse.Namespace) -> Answer:
    """Outcomes, then times in turn."""
    names = ["metarun", *filter(interpreter, work.peers)]
    tasks = dict.fromkeys(names, work.tasks)
    if work.kind == "test":
        tasks |= {"metarun": options.episodes, "learn2learn": options.peer_episodes}
    compared = work.kind != "sample" and BF16 not in work.words
    with tempfile.TemporaryDirectory() as folder:
        flops, outcomes = 0, {}
        asked = sides.take(names)
        if work.kind != "sample":
            flops = work.tasks * ask_on(asked["learn2learn"], *prepare(work, 1, options), folder).ask("flops")["flops"]
        if compared:  # in float64: in fp32 a value beside ReLU's kink may fall to either side, and five steps on sides have parted
            told, data = prepare(work, min(*tasks.values(), COMPARED[options.device]), options, torch.float64)
            for name, side in asked.items():
                ask_on(side, told, data, folder).ask("outcome", file=f"{folder}/outcome.pt")
                outcomes[name] = torch.load(f"{folder}/outcome.pt", weights_only=True)
        asked = sides.take(names)  # on a CPU in whose memory nothing else has been
        for name, side in asked.items():
            ask_on(side, *prepare(work, tasks[name], options), folder)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    memory: dict[str, float] = {}
    for turn in range(1 + options.rounds):
        for name, side in asked.items():
            warm_up = not turn  # after which metarun has recorded the step
            answer = side.ask("round", seconds=options.seconds, least=EAGER + 2 if warm_up and name == "metarun" else 1)
            memory[name] = answer["peak_mb"]
            if not warm_up:
                seconds[name].append(work.tasks / tasks[name] * statistics.median(answer["seconds"]))
    errors = {name: difference(outcomes["metarun"], outcomes[name]) for name in outcomes if name != "metarun"}
    bar = work.bar if options.device == "cpu" else work.bar_gpu
    found: Answer = {"title": work.title, "bar": bar, **against(seconds, "learn2learn"), "metarun_mb": memory["metarun"]}
    found |= {"peer_mb": memory["learn2learn"], "gflop": flops / 1e9, "errors": errors.get("learn2learn", {})}
    if "metalearn" in asked:
        found["metalearn"] = {**against(seconds, "metalearn"), "peer_mb": memory["metalearn"], "errors": errors.get("metalearn", {})}
    return found


def ask_on(side: Process, told: Answer, data: Answer, folder: str) -> Process:
    """Hand a piece of work to a side."""
    torch.save(data, f"{folder}/data.pt")
    side.ask("prepare", work=told, file=f"{folder}/data.pt")
    return side


def against(seconds: dict[str, list[float]], peer: str) -> Answer:
    """How many times as fast as a peer: the ratio of every pair of neighbouring turns."""
    ratios = [theirs / ours for ours, theirs in zip(seconds["metarun"], seconds[peer])]
    times = {"metarun_s": statistics.median(seconds["metarun"]), "peer_s": statistics.median(seconds[peer])}
    return {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios), **times}


def difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """Relative differences ‖a − b‖ / ‖b‖ of the losses, and of the meta-gradient as one vector."""
    names = {"loss": [name for name in theirs if name == "loss"], "gradient": [name for name in theirs if name not in ("loss", "score")]}
    errors = {}
    for kind, keys in names.items():
        if keys:
            a, b = (torch.cat([side[key].flatten().double() for key in keys]) for side in (ours, theirs))
            errors[kind] = float((a - b).norm() / b.norm())
    return errors


def memory(sides: Sides, options: argparse.Namespace) -> Answer:
    """Peak memory of second-order MAML with 50 inner steps against 1 on either side: of a fresh process, or of the GPU."""
    peaks: dict[str, list[float]] = {"metarun": [], "learn2learn": []}
    grown: dict[str, list[float]] = {"metarun": [], "learn2learn": []}
    for name, found in peaks.items():
        for steps in (1, 50):
            (side,), work = sides.take([name]).values(), Work("", maml(5, 1, 15, steps, *MEMORY_WORDS), 8, None, None)
            with tempfile.TemporaryDirectory() as folder:
                ask_on(side, *prepare(work, work.tasks, options), folder)
            answer = side.ask("round", seconds=0.01)
            found.append(answer["peak_mb"])
            grown[name].append(answer["peak_mb"] - answer["before_mb"])
    ratios = {name: found[1] / found[0] for name, found in peaks.items()}
    title = "memory of a second-order MAML step, 5-way 1-shot 15-query, 8 tasks: 50 inner steps against 1"
    ratios_and_bar = {"bar": MEMORY_BAR, "ratio": ratios["metarun"], "peer_ratio": ratios["learn2learn"]}
    return {"title": title, **ratios_and_bar, "peaks_mb": peaks, "grown_mb": grown}


def peaks_gflops(device: str) -> dict[str, float]:
    """GFLOP/s of large matrix products, by the precision that they are computed in."""
    peaks = {"fp32": peak(torch.float32, device)}
    if device == "cuda":
        usual = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        peaks["tf32"] = peak(torch.float32, device)
        torch.set_float32_matmul_precision(usual)
    return peaks | {"bf16": peak(torch.bfloat16, device)}


def peak(dtype: torch.dtype, device: str) -> float:
    """GFLOP/s of a product of square matrices that fill the device, the best of a second."""
    n = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + 1
    while time.perf_counter() < end:
        begun = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begun)
    return 2 * n**3 / best / 1e9


def machine(device: str, threads: int) -> Answer:
    """Where and with what it was measured."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        model = next((row.partition(":")[2].strip() for row in info.read_text().splitlines() if row.startswith("model name")), model)
    found = {"device": model, "threads": threads, "torch": torch.__version__}
    if device == "cuda":
        return found | {"device": torch.cuda.get_device_name(), "cpu": model}
    return found | {"cpu_capability": torch.backends.cpu.get_cpu_capability()}


if __name__ == "__main__":
    main()
