"""CartPole in tensors: gymnasium's own as oracle where it is installed, physics, ends of episodes, ranges that are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import engine, small

from metarun.data.cartpole import CartPole, Pole
from metarun.errors import UserError
from metarun.experiment import check
from metarun.problem import Past
from metarun.protocols.episodes import LAST
from metarun.run import Run

PARAMS = {"length": torch.tensor(0.8, dtype=torch.float64), "masspole": torch.tensor(0.3, dtype=torch.float64)}


def walked(actions: torch.Tensor, state: torch.Tensor, params: dict[str, torch.Tensor] = PARAMS) -> tuple[torch.Tensor, torch.Tensor]:
    """Observations before each action and rewards, [horizon, n, …], of actions [horizon, n]."""
    pole, seen, rewards = Pole(len(actions)), [], []
    for action in actions:
        seen.append(pole.observe(params, state))
        state, reward = pole.step(params, state, action, torch.empty(0))
        rewards.append(reward)
    return torch.stack(seen), torch.stack(rewards)


def test_it_is_gymnasium_s_cartpole() -> None:
    classic = pytest.importorskip("gymnasium.envs.classic_control")
    env = classic.CartPoleEnv()
    env.length, env.masspole = 0.8, 0.3
    env.total_mass, env.polemass_length = 1.3, 0.24
    actions = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (60, 5)))
    state = torch.cat([torch.rand(5, 4, dtype=torch.float64) * 0.1 - 0.05, torch.ones(5, 1, dtype=torch.float64)], 1)
    seen, rewards = walked(actions, state)
    lengths = []
    for i in range(5):
        env.reset(seed=0)
        env.state = state[i, :4].numpy().copy()
        over = False
        for t in range(60):
            np.testing.assert_allclose(seen[t, i], env.state, rtol=1e-9, atol=1e-12)
            assert float(rewards[t, i]) == 1 - over
            if not over:
                _, _, over, _, _ = env.step(int(actions[t, i]))
        lengths.append(float(rewards[:, i].sum()))
    assert max(lengths) < 60  # random pushes let every pole fall
    assert min(lengths) > 5


def test_energy_is_kept_where_nothing_pushes() -> None:
    """Euler's method errs with the step, so a hundred thousandth of a second is taken in place of a fiftieth."""
    from metarun.data import cartpole

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cartpole, "SECONDS", 1e-5)
        patch.setattr(cartpole, "FORCE", 0.0)
        state = torch.tensor([[0.1, -0.3, 0.05, 0.7, 1.0]], dtype=torch.float64)
        seen, _ = walked(torch.zeros(400, 1, dtype=torch.int64), state)
    x, v, angle, spin = seen[:, 0].unbind(1)
    length, pole = 0.8, 0.3
    speed = v.square() + 2 * v * spin * length * angle.cos() + (length * spin).square()  # of the pole's middle
    energy = 0.5 * v.square() + 0.5 * pole * speed + 0.5 * pole * length**2 / 3 * spin.square() + pole * 9.8 * length * angle.cos()
    assert float((energy - energy[0]).abs().max()) < 1e-4 * float(energy[0].abs())
    assert float((x - x[0]).abs().max()) > 1e-4


def test_a_pole_that_has_fallen_stays_and_earns_nothing() -> None:
    state = torch.tensor([[0.0, 0, 0, 0, 1], [0, 0, 0, 0, 1]], dtype=torch.float64)
    seen, rewards = walked(torch.tensor([[0, 1]] * 100), state)
    for i in range(2):
        fallen = int(rewards[:, i].sum())
        assert 5 < fallen < 20
        assert (rewards[:fallen, i] == 1).all()
        assert (rewards[fallen:, i] == 0).all()
        assert torch.equal(seen[fallen:, i], seen[fallen, i].expand(100 - fallen, 4))
        assert float(seen[fallen, i, 2].abs()) > 12 * np.pi / 180
    torch.testing.assert_close(seen[:, 0], -seen[:, 1])  # left and right are alike


def test_a_controller_reaches_the_bound() -> None:
    """A linear one that knows no pole's length keeps most of them up: the oracle's return is to be had."""
    data = CartPole(0, length=[0.25, 1.0], masspole=[0.05, 0.5], horizon=200)
    run = Run(small("data=cartpole", "net=mlp", "way=1", "shot=1", "query=5", "algo=random"))
    drawn = data.draw(np.arange(20, dtype=np.uint64) * np.uint64(12345))

    def policy(past: Past, seen: torch.Tensor, time: torch.Tensor, noise: object) -> tuple[torch.Tensor, tuple[()]]:
        return (seen @ torch.tensor([0.3, 0.6, 10.0, 2.5]) > 0).long(), ()

    returns = []
    for i in range(20):
        params = {name: torch.tensor(values[i], dtype=torch.float32) for name, values in drawn.items()}
        returns.append(run.problem.simulate(params, policy, torch.arange(5))[0].returns)
    assert float(torch.stack(returns).mean()) == float(data.bounds(drawn)["oracle"].mean())
    assert (drawn["length"].min() > 0.25, drawn["length"].max() < 1, drawn["masspole"].max() > 0.3) == (True, True, True)


def test_a_run_is_mapped() -> None:
    run = Run(small("data=cartpole", "data.horizon=12", "net=mlp", "way=1", "shot=2", "query=3", "algo=maml_rl"))
    tasks = run.episodes("test").batch(range(3))
    mapped, looped = (how.evaluate(run.algorithm.eval(), tasks, LAST)["score"] for how in (engine(), engine("loop")))
    torch.testing.assert_close(mapped, looped)
    assert run.engine.scans(run.algorithm)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.length=[1.0]"], r"data.length=\[1.0\] is not possible: it should be the least and the largest"),
        (["data.length=[1.0,0.5]"], "length is to vary between 1 and 0.5, of which the first is larger"),
        (["data.masspole=[0,0.5]"], r"data.masspole\[0\]=0 is not possible"),
    ],
)
def test_ranges_that_are_none_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(small("data=cartpole", "net=mlp", "way=1", "shot=1", "query=1", "algo=random", *words))
