"""How many steps of an environment a second: all tasks and episodes at once in tensors under vmap, against gymnasium's vector API.

python scripts/bench_environments.py [--seconds 5] [--write]

One thread each, random actions, the same environments: CartPole-v1 (gymnasium's own, and metarun's data=cartpole) and navigation2d (as
it is, and as a class of gymnasium.Env). Ours is the whole of an evaluation by algo=random, chance of the policy included. Needs gymnasium.
--write puts the table into docs/control.md.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from pages import put

from metarun.config.compose import compose, resolve
from metarun.protocols.episodes import LAST
from metarun.run import Run

PAGE = Path(__file__).resolve().parents[1] / "docs" / "control.md"
TASKS, EPISODES, HORIZON, ENVIRONMENTS = 64, 100, 100, 64


class Plane(gymnasium.Env):
    """navigation2d, as somebody would write it for gymnasium."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-0.1, 0.1, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.goal = self.np_random.uniform(-0.5, 0.5, 2)
        self.place, self.time = np.zeros(2), 0
        return self.place.astype(np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.place = self.place + np.clip(action, -0.1, 0.1)
        self.time += 1
        reward = -float(np.hypot(*(self.place - self.goal)))
        return self.place.astype(np.float32), reward, False, self.time >= HORIZON, {}


def ours(words: str, seconds: float) -> float:
    """Steps a second of an evaluation of random actions."""
    shape = ["way=1", "shot=0", f"query={EPISODES}", f"data.horizon={HORIZON}", "net=mlp", "algo=random", "device=cpu", "logger=quiet"]
    run = Run(resolve(compose([words, *shape, "engine.threads=1", f"engine.chunk={TASKS}"])))
    tasks = run.episodes("test").batch(range(TASKS))
    return rate(lambda: run.engine.evaluate(run.algorithm, tasks, LAST), TASKS * EPISODES * HORIZON, seconds)


def theirs(envs: Any, seconds: float) -> float:
    """Steps a second of a vector environment; steps in which one is reset automatically count, too."""
    envs.reset(seed=0)
    actions = [envs.action_space.sample() for _ in range(HORIZON)]

    def walk() -> None:
        for action in actions:
            envs.step(action)

    found = rate(walk, envs.num_envs * HORIZON, seconds)
    envs.close()
    return found


def rate(work: Callable[[], Any], steps: int, seconds: float) -> float:
    """The best of all times within so many seconds, after a first one that does not count."""
    work()
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return steps / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--write", action="store_true", help="put the table into docs/control.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    many = TASKS * EPISODES
    auto = {"autoreset_mode": AutoresetMode.NEXT_STEP}
    cases: dict[str, list[tuple[str, Callable[[], float]]]] = {
        "CartPole": [
            (f"metarun, {many:,} under vmap", lambda: ours("data=cartpole", options.seconds)),
            (f"gymnasium, {ENVIRONMENTS} in SyncVectorEnv", lambda: theirs(made("sync", ENVIRONMENTS, auto), options.seconds)),
            (f"gymnasium, {many:,} in SyncVectorEnv", lambda: theirs(made("sync", many, auto), options.seconds)),
            (f"gymnasium, {many:,} in CartPoleVectorEnv", lambda: theirs(made("vector_entry_point", many, {}), options.seconds)),
        ],
        "navigation2d": [
            (f"metarun, {many:,} under vmap", lambda: ours("data=navigation2d", options.seconds)),
            (f"gymnasium, {ENVIRONMENTS} in SyncVectorEnv", lambda: theirs(SyncVectorEnv([Plane] * ENVIRONMENTS, **auto), options.seconds)),
            (f"gymnasium, {many:,} in SyncVectorEnv", lambda: theirs(SyncVectorEnv([Plane] * many, **auto), options.seconds)),
        ],
    }
    table = "| environment | how | steps a second | metarun is |\n| --- | --- | --- | --- |\n"
    for name, rows in cases.items():
        found = [(how, measure()) for how, measure in rows]
        for how, speed in found:
            times = f"{found[0][1] / speed:.1f} times as fast" if speed is not found[0][1] else ""
            table += f"| {name} | {how} | {speed:,.0f} | {times} |\n"
    print(table)
    if options.write:
        put(PAGE, "steps", table)


def made(mode: str, n: int, settings: dict[str, Any]) -> Any:
    """n of gymnasium's CartPole, as one vector environment."""
    return gymnasium.make_vec("CartPole-v1", num_envs=n, vectorization_mode=mode, vector_kwargs=settings)


if __name__ == "__main__":
    main()
