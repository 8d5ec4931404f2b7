"""Tries to make metarun lose something, say something wrong or run somebody else's code; prints how often it held. Seeded and bounded.
Usage: python scripts/attack.py [kills] [signals] [disk] [hostile] [words] [configs] [folders] [endurance] [--seed N] [--minutes M]"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import random
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


def stopped(count: Count, ends: Count, rng: random.Random, folder: Path, stop: Stop, prepares: list, statuses: set[int]) -> None:
    """Runs that are stopped once to three times, and gone on with; ``count`` is of the stops, ``ends`` of what the runs ended with."""
    for prepare in prepares:
        if count.late:
            return
        words, whole, seconds = uncut(METHODS[ends.tried % len(METHODS)], folder)
        place = Path(tempfile.mkdtemp(dir=folder))
        run, command = place / "run", [*words, "hydra.run.dir=run"]
        for _ in range(rng.randint(1, 3)):
            child = begin(command, place, prepare)
            stop(child, seconds)
            end = finish(child, place)
            count.add(end.status in statuses and "Traceback" not in end.err and (end.status <= 0 or len(end.said) == 1), (command, end))
            if (run / "config.yaml").exists():
                command = ["resume", "run"]
            else:
                shutil.rmtree(run, ignore_errors=True)  # nothing has begun
            if (run / "summary.json").exists():
                break
        if not (run / "summary.json").exists():
            end = call(command, place)
        good = (run / "summary.json").exists() and content(run) == content(whole)
        ends.add(good, (words[-1], end, "is not what it would have been"))
        shutil.rmtree(place)


def kills(rng: random.Random, folder: Path, minutes: float) -> bool:
    """SIGKILL at random moments, and at chosen points: before a rename, a sync, a save, a point logged."""
    points = [(os, "replace"), (os, "fsync"), (torch, "save"), (files, "sync_folder"), (checkpoint, "replace_file")]
    points += [(tracker.Tracker, "log"), (tracker.Tracker, "position")]
    count, ends = Count("SIGKILL: nothing but the kill", minutes), Count("runs killed: final files as uncut but for times", minutes)

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def soon(child: int, seconds: float) -> None:
        time.sleep(rng.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)

    for _ in range(15):
        stopped(count, ends, rng, folder, lambda *_: None, [at(*rng.choice(points), rng.randint(1, 9), die)], {0, -signal.SIGKILL})
        stopped(count, ends, rng, folder, soon, [lambda: None], {0, -signal.SIGKILL})
    return count.close() & ends.close()


def signals(rng: random.Random, folder: Path, minutes: float) -> bool:
    """SIGINT, SIGTERM and SIGHUP, one or two of them, at random moments, and two in the middle of a write."""
    count, ends = Count("signals: status 130 and one line", minutes), Count("runs stopped: final files as uncut but for times", minutes)

    def soon(child: int, seconds: float) -> None:
        time.sleep(rng.uniform(0.05, seconds))
        for _ in range(rng.randint(1, 2)):
            os.kill(child, rng.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP]))
            time.sleep(rng.uniform(0, 0.05))

    def both() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)

    stopped(count, ends, rng, folder, lambda *_: None, [at(os, "fsync", rng.randint(1, 9), both) for _ in range(9)], {0, 130})
    stopped(count, ends, rng, folder, soon, [lambda: None] * 9, {0, 130})
    return count.close() & ends.close()


def disk(rng: random.Random, folder: Path, minutes: float) -> bool:
    """No file may grow beyond a random size, as on a disk that is full."""
    count, ends = Count("full disks: status 1 and one line", minutes), Count("runs on them: final files as uncut but for times", minutes)

    def limit(size: int) -> Callable[[], None]:
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    stopped(count, ends, rng, folder, lambda *_: None, [limit(rng.randint(100, 40_000)) for _ in range(12)], {0, 1})
    return count.close() & ends.close()


def endurance(rng: random.Random, folder: Path, minutes: float) -> bool:
    """20,000 iterations and 10,000 test episodes: memory, files and threads stay as they are."""
    place = folder / "endurance"
    place.mkdir()
    line = [*TINY, "algo=protonet", "engine.threads=1", "logger=default", "logger.progress=false", "hydra.run.dir=run"]
    line += ["trainer.iterations=20000", "trainer.meta_batch=1", "trainer.val_every=2000", "trainer.val_episodes=10"]
    line += ["trainer.test_episodes=10000"]
    child, samples = begin(line, place), []
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(1)
        try:
            status = dict(row.split(":", 1) for row in Path(f"/proc/{child}/status").read_text().splitlines())
            samples.append((int(status["VmRSS"].split()[0]) / 1024, int(status["Threads"]), len(os.listdir(f"/proc/{child}/fd"))))
        except (OSError, KeyError):
            break
    end = finish(child, place)
    early, late = samples[len(samples) // 5], samples[-2]
    print("  MB, threads, open files: {:.0f}, {}, {} after a fifth of the time; {:.0f}, {}, {} at the end".format(*early, *late))
    count = Count("20,000 iterations, 10,000 episodes: memory within 5 %, threads and files as they were", minutes)
    count.add(end.status == 0 and late[0] < 1.05 * early[0] and late[1:] == early[1:], (end, early, late))
    return count.close()


# By name, what there is to try and its share of the time.
PARTS: dict[str, tuple[Callable[[random.Random, Path, float], bool], float]] = {
    "kills": (kills, 0.4), "signals": (signals, 0.15), "disk": (disk, 0.1), "hostile": (hostile, 0.1), "words": (words, 0.12),
    "configs": (configs, 0.07), "folders": (folders, 0.06), "endurance": (endurance, 0.0),
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; without any, all but endurance")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=6.0, help="for all parts together; a part ends early when all is tried")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="metarun-attack-"))
    os.environ["METARUN_CACHE"] = str(folder / "cache")
    chosen = options.parts or [name for name, (_, share) in PARTS.items() if share]
    whole = sum(PARTS[name][1] for name in chosen) or 1.0
    warm()
    try:
        held = [PARTS[n][0](random.Random(f"{options.seed}{n}"), folder, options.minutes * PARTS[n][1] / whole) for n in chosen]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
