"""Environments of gymnasium: the same returns as of the same environment in tensors, ends of episodes, one line for what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import engine, small

from metarun.data import gymnasium as adaptor
from metarun.data.cartpole import Pole
from metarun.errors import MissingLibrary, UserError
from metarun.experiment import train
from metarun.problem import Past
from metarun.protocols.episodes import LAST
from metarun.run import Run

WORDS = ["data=gymnasium", "net=mlp", "way=1", "shot=2", "query=3", "data.horizon=15"]


def test_without_the_library_a_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    adaptor.library.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "gymnasium", None)
    with pytest.raises(MissingLibrary, match=r"data=gymnasium needs gymnasium, which is not installed: pip install -e '.\[gymnasium\]'"):
        Run(small(*WORDS, "algo=random"))
    adaptor.library.cache_clear()


@pytest.fixture
def gymnasium() -> Any:
    return pytest.importorskip("gymnasium")


@pytest.mark.usefixtures("gymnasium")
def test_a_policy_has_the_returns_that_it_has_in_tensors() -> None:
    run = Run(small(*WORDS, "data.horizon=60", "algo=random"))
    params = {"length": torch.tensor(0.6), "masspole": torch.tensor(0.2)}
    keys = torch.tensor([3, 5, 2**40 + 1])
    pushes = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (3, 60)))

    def policy(past: Past, seen: torch.Tensor, time: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, tuple[()]]:
        return noise, ()

    done, _ = run.problem.simulate(params, policy, keys, noise=pushes)
    pole, state = Pole(60), torch.cat([done.observations[:, 0].double(), torch.ones(3, 1)], 1)
    exact = {name: value.double() for name, value in params.items()}
    for t in range(60):
        torch.testing.assert_close(done.observations[:, t].double(), pole.observe(exact, state), rtol=1e-4, atol=1e-5)
        state, reward = pole.step(exact, state, pushes[:, t], torch.empty(0))
        assert torch.equal(done.rewards[:, t].double(), reward)
    assert (done.returns < 60).all()
    again, _ = run.problem.simulate(params, policy, keys, noise=pushes)
    assert torch.equal(again.observations, done.observations)
    other, _ = run.problem.simulate(params | {"length": torch.tensor(0.3)}, policy, keys, noise=pushes)
    assert torch.equal(other.observations[:, 0], done.observations[:, 0])
    assert not torch.equal(other.observations[:, 5], done.observations[:, 5])


@pytest.mark.usefixtures("gymnasium")
def test_an_earlier_state_cannot_be_stepped() -> None:
    run = Run(small(*WORDS, "algo=random"))
    simulator, params = run.problem.simulator, {"length": torch.tensor(0.6), "masspole": torch.tensor(0.2)}
    assert simulator is not None
    state = simulator.reset(params, torch.tensor([1]))
    simulator.reset(params, torch.tensor([2]))
    with pytest.raises(RuntimeError, match="it cannot step an earlier state"):
        simulator.step(params, state, torch.tensor([0]), torch.empty(0))


@pytest.mark.usefixtures("gymnasium")
@pytest.mark.parametrize("algo", ["maml_rl", "rl2"])
def test_a_run_goes_task_by_task(algo: str, tmp_path: Path) -> None:
    summary = train(small(*WORDS, f"algo={algo}", "trainer.iterations=2"), tmp_path / "run")
    assert 1 <= summary["test"]["return"]["mean"] <= 15
    run = Run(small(*WORDS, f"algo={algo}"))
    assert not run.engine.scans(run.algorithm)
    assert Run(small("data=cartpole", *WORDS[1:], f"algo={algo}")).engine.scans(run.algorithm) is False


@pytest.mark.usefixtures("gymnasium")
def test_actions_of_numbers_are_clipped_and_choices_begin_where_they_do() -> None:
    words = ["data.env=Pendulum-v1", "data.vary=[g]", "data.low=[5]", "data.high=[15]"]
    run = Run(small(*WORDS, *words, "algo=random"))
    assert (run.problem.kind.size, run.problem.input_shape) == (1, (3,))
    found = engine("loop").evaluate(run.algorithm.eval(), run.episodes("test").batch(range(2)), LAST)
    assert (found["score"] < 0).all()
    simulator = run.data.simulator
    assert simulator._action(np.array([7.0])).tolist() == [2.0]
    assert adaptor.Stepper("", (), 1, first=3)._action(np.array(2)) == 5


@pytest.mark.usefixtures("gymnasium")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.env=CartPol-v1"], "data.env=CartPol-v1 is no environment of gymnasium; did you mean 'CartPole-v1'"),
        (["data.env=os:CartPole-v1"], "data.env=os:CartPole-v1 names a module"),
        (["data.env=CartPole-v1"], r"data.env=CartPole-v1 cannot be made of {'length': .*unexpected keyword"),
        (["data.vary=[]"], r"data.vary=\[\] leaves one task alone"),
        (["data.low=[1]"], r"2 names of what varies \(length, masspole\) need as many least and largest values"),
        (["data.settings=[gravity]"], "data.settings has 'gravity', which should be NAME:VALUE"),
        (["data.env=Blackjack-v1", "data.vary=[natural]", "data.low=[0]", "data.high=[1]"], "observations of Tuple"),
    ],
)
def test_what_cannot_be_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Run(small(*WORDS, "algo=random", *words))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("gymnasium")
def test_further_settings_reach_the_environment() -> None:
    words = ["data.env=CartPole-v1", "data.vary=[sutton_barto_reward]", "data.low=[1]", "data.high=[1]"]
    run = Run(small(*WORDS, *words, "algo=random"))
    found = engine("loop").evaluate(run.algorithm.eval(), run.episodes("test").batch(range(2)), LAST)
    assert (found["score"] <= 0).all()  # 0 while the pole stands, -1 when it falls
    run = Run(small(*WORDS, "data.settings=[sutton_barto_reward:true]", "algo=random"))
    assert run.data.simulator.settings == (("sutton_barto_reward", True),)
