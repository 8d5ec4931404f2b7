"""protocol=rewards: the reward at every action, the same return as of protocol=episodes, and who cannot be asked."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import bandits, engine, small

from metarun.errors import UserError
from metarun.experiment import train
from metarun.protocols.episodes import EVERY
from metarun.protocols.rewards import Rewards
from metarun.run import Run


def test_rewards_by_action_add_up_to_the_return():
    run = Run(bandits("ucb1", "protocol=rewards"))
    tasks = run.episodes("test").batch(range(5))
    arrays = {name: values.double().numpy() for name, values in engine().evaluate(run.algorithm, tasks, Rewards("all")).items()}
    assert arrays["rewards"].shape == (5, 6)
    whole = engine().evaluate(run.algorithm, tasks, EVERY)["score"][:, -1]
    np.testing.assert_allclose(Rewards("all").per_episode(arrays), whole, rtol=1e-6)
    scores, curve = Rewards("all").summarise(run.problem, arrays)
    assert scores["return"]["mean"] == pytest.approx(float(whole.mean()))
    assert [point["step"] for point in curve] == [1, 2, 3, 4, 5, 6]
    assert [point["mean"] for point in curve] == pytest.approx(arrays["rewards"].mean(0).tolist())


def test_what_is_no_number_makes_the_return_none():
    arrays = {"rewards": np.array([[1.0, np.nan], [1.0, 2.0]])}
    assert np.isnan(Rewards("all").per_episode(arrays)).tolist() == [True, False]


def test_a_run_of_it_leaves_its_curve_and_picture(tmp_path):
    values = bandits("rl2", "protocol=rewards", "shot=0", "logger.pictures=true")
    summary = train(values, tmp_path)
    assert summary["protocol"] == ["rewards"]
    assert len(summary["test"]["curve"]) == 6
    assert summary["test"]["return"]["mean"] == pytest.approx(float(np.load(tmp_path / "test_scores.npy").mean()))
    assert json.loads(Path(tmp_path / "summary.json").read_text())["bounds"].keys() == {"random", "oracle"}
    assert (tmp_path / "rewards.png").stat().st_size > 1000


def test_who_does_not_act_cannot_be_asked():
    with pytest.raises(UserError, match="protocol=rewards is not possible with algo=maml: it needs an environment to act in"):
        Run(small("algo=maml", "net.hidden=8", "protocol=rewards"))


def test_a_picture_of_a_grid_has_the_first_episode_and_the_last():
    from metarun.drawing import figures

    run = Run(small("data=gridnav", "data.horizon=5", "net=mlp", "way=1", "shot=2", "query=3", "algo=rl2"))
    axes = figures.episode(run, "val", 1).axes[0]
    *ways, goal = axes.lines
    assert len(ways) == 2 * 3
    starts = {tuple(way.get_xydata()[0].round(3)) for way in ways}
    assert starts == {(-0.3, -0.3), (0, 0), (0.3, 0.3)}  # apart from each other, though all begin in one cell
    assert goal.get_xydata()[0].tolist() == run.episodes("val").drawn([1])["goal"][0].tolist()
    assert [text.get_text().partition(":")[0] for text in axes.get_legend().get_texts()] == ["before", "after 2 inner steps", "goal"]
    assert torch.is_grad_enabled()
