"""How long `metarun compare` takes on a synthetic sweep: 500 runs, 50 of them damaged; prints seconds.
Use: python scripts/bench_compare.py [RUNS]; `make_runs` also serves the tests."""

import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

EPISODES = 100
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def config(algo: str, data: str, way: int, shot: int, seed: int, inner_lr: float | None, lr: float, hidden: int) -> dict[str, Any]:
    """As metarun writes it, resolved."""
    episode = {"way": way, "shot": shot, "query": 15}
    inner = {} if inner_lr is None else {"inner_lr": inner_lr, "inner_steps": 1, "test_steps": 3, "first_order": False, "mode": "unroll"}
    return {
        **episode, "seed": seed, "device": "auto", "precision": "fp32", "name": f"{algo}-{data}-{way}w{shot}s",
        "engine": {"map": "vmap", "chunk": "auto"},
        "algo": {"_target_": f"metarun.algos.{algo}.X", "name": algo, **inner},
        "data": {"_target_": "metarun.data.X", "name": data, "train_classes": 1000, "drawers": 20, "size": 28},
        "episode": {**episode, "train": {**episode}, "eval": {**episode}},
        "net": {"_target_": "metarun.nets.conv4.Conv4", "name": "conv4", "hidden": hidden, "down": "pool", "norm": "batch"},
        "optim": {"_target_": "metarun.optim.MetaOptimizer", "name": "adam", "method": "adam", "lr": lr, "clip_norm": 10.0},
        "trainer": {"name": "default", "iterations": 1000, "meta_batch": 16, "val_every": 100, "test_episodes": EPISODES, "patience": None},
        "logger": {"name": "default", "every": 10, "tensorboard": True, "progress": True},
    }  # fmt: skip


def make_run(
    folder: Path,
    algo: str = "maml",
    data: str = "glyphs",
    way: int = 5,
    shot: int = 1,
    seed: int = 0,
    inner_lr: float | None = 0.1,
    lr: float = 0.001,
    hidden: int = 32,
    score: float = 0.8,
    metric: str = "accuracy",
) -> Path:
    """Write one finished run whose test scores lie around ``score``; the episodes are those of (seed, data, way, shot)."""
    folder.mkdir(parents=True)
    key = f"{seed} {data} {way} {shot}"
    common = np.random.default_rng(list(key.encode())).normal(0, 0.1, EPISODES)  # some episodes are hard for everyone
    own = np.random.default_rng(list(f"{key} {algo} {inner_lr} {lr} {hidden}".encode())).normal(0, 0.03, EPISODES)
    scores = (score + common + own).astype(np.float32)
    if metric == "accuracy":
        scores = scores.clip(0, 1)

    def statistics(values: np.ndarray) -> dict[str, float]:
        return {"mean": float(values.mean()), "ci95": float(1.96 * values.std() / len(values) ** 0.5), "n": len(values)}

    test = statistics(scores)
    val = statistics(scores[:50] * 0.99)
    loss = {"mean": 1 - test["mean"] / 2, "ci95": 0.02, "n": EPISODES}
    curve = [{"step": k, "mean": 0.2 + (test["mean"] - 0.2) * (1 - 0.2**k), "ci95": test["ci95"]} for k in range(4 if inner_lr else 1)]
    summary = {
        "algo": algo, "data": data, "way": way, "shot": shot, "query": 15, "seed": seed, "parameters": 1000 * hidden, "best_step": 900,
        "iterations": 1000, "val": {metric: val, "loss": loss}, "test": {metric: test, "loss": loss, "curve": curve},
        "episodes_sha256": hashlib.sha256(key.encode()).hexdigest(), "bn_mode": "batch", "precision": "fp32", "device": "cpu",
        "wall_s": 60.0 + seed, "tasks_per_s": 250.0, "peak_memory_mb": 600.0, "versions": {"metarun": "0.1.0"},
    }  # fmt: skip
    values = config(algo, data, way, shot, seed, inner_lr, lr, hidden)
    (folder / "config.yaml").write_text(yaml.dump(values, Dumper=DUMPER, sort_keys=False))
    (folder / "summary.json").write_text(json.dumps(summary, indent=2))
    np.save(folder / "test_scores.npy", scores)
    with (folder / "metrics.jsonl").open("w") as handle:
        for step in range(10, 1001, 10):
            now = 0.2 + (score - 0.2) * (1 - np.exp(-step / 250))
            handle.write(json.dumps({"step": step, "split": "train", "loss": 1 - now / 2, metric: now + 0.02 * np.sin(step)}) + "\n")
            if step % 100 == 0:
                handle.write(json.dumps({"step": step, "split": "val", "loss": 1 - now / 2, metric: now, "ci95": 0.01}) + "\n")
    return folder


def _edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        summary = json.loads((folder / "summary.json").read_text())
        change(summary)
        (folder / "summary.json").write_text(json.dumps(summary))

    return damage


def _cut(folder: Path) -> None:
    text = (folder / "summary.json").read_text()
    (folder / "summary.json").write_text(text[: len(text) // 2])


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "summary.json is not complete JSON": _cut,
    "summary.json is empty": lambda folder: (folder / "summary.json").write_bytes(b"\0" * 100),
    "summary.json lacks seed, val": _edit(lambda summary: (summary.pop("seed"), summary.pop("val"))),
    "summary.json has a wrong value for way": _edit(lambda summary: summary.update(way="five")),
    "summary.json has no finite result": _edit(
        lambda summary: summary.update(val={}, test={"accuracy": {"mean": float("nan"), "ci95": 0, "n": 9}})
    ),
    "summary.json holds no object": lambda folder: (folder / "summary.json").write_text("[1, 2]"),
    "config.yaml is not valid YAML": lambda folder: (folder / "config.yaml").write_text("way: [5\nshot: 1: 2"),
    "config.yaml is empty": lambda folder: (folder / "config.yaml").write_text(""),
    "config.yaml is missing": lambda folder: (folder / "config.yaml").unlink(),
    "the folder is empty": _empty,
}  # the reason that must be given -> how to damage a run so


def make_runs(folder: Path, n: int, damaged: int) -> dict[Path, str]:
    """A sweep of ``n`` runs, ``damaged`` of them broken in turn in every way of ``DAMAGES``; returns those with the reason."""
    broken: dict[Path, str] = {}
    for i in range(n):
        seed, rest = i % 5, i // 5
        algo, rest = ("maml", "fomaml", "protonet")[rest % 3], rest // 3
        shot, rest = (1, 5)[rest % 2], rest // 2
        lr, inner_lr, hidden = 10 ** (-4 + rest % 4 / 1.5), 10 ** (-2 + rest // 4 % 3 / 1.2), (32, 64)[rest // 12 % 2]
        if algo == "protonet":  # which has no inner loop to vary
            inner_lr, hidden = None, round(hidden * inner_lr * 100)
        score = 0.75 + 0.15 * (shot == 5) - 0.05 * abs(np.log10(lr) + 3) - 0.03 * abs(np.log10(inner_lr or 1) + 1) + 0.01 * (hidden == 64)
        where = folder / f"{i}_{algo}-glyphs-5w{shot}s"
        make_run(where, algo, shot=shot, seed=seed, inner_lr=inner_lr, lr=lr, hidden=hidden, score=score)
        if damaged and i % (n // damaged) == 0 and len(broken) < damaged:
            reason = list(DAMAGES)[len(broken) % len(DAMAGES)]
            DAMAGES[reason](where)
            broken[where] = reason
    return broken


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    with tempfile.TemporaryDirectory() as name:
        make_runs(Path(name), n, n // 10)
        code = "import sys; from metarun.cli import compare; compare.run(compare.parser().read(sys.argv[1:]))"
        for label, options in (("table", []), ("table, plots and report", ["--out", f"{name}/report"])):
            taken = []
            for _ in range(3):
                started, used = time.perf_counter(), _child_cpu()
                subprocess.run([sys.executable, "-c", code, name, *options], check=True, capture_output=True)
                taken.append((time.perf_counter() - started, _child_cpu() - used))
            wall, cpu = min(taken)
            print(f"{n} runs, {n // 10} damaged, {label}: {wall:.2f} s, of which CPU {cpu:.2f} s (best of 3, whole process)")


def _child_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
