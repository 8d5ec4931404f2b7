"""A learned optimizer in a training loop of the user's own: the very steps of metarun's inner loop, and a torch optimizer in all else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import quadratics, random, small
from torch import nn

import metarun
from metarun.adaptation import adapt
from metarun.errors import UserError
from metarun.predict.exports import export
from metarun.run import Run
from metarun.task import select

KINDS: dict[str, list[str]] = {
    "lstm": [],
    "logarithm": ["algo.preprocess=10"],
    "gates": ["algo.output=gates"],
    "mlp": ["algo=mlp_optimizer"],
    "program": ["algo=symbolic_optimizer", "algo.seeds=[adam]", "algo.rates=[0.1]"],
}


def exported(folder: Path, kind: str) -> tuple[Run, Path]:
    """An untrained optimizer, which moves weights all the same, and its file."""
    run = Run(quadratics(*KINDS[kind], "algo.test_steps=6"))
    export(run, "optimizer", folder / "rule.pt", None)
    return run, folder / "rule.pt"


@pytest.mark.parametrize("kind", KINDS)
def test_a_users_loop_is_the_inner_loop(kind: str, tmp_path: Path) -> None:
    run, file = exported(tmp_path, kind)
    task = select(run.episodes("test").batch([0]), 0)
    rows, y = task.context.support
    with torch.no_grad():
        states = list(adapt(run.algorithm.eval(), task.context, 6))
    model = nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(states[0].fast["head.weight"])
    optimizer = metarun.optimizer(file, model.parameters())
    assert isinstance(optimizer, torch.optim.Optimizer)
    for state in states[1:]:
        optimizer.zero_grad()
        loss = (model(rows) - y).square().sum()
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(model.weight.detach(), state.fast["head.weight"], rtol=1e-5, atol=1e-6)
    assert not torch.equal(states[0].fast["head.weight"], states[-1].fast["head.weight"])


class Trained:
    """A small net, trained on fixed numbers."""

    def __init__(self, file: Path, lr: float = 1.0) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
        self.optimizer: Any = metarun.optimizer(file, self.model.parameters(), lr=lr)
        self.x, self.y = random(8, 4, seed=1).float(), random(8, 2, seed=2).float()

    def steps(self, n: int) -> list[torch.Tensor]:
        for _ in range(n):
            self.optimizer.step(self.closure)
        return [p.detach().clone() for p in self.model.parameters()]

    def closure(self) -> torch.Tensor:
        self.optimizer.zero_grad()
        loss = (self.model(self.x) - self.y).square().mean()
        loss.backward()
        return loss


@pytest.mark.parametrize("kind", KINDS)
def test_its_state_is_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    _, file = exported(tmp_path, kind)
    straight = Trained(file).steps(7)
    first, second = Trained(file), Trained(file)
    first.steps(4)
    torch.save({"model": first.model.state_dict(), "optimizer": first.optimizer.state_dict()}, tmp_path / "cut.pt")
    kept = torch.load(tmp_path / "cut.pt", weights_only=True)
    second.model.load_state_dict(kept["model"])
    second.optimizer.load_state_dict(kept["optimizer"])
    for here, there in zip(second.steps(3), straight, strict=True):
        assert torch.equal(here, there)


def test_schedulers_groups_closures_and_missing_gradients(tmp_path: Path) -> None:
    _, file = exported(tmp_path, "mlp")
    still = Trained(file, lr=0.0)
    before = [p.detach().clone() for p in still.model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(still.steps(2), before))
    scheduled = Trained(file)
    scheduler = torch.optim.lr_scheduler.LambdaLR(scheduled.optimizer, lambda step: 1.0 if step < 2 else 0.0)
    kept = []
    for _ in range(4):
        kept.append(scheduled.steps(1))
        scheduler.step()
    assert torch.equal(kept[1][0], kept[3][0])
    assert not torch.equal(kept[0][0], kept[1][0])
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = metarun.optimizer(file, [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[1].parameters()}])
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 1.0]
    frozen = model[1].weight.detach().clone()
    model[0](torch.ones(3, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(model[1].weight, frozen)
    assert float(Trained(file).optimizer.step(lambda: torch.tensor(3.0))) == 3.0


def test_a_rule_that_looks_at_the_time_is_told_how_long_training_will_be(tmp_path: Path) -> None:
    _, file = exported(tmp_path, "mlp")
    for steps in (None, 6, 60):  # the run's tests have 6
        p = nn.Parameter(torch.ones(2))
        optimizer = metarun.optimizer(file, [p], steps=steps)
        moves = []
        for _ in range(8):  # who goes on for longer does so at the last rate
            p.grad, before = torch.ones(2), p.detach().clone()
            optimizer.step()
            moves.append((p.detach() - before).norm().item())
        if steps is None:
            first = moves
        elif steps == 6:
            assert moves == first
        else:
            assert moves[-1] > 3 * first[-1] > 0
    with pytest.raises(UserError, match=r"steps=0 is not possible: it is how many steps the training will have"):
        metarun.optimizer(file, [p], steps=0)


def test_random_numbers_of_the_caller_are_left_alone(tmp_path: Path) -> None:
    _, file = exported(tmp_path, "lstm")
    p = nn.Parameter(torch.ones(2))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    metarun.optimizer(file, [p])
    assert torch.equal(torch.rand(3), expected)


def test_what_is_no_optimizer_is_refused_in_one_line(tmp_path: Path) -> None:
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(UserError, match=r"there is no file .*nowhere\.pt: write one with metarun export RUN optimizer"):
        metarun.optimizer(tmp_path / "nowhere.pt", [p])
    (tmp_path / "text.pt").write_text("no optimizer")
    with pytest.raises(UserError, match=r"text\.pt is no optimizer of metarun's"):
        metarun.optimizer(tmp_path / "text.pt", [p])
    torch.save({"format": "metarun optimizer 1", "algo": nn.Linear(1, 1), "weights": {}}, tmp_path / "code.pt")
    with pytest.raises(UserError, match=r"code\.pt is no optimizer of metarun's"):
        metarun.optimizer(tmp_path / "code.pt", [p])  # which the safe loader does not execute
    _, file = exported(tmp_path, "lstm")
    held = torch.load(file, weights_only=True)
    weights = max(held["weights"].values(), key=torch.Tensor.numel).numpy().tobytes()
    content = file.read_bytes()
    (tmp_path / "flipped.pt").write_bytes(content.replace(weights, bytes([weights[0] ^ 1, *weights[1:]])))
    with pytest.raises(UserError, match=r"flipped\.pt is no optimizer of metarun's"):
        metarun.optimizer(tmp_path / "flipped.pt", [p])
    for section, pattern in (
        (held["algo"] | {"_target_": "os.system"}, r"os\.system"),
        (held["algo"] | {"hidden": 5}, r"does not fit"),
        (held["algo"] | {"hiden": 4}, r"unknown key algo\.hiden; did you mean 'hidden'"),
        (Run(small("algo=maml")).values["algo"], r"which is no optimizer"),
    ):
        torch.save(held | {"algo": section}, tmp_path / "other.pt")
        with pytest.raises(UserError, match=pattern):
            metarun.optimizer(tmp_path / "other.pt", [p])
    with pytest.raises(UserError, match=r"lr=-1 is not possible"):
        metarun.optimizer(file, [p], lr=-1)
    with pytest.raises(UserError, match=r"algo=maml has no optimizer to export"):
        export(Run(small("algo=maml")), "optimizer", tmp_path / "maml.pt", None)
