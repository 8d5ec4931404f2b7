"""W9: seconds from the start of a program until MAML reaches an accuracy on development tasks, metarun against learn2learn's style.

python scripts/bench_time_to_accuracy.py --omniglot ../shared/omniglot [--target 0.94] [--device cuda] [--write]

Both train 5-way 1-shot on real Omniglot, split small, by the preset ``omniglot_small_maml``: same net, initial weights, episodes, outer
Adam and schedule, and both validate on the same 200 development episodes as often. metarun is its command line. The other side is
the library as its users write it: torch's layers, ``learn2learn.algorithms.MAML``, a loop over tasks; its episodes come ready-made.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench import CHECKOUT, interpreter, machine, surroundings
from bench_page import TIME_TO_ACCURACY, write, written

BAR = {"cpu": 3.0, "cuda": 10.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--omniglot", type=Path, required=True, help="folder with the Omniglot archives")
    parser.add_argument("--target", type=float, default=0.94, help="accuracy on development tasks")
    parser.add_argument("--every", type=int, default=200, help="iterations between validations, on either side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--write", action="store_true", help="put the result into the page of the device, which bench.py has made")
    options = parser.parse_args()
    if not interpreter("learn2learn"):
        sys.exit("learn2learn is not there; build it with: make peers")
    if options.write and written(options.device)["machine"]["device"] != machine(options.device, 0)["device"]:
        sys.exit(f"the page is of another machine; first: python scripts/bench.py --device {options.device} --write")
    preset = ["experiment=omniglot_small_maml", f"data.root={options.omniglot.resolve()}", f"trainer.val_every={options.every}"]
    seconds, steps = {}, {}
    for side, watch in (("metarun", metarun), ("learn2learn", learn2learn)):
        begun = time.monotonic()
        for step, accuracy in watch([*preset, f"seed={options.seed}", f"device={options.device}"]):
            seconds[side], steps[side] = time.monotonic() - begun, step
            print(f"{side:11}  iteration {step:5}  {100 * accuracy:.2f} %  {seconds[side]:6.1f} s", flush=True)
            if accuracy >= options.target:
                break
        else:
            sys.exit(f"{side} ended before it reached {options.target} with seed {options.seed}")
    title = f"from the start to {100 * options.target:.0f} % on development tasks of Omniglot `small`, 5-way 1-shot MAML"
    ratio, bar = seconds["learn2learn"] / seconds["metarun"], BAR[options.device]
    print(f"W9   {ratio:.2f} (must be {bar}); {seconds['metarun']:.0f} against {seconds['learn2learn']:.0f} s")
    if options.write:
        work = {"title": title, "bar": bar, "ratio": ratio, "metarun_s": seconds["metarun"], "peer_s": seconds["learn2learn"]}
        work |= {"metarun_step": steps["metarun"], "peer_step": steps["learn2learn"], "seed": options.seed}
        found = written(options.device)
        write(found | {"works": found["works"] | {TIME_TO_ACCURACY: work}})


def metarun(words: list[str]) -> Iterator[tuple[int, float]]:
    """Iteration and development accuracy at every validation of a run from the command line, which is stopped when nobody listens."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "metarun", *words, f"hydra.run.dir={folder}/run", "logger=quiet"]
        log, seen = Path(folder) / "run" / "metrics.jsonl", 0
        process = subprocess.Popen(command, env=surroundings())
        try:
            while process.poll() is None:
                time.sleep(0.05)
                lines = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
                found = [line for line in lines if line["split"] == "val"]
                yield from ((line["step"], line["accuracy"]) for line in found[seen:])
                seen = len(found)
        finally:
            process.kill()
            process.wait()


def learn2learn(words: list[str]) -> Iterator[tuple[int, float]]:
    """The same of ``train`` in the library's own environment."""
    command = [str(interpreter("learn2learn")), str(CHECKOUT / "scripts" / "sides" / "train_with_learn2learn.py"), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=surroundings())
    assert process.stdout
    try:
        for line in process.stdout:
            step, accuracy = line.split()
            yield int(step), float(accuracy)
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
