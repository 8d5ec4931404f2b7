"""Shows on real Omniglot that a sweep loses nothing: killed half-way and run again, through every launcher, and as a study that goes on.
Usage: python scripts/check_sweep_resume.py [joblib] [submitit_local] [ray] [optuna] [--root FOLDER] [--out FOLDER]"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

RUN = [
    *("data=omniglot", "data.split=small", "device=cpu", "logger=quiet", "logger.every=1", "query=5", "net.hidden=16"),
    *("trainer.iterations=24", "trainer.meta_batch=4", "trainer.val_every=4", "trainer.val_episodes=20", "trainer.test_episodes=50"),
]
TWELVE = ["algo=maml,protonet", "shot=1,5", "seed=0,1,2"]
FOUR = ["algo=maml,protonet", "seed=0,1"]
MANNER = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local", "hydra.sweeper.max_batch_size=2"],
    "ray": ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"],
}
SAME = ("val", "test", "best_step", "iterations", "episodes_sha256", "parameters")


def start(words: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "metarun", "-m", *RUN, *words, "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finish(words: list[str]) -> dict:
    begun = time.monotonic()
    process = start(words)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return {**json.loads(out.splitlines()[-1]), "err": err, "seconds": time.monotonic() - begun}


def results(top: Path) -> dict[str, list]:
    """By run, all that must not depend on how it was run."""
    found = {}
    for path in sorted(top.glob("*/summary.json")):
        summary = json.loads(path.read_text())
        found[path.parent.name] = [*(summary[key] for key in SAME), (path.parent / "test_scores.npy").read_bytes()]
    return found


def table(result: dict) -> list[dict]:
    """The rows of the table without times."""
    return [{key: value for key, value in row.items() if key not in ("wall_s", "run")} for row in result["groups"]]


def killed_half_way(out: Path, root: str) -> None:
    manner = [*MANNER["joblib"], f"data.root={root}", *TWELVE]
    whole = finish([*manner, f"hydra.sweep.dir={out / 'whole'}"])
    print(f"joblib: 12 runs straight in {whole['seconds']:.0f} s")
    top = out / "killed"
    process = start([*manner, f"hydra.sweep.dir={top}"])
    while len(list(top.glob("*/summary.json"))) < 5 and process.poll() is None:
        time.sleep(0.2)
    while process.poll() is None and not any(left_over(top)):  # a run that has a checkpoint and no result
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = {path: path.stat().st_mtime_ns for path in top.glob("*/summary.json")}
    begun = [path.parent.parent for path in left_over(top)]
    print(f"  killed with kill -9 of the group: {len(before)} finished, {len(begun)} with a checkpoint and no result")
    again = finish([*manner, f"hydra.sweep.dir={top}", "sweep=resume"])
    assert all(path.stat().st_mtime_ns == then for path, then in before.items()), "a finished run was run again"
    resumed = [line for line in again["err"].splitlines() if " resumed" in line]
    started = [line for line in again["err"].splitlines() if " started" in line]
    assert {folder.name for folder in begun} == {line.split()[2] for line in resumed}, again["err"]
    assert len(before) + len(resumed) + len(started) == 12
    assert all("resuming at iteration" in (folder / "metarun.log").read_text() for folder in begun)
    print(f"  run again in {again['seconds']:.0f} s: {len(before)} skipped, {len(resumed)} resumed, {len(started)} started")
    assert results(top) == results(out / "whole")
    assert table(again) == table(whole)
    print("  all 12 summaries and test scores identical to the uninterrupted sweep, and so is the table")


def left_over(top: Path) -> list[Path]:
    return [path for path in top.glob("*/checkpoints/last.pt") if not (path.parents[1] / "summary.json").is_file()]


def through(launcher: str, out: Path, root: str) -> None:
    words = [f"data.root={root}", *FOUR]
    if not (out / "four").is_dir():
        print(f"serially: 4 runs in {finish([*words, f'hydra.sweep.dir={out}/four'])['seconds']:.0f} s")
    result = finish([*words, *MANNER[launcher], f"hydra.sweep.dir={out / launcher}"])
    assert len(results(out / "four")) == 4
    assert results(out / launcher) == results(out / "four")
    print(f"{launcher}: the same 4 runs in {result['seconds']:.0f} s, identical to the serial sweep")


def study(out: Path, root: str) -> None:
    words = ["sweep=protonet_lr", "algo=protonet", f"data.root={root}", f"hydra.sweep.dir={out / 'study'}", "hydra.sweeper.n_jobs=2"]
    words += MANNER["joblib"]
    first = finish([*words, "hydra.sweeper.n_trials=10"])
    assert len(first["runs"]) == 10
    before = results(out / "study")
    second = finish([*words, "hydra.sweeper.n_trials=20", "sweep=resume"])
    after = results(out / "study")
    assert len(second["runs"]) == len(after) == 20
    assert {name: after[name] for name in before} == before
    best = [max(summary["val"]["accuracy"]["mean"] for summary in runs["runs"]) for runs in (first, second)]
    print(f"optuna: 10 trials in {first['seconds']:.0f} s, resumed to 20 in {second['seconds']:.0f} s, the first 10 untouched")
    print(f"  best development accuracy after 10 trials {best[0]:.4f}, after 20 {best[1]:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=["joblib"])
    parser.add_argument("--root", default="../shared/omniglot")
    parser.add_argument("--out", type=Path, default=Path("outputs") / f"check_sweep_{time.strftime('%H%M%S')}")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        if part == "joblib":
            killed_half_way(options.out, options.root)
        elif part == "optuna":
            study(options.out, options.root)
        else:
            through(part, options.out, options.root)


if __name__ == "__main__":
    main()
