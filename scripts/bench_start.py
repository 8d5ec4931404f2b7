"""How long a user waits: `metarun --help`, and from start to the first training step with the data cached; prints medians of seconds.
Use: python scripts/bench_start.py [KEY=VALUE ...], the words of a run (default: the run of `make run`)."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 5


def seconds_to_help() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "metarun", "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def seconds_to_first_step(words: list[str]) -> float:
    """Until the first training step is on the disk; the run is ended then."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "metarun", *words, "logger.every=1", f"hydra.run.dir={run}"]
        start = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            while not (run / "metrics.jsonl").is_file() or not (run / "metrics.jsonl").stat().st_size:
                if process.poll() is not None:
                    sys.exit(process.stderr.read() if process.stderr else "the run ended before its first step")
                time.sleep(0.01)
            seconds = time.perf_counter() - start
            process.kill()
        return seconds


if __name__ == "__main__":
    words = sys.argv[1:] or ["experiment=quickstart"]
    seconds_to_first_step(words)  # fills the cache
    for name, measure in (("metarun --help", seconds_to_help), (f"first step of {' '.join(words)}", lambda: seconds_to_first_step(words))):
        times = [measure() for _ in range(ROUNDS)]
        print(f"{statistics.median(times):6.2f} s  ({min(times):.2f} to {max(times):.2f})  {name}", flush=True)
