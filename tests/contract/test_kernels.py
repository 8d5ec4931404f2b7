"""``engine.kernels=torch`` runs everything in plain operations of torch, without Numba and Triton, to the same numbers: 1e-10 in float64,
1e-5 in float32. Every algorithm on a small Conv-4, every net and norm with MAML, the nets' blocks alone."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from helpers import (
    LEARNERS,
    NETS_WITH_NORMS,
    PROBLEMS,
    Builder,
    by_family,
    classification,
    engine,
    in_float64,
    meta_gradient,
    relative_error,
    small,
)
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp

from metarun import inner
from metarun.algorithm import Algorithm
from metarun.inner import Mode
from metarun.kernels import select
from metarun.nets.conv4 import Block
from metarun.nets.norm import NormKind
from metarun.nets.resnet12 import ResidualBlock
from metarun.protocols.episodes import EVERY
from metarun.run import Run
from metarun.task import Task

CHOICES = get_args(select.Choice)
FIRST_AND_SECOND = pytest.mark.parametrize("mode", get_args(Mode))


def tiny(problem: Builder, algo: str) -> dict[str, Any]:
    """A run whose convolutions behind the first are wide enough for the direct kernels, on as few examples as there may be."""
    return problem(algo, "way=2", "query=1", "net.hidden=16") if problem is classification else problem(algo, "query=1")


def check_meta_gradient(values: dict[str, Any]) -> None:
    """In float64 to 1e-10; in fp32 to 1e-5, or to twice what rounding alone makes of plain operations, where that is more.

    Of the first seeds it takes one at which rounding says something: a value beside ReLU's kink lies on one processor's other side of it.
    """
    for seed in range(3):
        values = values | {"seed": seed}
        run = Run(values)
        exact = compare(*in_float64(values, tasks=2), 1e-10)
        algorithm, tasks = run.algorithm, run.episodes("train").batch(range(2))
        rounding = relative_error(meta_gradient(algorithm, tasks, engine(kernels="torch")), exact)
        if rounding < 1e-4:
            break
    assert rounding < 1e-4
    compare(algorithm, tasks, max(1e-5, 2 * rounding))


def compare(algorithm: Algorithm, tasks: Task, error: float) -> Tensor:
    fast, plain = (meta_gradient(algorithm, tasks, engine(kernels=choice)) for choice in CHOICES)
    assert fast.norm() > 0
    assert relative_error(plain, fast) < error
    return plain


def check_evaluation(values: dict[str, Any]) -> None:
    """In float64: after some steps in fp32 a value beside ReLU's kink may lie on either side of it."""
    algorithm, tasks = in_float64(values, tasks=2)
    fast, plain = (engine(kernels=choice).evaluate(algorithm.eval(), tasks, EVERY)["loss"] for choice in CHOICES)
    torch.testing.assert_close(plain, fast, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("algo", "problem"), by_family(LEARNERS))
def test_a_methods_meta_gradient_is_the_same(algo: str, problem: Builder) -> None:
    check_meta_gradient(tiny(problem, algo))


@pytest.mark.parametrize(("algo", "problem"), by_family(PROBLEMS))
def test_a_methods_evaluation_is_the_same(algo: str, problem: Builder) -> None:
    check_evaluation(tiny(problem, algo))


@pytest.mark.parametrize(("net", "norm"), NETS_WITH_NORMS)
def test_with_every_net_and_norm_it_is_the_same(net: str, norm: str) -> None:
    words = [f"net={net}", f"net.norm={norm}"]
    check_meta_gradient(small("algo=protonet", *words))
    through_steps = small("algo=maml", *words)
    compare(*in_float64(through_steps, tasks=2), 1e-10)  # a deep net and steps make more of fp32's rounding than 1e-5, by either choice
    check_evaluation(through_steps)


@FIRST_AND_SECOND
@pytest.mark.parametrize("down", ["net.down=pool", "net.down=stride"])
def test_derivatives_of_first_and_second_order_are_the_same(down: str, mode: str) -> None:
    check_meta_gradient(small("algo=maml", "query=5", "net.hidden=16", down, f"algo.mode={mode}"))


@pytest.mark.parametrize("layer", select.LAYERS)
def test_without_a_layer_it_is_the_same(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(small("algo=maml", "net.hidden=16"))
    tasks = run.episodes("train").batch(range(2))
    everything = meta_gradient(run.algorithm, tasks, engine())
    monkeypatch.setattr(select, "WITHOUT", select.switched_off(layer))
    assert not select.has(layer)
    without = meta_gradient(run.algorithm, tasks, engine())
    assert not torch.equal(without, everything), "rounding at least differs where other operations are used"
    assert relative_error(without, everything) < 1e-5


def test_a_layer_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"METARUN_WITHOUT=loop,direct: the layers are loops, direct,"):
        select.switched_off("loop,direct")


@pytest.mark.parametrize("norm", get_args(NormKind))
@pytest.mark.parametrize(
    "block",
    [partial(Block, 2, 16, "pool"), partial(Block, 16, 16, "pool"), partial(Block, 16, 16, "stride"), partial(ResidualBlock, 2, 16)],
    ids=["first, pool", "pool", "stride", "residual"],
)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
def test_a_block_and_its_derivatives_are_the_same(block: Callable[..., nn.Module], norm: str, dtype: torch.dtype, error: float) -> None:
    """For three tasks with weights of their own: the output, a loss's gradient, and the gradient of a step of descent in it."""
    torch.manual_seed(0)
    module = block(norm).to(dtype)
    channels = module.get_parameter("conv.weight" if isinstance(module, Block) else "convs.0.weight").shape[1]
    weights = {name: torch.stack([w + 0.1 * torch.randn_like(w) for _ in range(3)]) for name, w in module.named_parameters()}
    x = torch.randn(3, 5, channels, 6, 7, dtype=dtype)

    def outcome(weights: dict[str, Tensor], x: Tensor) -> Any:
        def loss(weights: dict[str, Tensor]) -> Tensor:
            return functional_call(module, weights, (x, 4)).square().mean()

        def after_a_step(weights: dict[str, Tensor]) -> Tensor:
            slope = grad(loss)(weights)
            return loss({name: w - 0.1 * slope[name] for name, w in weights.items()})

        forward = jvp(grad(loss), (weights,), (weights,))[1]
        return functional_call(module, weights, (x, 4)), grad(loss)(weights), grad(after_a_step)(weights), forward

    found = []
    for choice in CHOICES:
        with select.using(choice):
            found.append(torch.vmap(outcome)(weights, x))
    for fast, plain in zip(*map(torch.utils._pytree.tree_leaves, found), strict=True):
        assert float((fast - plain).detach().norm()) <= error * max(float(fast.detach().norm()), 1e-2)


def test_the_way_back_keeps_to_the_choice_in_whatever_thread_it_is() -> None:
    """As on a GPU, where autograd has threads of its own; mode ``mixed`` runs the net again there."""
    asked: list[bool] = []

    def loss(w: Tensor, x: Tensor) -> Tensor:
        asked.append(select.has("loops"))
        return (w * x).square().sum()

    w = torch.ones(3, requires_grad=True)
    with select.using("torch"):
        outcome = inner.gradient(loss, w, torch.ones(3), mode="mixed").square().sum()
    there = len(asked)
    elsewhere = threading.Thread(target=outcome.backward)
    elsewhere.start()
    elsewhere.join()
    assert w.grad is not None
    assert len(asked) > there
    assert not any(asked)


PROGRAM = """
import sys
from pathlib import Path
import torch
import metarun
from metarun import experiment
from metarun.config.compose import compose, resolve

def compilers():
    return {name.partition(".")[0] for name in sys.modules} & {"numba", "llvmlite", "triton"}

choice, folder = sys.argv[1], Path(sys.argv[2])
words = '''
algo=protonet way=3 query=2 device=cpu net.hidden=16 net.norm=running logger=quiet data.train_classes=6 data.val_classes=4
data.test_classes=4 data.size=16
trainer.iterations=2 trainer.meta_batch=2 trainer.val_every=2 trainer.val_episodes=4 trainer.test_episodes=4
'''
values = resolve(compose([*words.split(), f"engine.kernels={choice}"]))
assert not compilers(), "before anything is computed"
experiment.train(values, folder)
if choice == "torch":
    experiment.evaluate(values, folder, "best", folder / "eval")
    model = metarun.load(folder)
    model.adapt(torch.rand(6, 1, 16, 16), [0, 1, 2, 0, 1, 2]).predict(torch.rand(2, 1, 16, 16))
print(*sorted(compilers()))
"""


@pytest.mark.parametrize(("choice", "expected"), [("torch", []), pytest.param("auto", ["llvmlite", "numba"], marks=pytest.mark.slow)])
def test_compilers_are_imported_when_they_are_chosen_and_needed_and_not_before(choice: str, expected: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, choice, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == expected
