"""VERSA: a net reads a class's examples and answers with a distribution over that class's weights; no inner loop, any number of classes.
Gordon, Bronskill, Bauer, Nowozin, Turner 2019, arXiv:1805.09921."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from annotated_types import Ge
from torch import Tensor, nn

from metarun import inner
from metarun.algorithm import Algorithm, Footprint
from metarun.nets.base import Net
from metarun.problem import Problem, Samples
from metarun.task import Context, Task

LOWEST, HIGHEST = -20.0, 5.0  # of a logarithm of a variance, outside of which exp is no help


class Heads(NamedTuple):
    """Linear heads drawn from the distribution that the support gives."""

    weights: Tensor  # [samples, features + 1, way], the bias last
    support_x: Tensor  # [way * shot, *input_shape], for nets that normalise queries by the support


class VERSA(Algorithm):
    """Versatile and efficient amortisation of few-shot learning (ML-PIP).

        h_c = mean over class c of f(x)
        w_c ~ N(μ_w(h_c), σ_w²(h_c)),   b_c ~ N(μ_b(h_c), σ_b²(h_c))      (section 3; the same nets for every class)
        min  −log of the mean over samples of p(y | x, w, b)               (equation 4)

    The logarithm is that of the mean probability, not a bound, and there is no divergence from a prior.

    Deviations: (1) Whole heads are drawn, the same for all queries, in place of each query's logits (local reparameterisation): the
    same distribution of each, with more variance in the gradient. (2) A net answers with a weight and its bias, where the authors have one
    for each. (3) The code averages log-probabilities when it predicts; here it is the probabilities, as the paper says. (4) No dropout.
    (5) Logarithms of variances begin near ``log_variance`` and are kept within −20..5.

    Args:
        net, problem: the backbone and the data's shape.
        samples, test_samples: heads drawn in meta-training, and in validation and test.
        hidden: width of the two hidden layers of the nets that answer with heads.
        log_variance: of the weights, at the beginning.
    """

    kinds = frozenset({"classification"})
    encodes = True
    label_dependent = True  # which noise a class is given

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        samples: Annotated[int, Ge(1)],
        test_samples: Annotated[int, Ge(1)],
        hidden: Annotated[int, Ge(1)],
        log_variance: float,
    ) -> None:
        super().__init__(net, problem)
        self.samples, self.test_samples = samples, test_samples
        self.mean, self.log_variance = (_amortiser(net.features, hidden, start) for start in (0.0, log_variance))

    def distribution(self, context: Context) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of the classes' weights [way, features + 1]."""
        x, y = context.support
        means = inner.class_means(self.net(x, x), y, context.classes.shape[0])
        return inner.upcast(self.mean(means)), (inner.upcast(self.log_variance(means)).clamp(LOWEST, HIGHEST) / 2).exp()

    def begin(self, context: Context) -> Heads:
        mean, deviation = self.distribution(context)
        noise = inner.normal(context.key, (self.samples if self.training else self.test_samples, *mean.shape)).to(mean)
        return Heads((mean + deviation * noise).transpose(1, 2), context.support.x)

    def predict(self, state: Heads, x: Tensor) -> Samples:
        return Samples(inner.with_ones(inner.upcast(self.net(x, state.support_x))) @ state.weights)

    def footprint(self, task: Task, train: bool) -> Footprint:
        held = super().footprint(task, train)
        answers = self.test_samples * task.query.y.shape[0] * task.context.classes.shape[0]
        return held._replace(bytes=held.bytes + 16 * answers)


def _amortiser(features: int, hidden: int, start: float) -> nn.Sequential:
    """A class's mean feature [way, features] to numbers, near ``start`` at first, for its weights and its bias [way, features + 1]."""
    last = nn.Linear(hidden, features + 1)
    nn.init.constant_(last.bias, start)
    return nn.Sequential(nn.Linear(features, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU(), last)
