"""Cells: chosen operations against torch's own layers, the mixture against its definition, genotypes as texts and as runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import double, meta_gradient, small
from helpers import engine as plain_engine
from torch import Tensor

from metarun.config.stored import read_config
from metarun.errors import UserError
from metarun.experiment import train
from metarun.nets.cell import EDGES, OPERATIONS, Cell, derived, spelled
from metarun.run import Run

GENOTYPE = "conv3-skip-pool-none-conv1-conv3"


def cell(genotype: str | None = None, **settings: Any) -> Cell:
    torch.manual_seed(0)
    made: dict[str, Any] = {"hidden": 4, "stages": 2, "cells": 1, "operations": list(OPERATIONS), "down": "pool", "flatten": True}
    net = Cell((2, 16, 16), genotype=genotype, **{**made, "norm": "batch", **settings}).double()
    for parameter in net.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter)
    return net


def normed(weights: dict[str, Tensor], place: str, x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, weights[f"{place}.weight"], weights[f"{place}.bias"], training=True)


def by_hand(net: Cell, x: Tensor, share: Any) -> Tensor:
    """The net in torch's functions; ``share(edge, name)`` is the part that an operation has in an edge."""
    weights = net.state_dict()
    for i in range(2):
        x = F.conv2d(x, weights[f"stages.{i}.block.conv.weight"], padding=1)
        x = F.max_pool2d(F.relu(normed(weights, f"stages.{i}.block.norm", x)), 2)
        nodes = [x]
        for end in (1, 2, 3):
            total = torch.zeros_like(x)
            for edge, (start, goal) in enumerate(EDGES):
                place = f"stages.{i}.cells.0.{edge}"
                for name in OPERATIONS if goal == end else ():
                    if not (part := share(edge, name)):
                        continue
                    source = nodes[start]
                    if name == "pool":
                        source = F.avg_pool2d(source, 3, 1, 1, count_include_pad=False)
                    elif name in ("conv1", "conv3"):
                        kernel = weights[f"{place}.convs.{name}.weight"]
                        source = normed(weights, f"{place}.norms.{name}", F.conv2d(F.relu(source), kernel, padding=kernel.shape[-1] // 2))
                    total = total + part * source * (name != "none")
            nodes.append(total)
        x = nodes[-1]
    return F.relu(normed(weights, "last", x)).flatten(1)


def test_a_chosen_net_is_its_graph() -> None:
    net, x = cell(GENOTYPE), torch.rand(5, 2, 16, 16, dtype=torch.float64)
    names = GENOTYPE.split("-")
    torch.testing.assert_close(net(x), by_hand(net, x, lambda edge, name: float(names[edge] == name)), rtol=1e-8, atol=1e-8)
    assert not net.architecture
    assert not net.found()


def test_the_mixture_weighs_operations_by_a_softmax() -> None:
    net, x = cell(), torch.rand(5, 2, 16, 16, dtype=torch.float64)
    shares = net.mixture.detach().view(6, 5).softmax(1)
    expected = by_hand(net, x, lambda edge, name: float(shares[edge, OPERATIONS.index(name)]))
    torch.testing.assert_close(net(x), expected, rtol=1e-8, atol=1e-8)


def test_a_sure_mixture_is_the_chosen_net_with_the_same_weights() -> None:
    mixture, chosen = cell(), cell(GENOTYPE)
    weights = mixture.state_dict()
    chosen.load_state_dict({name: weights[name] for name in chosen.state_dict()})  # the names are those of the mixture
    sure = torch.tensor([[100.0 * (name == choice) for name in OPERATIONS] for choice in GENOTYPE.split("-")])
    mixture.mixture.data.copy_(sure.flatten())
    x = torch.rand(5, 2, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(mixture(x), chosen(x), rtol=1e-8, atol=1e-8)
    assert float(mixture.monitored()["entropy"]) < 1e-9


def test_all_none_is_a_net_that_sees_nothing() -> None:
    net = cell("-".join(["none"] * 6))
    features = net(torch.rand(3, 2, 16, 16, dtype=torch.float64))
    torch.testing.assert_close(features, features[:1].expand(3, -1))


def test_the_choice_leaves_out_none_and_a_collapse_is_said() -> None:
    net = cell()
    table = torch.zeros(6, 5)
    table[:, OPERATIONS.index("none")] = 9
    table[:4, OPERATIONS.index("skip")] = 2
    table[4:, OPERATIONS.index("conv3")] = 1
    net.mixture.data.copy_(table.flatten())
    assert net.found() == {"genotype": "skip-skip-skip-skip-conv3-conv3", "skips": 4, "collapsed": True}
    assert int(net.monitored()["skips"]) == 4
    table[3, OPERATIONS.index("pool")] = 3
    net.mixture.data.copy_(table.flatten())
    assert net.found() == {"genotype": "skip-skip-skip-pool-conv3-conv3", "skips": 3, "collapsed": False}
    assert derived(torch.tensor([0.0, 1.0] * 6), ["pool", "none"]) == "-".join(["pool"] * 6)
    assert spelled([3, 1, 4, 0, 2, 3]) == GENOTYPE


def test_one_operation_has_nothing_to_weigh() -> None:
    values = small("algo=protonet", "net=cell", "net.operations=[conv3]", "net.hidden=4")
    run = Run(values)
    algorithm = run.algorithm.double()
    meta_gradient(algorithm, double(run.episodes("train").batch(range(2))), plain_engine("loop"))
    assert algorithm.net.mixture.grad is not None
    assert float(algorithm.net.mixture.grad.abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["net.genotype=conv3-skp-none-conv1-conv3-pool"], r"'skp' is no operation; did you mean 'skip'\?"),
        (["net.genotype=conv3-skip"], "has 2 operations, and a cell 6 edges: write one for each"),
        (["net.genotype=outputs/nowhere"], "net.genotype=outputs/nowhere is not possible: there is no run folder"),
        (["net.stages=5"], "net=cell with net.stages=5 needs images of at least 32x32 pixels, these are 16x16"),
        (["net.operations=[conv3,conv5]"], r"net.operations\[1\]=conv5 is not possible: .*did you mean 'conv3'"),
    ],
)
def test_bad_cells_are_refused_in_one_line(words: list[str], line: str) -> None:
    with pytest.raises(UserError, match=line):
        Run(small("net=cell", *words))


@pytest.mark.slow
def test_a_genotype_may_be_a_run_whose_config_then_names_what_it_found(tmp_path: Path) -> None:
    searched = train(small("algo=protonet", "net=cell", "net.hidden=4"), tmp_path / "searched")
    found = searched["found"]["genotype"]
    words = [f"net.genotype={tmp_path}/searched", "net=cell", "net.hidden=4", f"init_from={tmp_path}/searched"]
    summary = train(small("algo=maml", *words), tmp_path / "retrained")
    assert read_config(tmp_path / "retrained")["net"]["genotype"] == found
    assert summary["found"] == {}
    with pytest.raises(UserError, match=r"net.genotype=.* is not possible: that run's net is no mixture of net.operations"):
        Run(small("net=cell", f"net.genotype={tmp_path}/retrained"))
