"""DARTS: the closed form of a quadratic toy, finite differences of its own rule, limiting cases, and a search from end to end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import double, meta_gradient, metrics_of, relative_error, small
from helpers import engine as plain_engine
from torch import Tensor, nn

from metarun.adaptation import adapt
from metarun.algorithm import Algorithm, Metrics
from metarun.algos.search.darts import Darts
from metarun.errors import UserError
from metarun.experiment import train
from metarun.nets.base import Net
from metarun.problem import Classification, EpisodeSpec, Problem
from metarun.run import Run
from metarun.task import Batch, Context, Task, select

C = torch.tensor([[1.0, -0.5], [0.3, 2.0], [-1.2, 0.7]], dtype=torch.float64)


class Line(Net):
    """Weights w [3] and an architecture α [2]."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.norm, self.architecture = 3, "none", "alpha"
        self.w = nn.Parameter(torch.tensor([0.4, -1.0, 0.8], dtype=torch.float64))
        self.alpha = nn.Parameter(torch.tensor([0.6, -0.2], dtype=torch.float64))

    def layers(self, x: Tensor, n_support: int | None) -> Tensor:
        return x


class Quadratic(Algorithm):
    """L(w, α; m) = ½ ‖w − m‖² + wᵀ C α, m being the mean of the queries."""

    net: Line

    def begin(self, context: Context) -> Any:
        return ()

    def predict(self, state: Any, x: Tensor) -> Tensor:
        return x

    def objective(self, states: Sequence[Any], task: Task, progress: float) -> tuple[Tensor, Metrics]:
        w, m = self.net.w, task.query.x.mean(0)
        loss = 0.5 * (w - m).square().sum() + w @ C @ self.net.alpha
        return loss, {"loss": loss}


@pytest.mark.parametrize("how", ["loop", "vmap"])
@pytest.mark.parametrize("step", [0.0, 0.3, 1.0])
def test_the_quadratic_toy_is_its_closed_form(how: str, step: float) -> None:
    """w' = w − ξ (w − a + Cα);  ∂α = Cᵀ w' − ξ Cᵀ (w' − b + Cα), the second term being what the second order adds."""
    spec = EpisodeSpec(way=1, shot=1, query=4)
    problem = Problem(Classification(), (3,), 1, 1, spec, spec)
    darts = Darts(Line(), problem, learner=Quadratic, virtual_lr=step, rate=0.1, decay=0.0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    nothing = torch.zeros(2, 1, dtype=torch.int64)
    context = Context(Batch(torch.zeros(2, 1, 3, dtype=torch.float64), nothing), nothing, nothing[:, 0], {})
    meta_gradient(darts, Task(context, Batch(x, nothing.expand(2, 4))), plain_engine(how))
    w, alpha = darts.net.w.detach(), darts.net.alpha.detach()
    of_w, of_alpha = [], []
    for a, b in zip(x[:, 0::2].mean(1), x[:, 1::2].mean(1)):
        ahead = w - step * (w - a + C @ alpha)
        of_w.append(w - a + C @ alpha)
        of_alpha.append(C.T @ ahead - step * C.T @ (ahead - b + C @ alpha))
    torch.testing.assert_close(darts.net.w.grad, torch.stack(of_w).mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(darts.net.alpha.grad, torch.stack(of_alpha).mean(0), rtol=1e-12, atol=1e-12)


def built(*words: str, **settings: Any) -> tuple[Darts, Task]:
    values = small("algo=darts", "net.hidden=4", "net.norm=layer", "way=2", "query=2", "net.down=stride", *words)
    values["algo"] |= settings
    run = Run(values)
    algorithm = run.algorithm.double()
    assert isinstance(algorithm, Darts)
    torch.manual_seed(1)
    nn.init.normal_(algorithm.mixture)
    return algorithm, double(run.episodes("train").batch([0]))


def learned(algorithm: Darts, task: Task, half: int) -> Tensor:
    """The learner's own objective, on one half of the queries."""
    task = task._replace(query=Batch(task.query.x[half::2], task.query.y[half::2]))
    learner = algorithm.learner
    return learner.objective(list(adapt(learner, task.context, learner.steps(task.context, True))), task, 0.0)[0]


LEARNERS = {"protonet": [], "maml": ["algo@algo.learner=maml"]}


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("step", [0.0, 0.1])
def test_both_players_have_the_gradients_of_their_own_losses(learner: str, step: float) -> None:
    """Of w by autograd, of α by finite differences of what the rule says: L_b at the weights after one step on L_a."""
    algorithm, tasks = built(*LEARNERS[learner], virtual_lr=step)
    meta_gradient(algorithm, tasks, plain_engine("vmap"))
    found = {name: p.grad.clone() for name, p in algorithm.named_parameters()}  # type: ignore[union-attr]
    one = select(tasks, 0)
    weights = {name: p for name, p in algorithm.named_parameters() if p is not algorithm.mixture}
    slopes = torch.autograd.grad(learned(algorithm, one, 0), list(weights.values()), allow_unused=True)
    for name, slope in zip(weights, slopes):
        torch.testing.assert_close(found[name], torch.zeros_like(found[name]) if slope is None else slope, rtol=1e-8, atol=1e-10)
    start = {name: w.detach().clone() for name, w in weights.items()}

    def after_a_step() -> float:
        slopes = torch.autograd.grad(learned(algorithm, one, 0), list(weights.values()), allow_unused=True)
        with torch.no_grad():
            for w, slope in zip(weights.values(), slopes):
                w.sub_(step * (0 if slope is None else slope))
        value = float(learned(algorithm, one, 1).detach())
        with torch.no_grad():
            for name, w in weights.items():
                w.copy_(start[name])
        return value

    direction = torch.randn(algorithm.mixture.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    direction /= direction.norm()
    size, values = 1e-7, []  # as small as in the contract: a large one crosses kinks of ReLU
    for stride in (size, -2 * size):
        algorithm.mixture.data.add_(direction, alpha=stride)
        values.append(after_a_step())
    expected = (values[0] - values[1]) / (2 * size)
    assert float(found["net.mixture"] @ direction) == pytest.approx(expected, rel=1e-4)
    assert abs(expected) > 1e-4


def test_the_second_order_comes_to_the_first_as_the_step_ahead_vanishes() -> None:
    gradients = []
    for step in (0.0, 1e-9, 0.1):
        algorithm, tasks = built(virtual_lr=step)
        gradients.append(meta_gradient(algorithm, tasks, plain_engine("loop")))
    assert relative_error(gradients[1], gradients[0]) < 1e-5
    assert relative_error(gradients[2], gradients[0]) > 1e-3


def test_the_architecture_has_a_rate_of_its_own() -> None:
    algorithm, _ = built(rate=0.02, decay=0.5)
    *others, last = algorithm.groups()
    assert last == {"params": [algorithm.mixture], "lr": 0.02, "betas": (0.5, 0.999), "weight_decay": 0.5}
    assert not any(p is algorithm.mixture for group in others for p in group["params"])
    assert sum(len(group["params"]) for group in algorithm.groups()) == len(list(algorithm.parameters()))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["net=conv4"], "algo=darts chooses between the alternatives of a net, and this one has none: use net=cell with net.genotype=null"),
        (["net=cell", "net.genotype=skip-skip-skip-conv3-conv3-conv3"], "this one has none: use net=cell"),
        (["algo@algo.learner=hyperparameters"], "algo.learner=Hyperparameters does not train the weights of the net"),
        (["algo@algo.learner=lstm_optimizer"], "algo.learner=LSTMOptimizer is not possible: take a method that meta-learns from episodes"),
    ],
)
def test_what_cannot_be_searched_is_refused(words: list[str], line: str) -> None:
    with pytest.raises(UserError, match=line):
        Run(small("algo=darts", *words))


@pytest.mark.slow
def test_a_search_from_end_to_end(tmp_path: Path) -> None:
    """What was found is in the summary, its course in the log, and another method trains it, better than guessing by far."""
    words = ["net.hidden=8", "net.down=stride", "query=4", "trainer.val_every=60", "optim.lr=0.01"]
    summary = train(small("algo=darts", *words, "trainer.iterations=20"), tmp_path / "searched")
    names = summary["found"]["genotype"].split("-")
    assert (len(names), names.count("skip"), "none" in names) == (6, summary["found"]["skips"], False)
    told = [line for line in metrics_of(tmp_path / "searched") if line["split"] == "train"]
    assert 0 < told[-1]["entropy"] < told[0]["entropy"] < math.log(3)
    assert 0 <= told[-1]["skips"] <= 6
    words = [*words, "trainer.iterations=60", "net=cell", f"net.genotype={tmp_path}/searched"]
    retrained = train(small("algo=protonet", *words), tmp_path / "retrained")
    assert retrained["test"]["accuracy"]["mean"] > 1 / 3 + 0.2
