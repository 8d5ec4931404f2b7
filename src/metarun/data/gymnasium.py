"""Any environment of gymnasium: a task is one setting of its keyword arguments. Its steps are Python's, so tasks are run one by one.
Towers et al. 2024, arXiv:2407.17032."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any

import numpy as np
import yaml
from annotated_types import Ge
from torch import Tensor

from metarun.abilities import OneByOne
from metarun.data.environment import Drawn, Environment, uniformly
from metarun.data.episodes import draws
from metarun.errors import MissingLibrary, UserError, install, nearest
from metarun.problem import Control, Kind

VARIED = 36  # stream of draws, apart from those of other data
OURS = "metarun/CartPole-v1"
SEEDS = 2**31  # of episodes' first states: gymnasium takes integers from 0 on


@cache
def library() -> Any:
    """gymnasium, with ``OURS``, whose pole has a ``length`` and a ``masspole``.

    Raises:
        MissingLibrary: it is not installed.
    """
    try:
        gymnasium = importlib.import_module("gymnasium")
    except ImportError:
        raise MissingLibrary(f"data=gymnasium needs gymnasium, which is not installed: {install('gymnasium')}") from None
    if OURS not in gymnasium.registry:
        gymnasium.register(OURS, entry_point=_cartpole)
    return gymnasium


def _cartpole(length: float = 0.5, masspole: float = 0.1, **settings: Any) -> Any:
    """gymnasium's CartPole with another pole: half its length in m, its mass in kg."""
    env = importlib.import_module("gymnasium.envs.classic_control").CartPoleEnv(**settings)
    env.length, env.masspole = length, masspole
    env.total_mass, env.polemass_length = masspole + env.masscart, masspole * length
    return env


@dataclass(frozen=True)
class Stepper(OneByOne):
    """Episodes of a gymnasium environment as a ``Simulator``; n of them are n environments, which step one after the other.

    There is no automatic reset: where an episode ends, terminated or truncated, its environment is not stepped again, its observation
    stays and its rewards are 0 until the horizon. The environment's own limit of time is taken off, so that the horizon is the limit. All
    chance is the environment's own, seeded by the episode's key. Environments cannot go back: of states, only the last can be stepped.

    Attributes:
        env: its id.
        settings: keyword arguments of ``gymnasium.make`` that are the same in all tasks, beside a task's own.
        horizon: actions of an episode.
        low, high: between which numbers of an action are clipped; None for choices.
        first: the number of the first choice.
    """

    env: str
    settings: tuple[tuple[str, Any], ...]
    horizon: int
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    first: int = 0
    running: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def reset(self, params: dict[str, Tensor], keys: Tensor) -> Tensor:
        own = {name: _number(float(value)) for name, value in params.items()}
        held = self.running
        if held.get("own") != own:
            for env in held.get("envs", []):
                env.close()
            held |= {"own": own, "envs": []}
        while len(held["envs"]) < len(keys):
            held["envs"].append(make(self.env, dict(self.settings) | own))
        held["turn"] = held.get("turn", 0) + 1
        seen = [env.reset(seed=int(key) % SEEDS)[0] for env, key in zip(held["envs"], keys.tolist())]
        return self._state(seen, np.ones(len(keys)), params)

    def _state(self, seen: list[Any], going: np.ndarray, params: dict[str, Tensor]) -> Tensor:
        """Observations, whether an episode still goes on, and whose turn it is, [n, observation + 2]."""
        flat = np.stack([np.asarray(one, np.float64).ravel() for one in seen])
        turn = np.full(len(going), self.running["turn"] % 2**20)
        return next(iter(params.values())).new_tensor(np.column_stack([flat, going, turn]))

    def noise(self, keys: Tensor) -> Tensor:
        return keys.new_zeros(keys.shape[0], self.horizon, 0)

    def observe(self, params: dict[str, Tensor], state: Tensor) -> Tensor:
        return state[:, :-2]

    def step(self, params: dict[str, Tensor], state: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        numbers = state.double().cpu().numpy()
        if (numbers[:, -1] != self.running["turn"] % 2**20).any():
            raise RuntimeError("an environment of gymnasium has gone on to other episodes: it cannot step an earlier state")
        going, rewards, seen = numbers[:, -2].copy(), np.zeros(len(numbers)), list(numbers[:, :-2])
        for i, (env, done) in enumerate(zip(self.running["envs"], action.cpu().numpy())):
            if going[i]:
                seen[i], rewards[i], terminated, truncated, _ = env.step(self._action(done))
                going[i] = not (terminated or truncated)
        return self._state(seen, going, params), state.new_tensor(rewards)

    def _action(self, chosen: np.ndarray) -> Any:
        if self.low is None:
            return int(chosen) + self.first
        return np.clip(chosen, self.low, self.high).astype(np.float32)


def make(env: str, settings: dict[str, Any]) -> Any:
    """``gymnasium.make`` without limit of time.

    Raises:
        UserError: no such environment, it lacks a library, or takes other keyword arguments.
    """
    gymnasium = library()
    if ":" in env:  # a module would be run
        raise UserError(f"data.env={env} names a module: register its environments in a data set of your own, see docs/control.md")
    try:
        return gymnasium.make(env, max_episode_steps=-1, disable_env_checker=True, **settings)
    except gymnasium.error.UnregisteredEnv:
        raise UserError(f"data.env={env} is no environment of gymnasium{nearest(env, gymnasium.registry)}") from None
    except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise UserError(f"data.env={env} cannot be made of {settings or 'no settings'} ({why}); see data.vary and data.settings") from None


class Gymnasium(Environment):
    """An environment of gymnasium whose keyword arguments vary; observations are its own, as one vector.

    Args:
        seed: the run's; unused, since every episode is a function of the seed handed to ``episodes``.
        env: its id.
        vary: names of keyword arguments of ``gymnasium.make`` that tell tasks from each other.
        low, high: between which each of them is uniform.
        settings: further keyword arguments, ``NAME:VALUE``.
        horizon: actions of an episode, if it does not end earlier.

    Raises:
        MissingLibrary: gymnasium is not installed.
        UserError: there is no such environment, or its observations or actions are not of a kind that learners here have.
    """

    kind: Kind = Control()  # with which actions, an object says
    simulator: Stepper

    def __init__(
        self,
        seed: int,
        *,
        env: str,
        vary: list[str],
        low: list[float],
        high: list[float],
        settings: list[str],
        horizon: Annotated[int, Ge(1)],
    ) -> None:
        if not vary:
            raise UserError("data.vary=[] leaves one task alone; name what varies, as data.vary=[length]")
        self.varied, self.ranges = len(vary), uniformly(vary, low, high)
        fixed = tuple(_setting(text) for text in settings)
        one = make(env, dict(fixed) | {name: (a + b) / 2 for name, a, b in zip(vary, low, high)})
        spaces, seen, acts = library().spaces, one.observation_space, one.action_space
        one.close()
        if not isinstance(seen, spaces.Box):
            raise UserError(f"data.env={env} has observations of {type(seen).__name__}; learners here take vectors of numbers (Box)")
        self.input_shape = (int(np.prod(seen.shape)),)
        if isinstance(acts, spaces.Discrete):
            self.kind = Control(choices=int(acts.n))
            self.simulator = Stepper(env, fixed, horizon, first=int(acts.start))
        elif isinstance(acts, spaces.Box) and len(acts.shape) == 1:
            self.kind = Control(size=acts.shape[0])
            self.simulator = Stepper(env, fixed, horizon, tuple(acts.low.tolist()), tuple(acts.high.tolist()))
        else:
            raise UserError(f"data.env={env} has actions of {type(acts).__name__}; learners here choose (Discrete) or give vectors (Box)")

    def draw(self, keys: np.ndarray) -> Drawn:
        """What varies, by name, [B] each."""
        return self.ranges(draws(keys, VARIED, (self.varied,)))

    def bounds(self, drawn: Drawn) -> Drawn:
        """Nobody knows."""
        return {}

    def describe(self, split: str) -> str:
        return f"endless settings of {self.simulator.env}, episodes of up to {self.simulator.horizon} actions"


def _number(value: float) -> float:
    """The integer that it is, if it is one, as seeds have to be."""
    return int(value) if value.is_integer() else value


def _setting(text: str) -> tuple[str, Any]:
    """``NAME:VALUE``; the value as in a YAML."""
    name, colon, value = text.partition(":")
    if not colon or not name.isidentifier():
        raise UserError(f"data.settings has '{text}', which should be NAME:VALUE, as gravity:-5")
    return name, yaml.safe_load(value)
