"""Keyed random weights of a net: torch's distribution of initial weights, others for every task, the same ones again."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import NETS, same, small
from torch import nn

from metarun.nets.base import draw
from metarun.nets.conv4 import Conv4
from metarun.nets.mlp import MLP
from metarun.run import Run


@pytest.mark.parametrize("net", NETS)
def test_every_weight_of_every_net_is_drawn_in_its_shape(net: str) -> None:
    backbone = Run(small(f"net={net}")).algorithm.net
    drawn = backbone.draw(torch.tensor(3))
    assert {name: w.shape for name, w in drawn.items()} == {name: w.shape for name, w in backbone.named_parameters()}
    assert all(w.dtype == p.dtype for w, p in zip(drawn.values(), backbone.parameters()))


@pytest.mark.parametrize(
    "module", [nn.Linear(40, 300), nn.Conv2d(5, 300, 3), nn.Conv1d(4, 300, 7)], ids=["linear", "convolution", "one dimension"]
)
def test_weights_and_biases_have_torchs_bounds_and_variance(module: nn.Module) -> None:
    torch.manual_seed(0)
    drawn = {name: torch.stack([draw(module, torch.tensor(key))[name] for key in range(40)]) for name, _ in module.named_parameters()}
    theirs = {name: [] for name in drawn}  # type: ignore[var-annotated]
    for _ in range(40):
        module.reset_parameters()  # type: ignore[operator]
        for name, w in module.named_parameters():
            theirs[name].append(w.detach().clone())
    for name, w in module.named_parameters():
        bound = 1 / math.sqrt(module.weight[0].numel())  # type: ignore[index, union-attr]
        other = torch.stack(theirs[name])
        assert drawn[name].abs().max() <= bound
        assert other.abs().max() <= bound * (1 + 1e-6)
        assert float(drawn[name].abs().max()) == pytest.approx(bound, rel=0.001)
        error = bound / math.sqrt(3 * w.numel() * 40)  # of a mean
        assert abs(float(drawn[name].mean())) < 4 * error
        assert float(drawn[name].var()) == pytest.approx(bound**2 / 3, rel=0.03)
        assert float(drawn[name].var()) == pytest.approx(float(other.var()), rel=0.05)


def test_layers_are_independent_of_each_other() -> None:
    net = MLP((30,), sizes=[30, 30, 30], activation="tanh", norm="none")
    weights = [w.flatten() for name, w in net.draw(torch.tensor(8)).items() if w.dim() > 1]
    assert len(weights) == 3
    assert (torch.corrcoef(torch.stack(weights)) - torch.eye(3)).abs().max() < 4 / 30


def test_every_task_has_weights_of_its_own_under_vmap() -> None:
    net = Conv4((1, 16, 16), hidden=4, down="pool", downs=4, flatten=True, norm="batch")
    keys = torch.tensor([5, 6, 5])
    stacked = torch.vmap(net.draw, out_dims=0)(keys)
    for i, key in enumerate(keys):
        alone = net.draw(key)
        assert all(torch.equal(stacked[name][i], w) for name, w in alone.items())
    convolutions = [name for name, w in net.named_parameters() if w.dim() == 4]
    assert convolutions
    for name in convolutions:
        assert not torch.equal(stacked[name][0], stacked[name][1])
        assert torch.equal(stacked[name][0], stacked[name][2])


def test_what_has_no_inputs_begins_as_it_is() -> None:
    net = Conv4((1, 16, 16), hidden=4, down="pool", downs=4, flatten=True, norm="batch")
    with torch.no_grad():
        for name, w in net.named_parameters():
            if "norm" in name:
                w.fill_(0.25)
    drawn = net.draw(torch.tensor(1))
    assert all((w == 0.25).all() for name, w in drawn.items() if "norm" in name)
    assert same(net.draw(torch.tensor(1)), drawn)
    assert not any(w.requires_grad for w in drawn.values())
