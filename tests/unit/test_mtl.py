"""MTL: at the start it is the frozen net, filters stay for ever, and its gradients are those of ANIL gathered per filter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import engine, in_float64, meta_gradient, relative_error, slopes, small

from metarun.algos.gradient.anil import ANIL
from metarun.algos.gradient.mtl import MTL
from metarun.experiment import train
from metarun.storage import checkpoint
from metarun.task import Task

CONV = ["net=conv4", "net.hidden=8", "net.down=stride", "algo.inner_lr=0.25"]
ORIGINAL, SCALE = ".parametrizations.weight.original", ".parametrizations.weight.0.scale"


def both(*words: str) -> tuple[MTL, ANIL, Task]:
    """MTL and ANIL with the same net and head, and tasks."""
    (mtl, tasks), (anil, _) = (in_float64(small(f"algo={algo}", *CONV, *words), tasks=2) for algo in ("mtl", "anil"))
    assert all(torch.equal(a, b) for a, b in zip(mtl.head.parameters(), anil.head.parameters()))
    return mtl, anil, tasks


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_with_scales_of_one_and_shifts_of_zero_it_is_the_frozen_net(norm: str) -> None:
    mtl, anil, tasks = both(f"net.norm={norm}")
    x = tasks.query.x[0]
    assert torch.equal(mtl.net(x), anil.net(x))
    assert all((weight == 1).all() for name, weight in mtl.named_parameters() if name.endswith(".scale"))


def test_a_scale_is_that_of_a_filter_all_over_its_window() -> None:
    mtl, _, tasks = both()
    conv, x = mtl.net.blocks[0].conv, tasks.query.x[0]
    before = conv(x)
    scale = conv.parametrizations.weight[0].scale
    assert scale.shape == (8, 2, 1, 1)
    with torch.no_grad():
        scale[3] *= 2
    after = conv(x)
    torch.testing.assert_close(after[:, 3], 2 * before[:, 3])
    assert torch.equal(after[:, :3], before[:, :3])


@pytest.mark.parametrize("first_order", ["false", "true"])
def test_its_gradients_are_those_of_anil_and_a_scale_has_its_filters_sum(first_order: str) -> None:
    mtl, anil, tasks = both(f"algo.first_order={first_order}")
    meta_gradient(mtl, tasks, engine()), meta_gradient(anil, tasks, engine())
    theirs = dict(anil.named_parameters())
    for name, weight in mtl.named_parameters():
        if name.endswith(ORIGINAL):
            assert weight.grad is None
        elif name.endswith(SCALE):
            filters = theirs[name.removesuffix(SCALE) + ".weight"]
            assert relative_error(weight.grad, (filters.detach() * filters.grad).sum((2, 3), keepdim=True)) < 1e-9
        else:
            torch.testing.assert_close(weight.grad, theirs[name].grad, rtol=1e-9, atol=1e-14)


def test_training_moves_scales_shifts_and_head_and_no_filter(tmp_path: Path) -> None:
    train(small("algo=mtl", *CONV, "trainer.val_every=6", "optim.weight_decay=0.1"), tmp_path)
    trained = checkpoint.load(tmp_path / "checkpoints" / "last.pt")["algorithm"]
    fresh, _ = in_float64(small("algo=mtl", *CONV))
    for name, weight in fresh.state_dict().items():
        assert torch.equal(trained[name].double(), weight) == name.endswith(ORIGINAL), name


def test_the_meta_gradient_agrees_with_finite_differences() -> None:
    mtl, tasks = in_float64(small("algo=mtl", "net=mlp", "net.activation=tanh", "net.sizes=[8]"))
    assert sum(not weight.requires_grad for weight in mtl.parameters()) == 1
    by_gradient, by_differences = slopes(mtl, tasks)
    assert by_gradient == pytest.approx(by_differences, rel=1e-5)
