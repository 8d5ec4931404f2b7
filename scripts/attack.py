"""Tries to make metarun lose something, say something wrong or run somebody else's code; prints how often it held. Seeded and bounded.
Usage: python scripts/attack.py [PART ...] [--seed N] [--minutes M] [--write]; --write: the figures go into docs/reliability.md."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from attack_inputs import configs, folders, hostile, words
from attack_process import METHODS, TINY, Count, begin, call, content, finish, uncut, warm

from metarun.storage import checkpoint, files
from metarun.tracking import tracker

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
TABLE = re.compile(r"(<!-- attack: .*? -->\n).*?(<!-- /attack -->)", re.DOTALL)
KILLS = 60
Stop = Callable[[int, float], Any]  # what is done to a process that runs, by its id and how long an uncut one takes


def at(owner: Any, name: str, nth: int, act: Callable[[], Any]) -> Callable[[], None]:
    """What a child does first, so that its nth call of a function is preceded by ``act``."""

    def prepare() -> None:
        original, calls = getattr(owner, name), [0]

        def counted(*args: Any, **more: Any) -> Any:
            calls[0] += 1
            if calls[0] == nth:
                act()
            return original(*args, **more)

        setattr(owner, name, counted)

    return prepare


def stopped(count: Count, ends: Count, rng: random.Random, folder: Path, stop: Stop, prepare: Callable[[], Any], status: int) -> None:
    """A run that is stopped once to three times, and gone on with.

    Args:
        count: of the stops, each of which ends with ``status`` and, if the process could speak, one line.
        ends: of what the runs ended with, which is what an uncut one does.
        stop: called while the run is on.
        prepare: called first in the run's own process.
    """
    words, whole, seconds = uncut(METHODS[ends.tried % len(METHODS)], folder)
    place = Path(tempfile.mkdtemp(dir=folder))
    run, command = place / "run", [*words, "hydra.run.dir=run"]
    for _ in range(rng.randint(1, 3)):
        child = begin(command, place, prepare)
        stop(child, seconds)
        end = finish(child, place)
        if end.status or "Traceback" in end.err:  # otherwise it came too late
            count.add(end.status == status and "Traceback" not in end.err and (status < 0 or len(end.said) == 1), (command, end))
        if (run / "summary.json").exists():
            break
        if (run / "config.yaml").exists():
            command = ["resume", "run"]
        else:
            shutil.rmtree(run, ignore_errors=True)  # nothing has begun
    if not (run / "summary.json").exists():
        end = call(command, place)
    good = (run / "summary.json").exists() and content(run) == content(whole)
    ends.add(good, (words[-1], end, "is not what it would have been"))
    shutil.rmtree(place)


def kills(rng: random.Random, folder: Path, minutes: float) -> list[Count]:
    """SIGKILL at random moments, and before a rename, a sync, a save, a point logged; then the final files are as uncut but for times"""
    points = [(os, "replace"), (os, "fsync"), (torch, "save"), (files, "sync_folder"), (checkpoint, "replace_file")]
    points += [(tracker.Tracker, "log"), (tracker.Tracker, "position")]
    count, ends = Count("kills", minutes), Count("runs of nine methods", minutes)

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def soon(child: int, seconds: float) -> None:
        time.sleep(rng.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)

    while count.tried < KILLS and not count.late:
        stopped(count, ends, rng, folder, lambda *_: None, at(*rng.choice(points), rng.randint(1, 9), die), -signal.SIGKILL)
        stopped(count, ends, rng, folder, soon, lambda: None, -signal.SIGKILL)
    return [count, ends]


def signals(rng: random.Random, folder: Path, minutes: float) -> list[Count]:
    """one or two of SIGINT, SIGTERM, SIGHUP at random moments, and two in the middle of a write: status 130, one line; then as uncut"""
    count, ends = Count("stops", minutes), Count("runs", minutes)

    def soon(child: int, seconds: float) -> None:
        time.sleep(rng.uniform(0.05, seconds))
        for _ in range(rng.randint(1, 2)):
            os.kill(child, rng.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP]))
            time.sleep(rng.uniform(0, 0.05))

    def both() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)

    for _ in range(6):
        if not count.late:
            stopped(count, ends, rng, folder, lambda *_: None, at(os, "fsync", rng.randint(1, 9), both), 130)
            stopped(count, ends, rng, folder, soon, lambda: None, 130)
    return [count, ends]


def disk(rng: random.Random, folder: Path, minutes: float) -> list[Count]:
    """no file may grow beyond a random size, as on a disk that is full: status 1, one line; then as uncut"""
    count, ends = Count("full disks", minutes), Count("runs", minutes)
    for _ in range(10):
        if not count.late:
            limit = (rng.randint(100, 40_000), resource.RLIM_INFINITY)
            stopped(count, ends, rng, folder, lambda *_: None, lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, limit), 1)
    return [count, ends]


def endurance(rng: random.Random, folder: Path, minutes: float) -> list[Count]:
    """20,000 iterations and 10,000 test episodes of a tiny net: memory within 5 %, no more threads and open files in the second half"""
    place = folder / "endurance"
    place.mkdir()
    chosen = {"net=mlp", "net.sizes=[8]", "net.norm=none", "algo=protonet", "engine.threads=1", "logger=default"}
    chosen |= {"logger.progress=false", "logger.pictures=false"}  # what is drawn once, at the end, takes memory
    chosen |= {"trainer.iterations=20000", "trainer.meta_batch=1", "trainer.val_every=2000", "trainer.val_episodes=10"}
    chosen |= {"trainer.test_episodes=10000", "hydra.run.dir=run"}
    keys = {word.partition("=")[0] for word in chosen} | {"net.hidden"}
    line = [*(word for word in TINY if word.partition("=")[0] not in keys), *sorted(chosen)]
    child, samples = begin(line, place), []
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(1)
        try:
            status = dict(row.split(":", 1) for row in Path(f"/proc/{child}/status").read_text().splitlines())
            samples.append((int(status["VmRSS"].split()[0]) / 1024, int(status["Threads"]), len(os.listdir(f"/proc/{child}/fd"))))
        except (OSError, KeyError):
            break
    end = finish(child, place)
    if len(samples) < 10:
        raise SystemExit(f"endurance did not run: {end}")
    half, samples = len(samples) // 2, samples[:-1]
    early, late = (tuple(map(max, zip(*part))) for part in (samples[half // 3 : half], samples[half:]))  # a file is open now and then
    print("  MB, threads, open files at most: {:.0f}, {}, {} in the first half; {:.0f}, {}, {} in the second".format(*early, *late))
    count = Count(f"run, at most {early[0]:.0f} MB in its first half and {late[0]:.0f} MB in its second", minutes)
    count.add(end.status == 0 and late[0] < 1.05 * early[0] and late[1] <= early[1] and late[2] <= early[2], (end, early, late))
    return [count]


# By name, what there is to try and its share of the time.
PARTS: dict[str, tuple[Callable[[random.Random, Path, float], list[Count]], float]] = {
    "endurance": (endurance, 0.0), "kills": (kills, 0.25), "signals": (signals, 0.1), "disk": (disk, 0.08), "hostile": (hostile, 0.1),
    "words": (words, 0.28), "configs": (configs, 0.14), "folders": (folders, 0.05),
}  # fmt: skip


def table(page: str, found: dict[str, list[Count]]) -> str:
    """The page with the figures of the parts that were tried; those of others stay."""
    rows = dict(re.findall(r"(?m)^\| `(\w+)` (\|.*)$", page))
    for name, counts in found.items():
        what = " ".join((PARTS[name][0].__doc__ or "").split())
        tried = ", ".join(f"{c.tried:,} {c.name}{f' ({c.unjudged} more stopped at work)' * bool(c.unjudged)}" for c in counts)
        rows[name] = f"| {what} | {tried} | {', '.join(f'{count.held:,}' for count in counts)} |"
    lines = ["| part | what is tried, and what has to hold | tried | held |", "| --- | --- | --- | --- |"]
    lines += [f"| `{name}` {rows[name]}" for name in PARTS if name in rows]
    return TABLE.sub(lambda place: place[1] + "\n".join([*lines, ""]) + place[2], page)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=35.0, help="for all parts together; a part ends early when all is tried")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/reliability.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="metarun-attack-"))
    os.environ["METARUN_CACHE"] = str(folder / "cache")
    chosen = [name for name in PARTS if name in options.parts or not options.parts]
    warm()
    found: dict[str, list[Count]] = {}
    try:
        for i, name in enumerate(chosen):
            attack, share = PARTS[name]
            left = options.minutes - (time.monotonic() - begun) / 60  # what the parts before did not take is for the others
            rest = sum(PARTS[other][1] for other in chosen[i:]) or 1.0
            found[name] = attack(random.Random(f"{options.seed}{name}"), folder, left * share / rest)
            for count in found[name]:
                print(f"{name}: {count} ({(time.monotonic() - begun) / 60:.1f} min since the start)", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.write:
        PAGE.write_text(table(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    return 0 if all(count.all_held for counts in found.values() for count in counts) else 1


if __name__ == "__main__":
    sys.exit(main())
