"""A prior-fitted net: a Transformer, trained on tables from a prior, reads the labelled rows of a table and tells the classes of others.
Hollmann, Müller, Eggensperger, Hutter 2023, "TabPFN", arXiv:2207.01848."""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge
from torch import Tensor, nn

from metarun import inner
from metarun.abilities import LimitedWay
from metarun.algorithm import Algorithm
from metarun.algos.blackbox._columns import Columns, columns_of
from metarun.algos.blackbox._discriminant import Discriminant, discriminant
from metarun.algos.blackbox._logistic import Linear, believed, logistic
from metarun.algos.blackbox.incontext import InContext, Shown
from metarun.nets.base import Net
from metarun.nets.pixels import Pixels
from metarun.problem import Problem, Samples
from metarun.task import Batch, Context

SUREST = 20.0  # the least probability of a class is taken for e^−SUREST


class View(NamedTuple):
    """One way of showing the table."""

    columns: Tensor  # [columns] int64, their order
    shown: Shown


class Known(NamedTuple):
    """What is known of a table."""

    columns: Columns
    regressions: tuple[Linear, ...]  # of columns as they are and bent; none where the Transformer reads alone
    told: tuple[Discriminant, ...]  # of columns that are bent, one or none likewise
    views: tuple[View, ...]


class PFN(LimitedWay, Algorithm):
    """Prior-fitted net: the in-context learner on rows of numbers.

        q(y | x, D) = mean over views of softmax(r Transformer(rows of D with codes of their labels, x)
                                                 + s log p(y | x, D) + t log d(y | x, D))    (equations 1 and 3; p and d: deviation 4)

    Columns are brought to mean 0 and variance 1 over the labelled rows, bent towards a normal distribution by a power each, and brought
    to mean 0 and variance 1 again (``Columns``); what is constant, as padding is, becomes 0, and the rest is enlarged by
    √(columns / those left), so that rows of few columns are as large. The order of columns and which code a class has mean nothing in the
    prior, but something to the net: answers are averaged over ``views``, each with its own, drawn from the episode's key.

    Deviations: (1) Label codes and the layers are those of ``InContext``. (2) The paper enlarges by columns / those left, and its views
    differ by rotations of columns, and every other one is bent. (3) What lies more than 5 deviations from the mean is taken for 5. (4) A
    query comes with what linear classifiers make of it: p, the mean over logistic regressions of six penalties (30 to 0.1) on columns
    that are bent and six on columns that are not, weighted by a learned power of their evidence, 0.1 at first; and d, linear
    discriminant analysis of columns that are bent, whose covariance is drawn towards the identity by a learned number, 10 at first.
    Neither has columns enlarged, and what is below e⁻²⁰ is taken for that. To its token's code of the unknown those of the classes are
    added, times p, and to the logits log p and log d, times learned s and t, 1 and 0 at first; what the Transformer says counts r times,
    learned, 0.01 at first. So it begins where linear classifiers end; in the minutes of two cores it does not find out by itself how to
    separate by a plane. ``linear=false``: as the paper's, r = 1 and neither p nor d.

    Args:
        net, problem: the backbone, which is left aside, and the data's shape.
        views: of validation and test; meta-training has one.
        linear: see deviation 4.
        ways, width, layers, heads, hidden: as of ``InContext``.
    """

    kinds = frozenset({"classification"})
    label_dependent = True

    def __init__(
        self,
        net: Net,
        problem: Problem,
        *,
        views: Annotated[int, Ge(1)],
        ways: Annotated[int, Ge(2)],
        width: Annotated[int, Ge(1)],
        layers: Annotated[int, Ge(1)],
        heads: Annotated[int, Ge(1)],
        hidden: Annotated[int, Ge(1)],
        linear: bool = False,  # as runs were that do not say
    ) -> None:
        super().__init__(Pixels(problem.input_shape), problem)
        self.views, self.most_classes = views, ways
        self.reader = InContext(self.net, problem, ways=ways, width=width, layers=layers, heads=heads, hidden=hidden)
        self.linear = linear
        if linear:
            self.trust, self.surety, self.share = (nn.Parameter(torch.tensor(value)) for value in ((1.0, 0.0), 0.1, 0.01))
            self.log_pull = nn.Parameter(torch.tensor(10.0).log())

    def begin(self, context: Context) -> Known:
        x, y = context.support
        rows = inner.upcast(x.flatten(1))
        columns = columns_of(rows)
        plain, bent = columns.looks(rows)
        views = []
        for i in range(1 if self.training else self.views):
            key = inner.fold_in(context.key, i)
            order = inner.order(inner.fold_in(key, 1), rows.shape[1])
            seen = Batch(columns.size * bent[:, order], y)
            views.append(View(order, self.reader.begin(context._replace(support=seen, key=key))))
        if not self.linear:
            return Known(columns, (), (), tuple(views))
        way = context.classes.shape[0]
        regressions, told = (logistic(plain, y, way), logistic(bent, y, way)), discriminant(bent, y, way, self.log_pull.exp())
        return Known(columns, regressions, (told,), tuple(views))

    def predict(self, state: Known, x: Tensor) -> Samples:
        looks = state.columns.looks(inner.upcast(x.flatten(1)))
        asked = state.columns.size * looks[1]
        if not self.linear:
            return Samples(torch.stack([self.reader.predict(view.shown, asked[:, view.columns]) for view in state.views]))
        [told] = state.told
        belief = believed(state.regressions, looks, self.surety).clamp(min=math.exp(-SUREST)).log()
        start = self.trust[0] * belief + self.trust[1] * told.logits(looks[1]).clamp(min=-SUREST)
        answers = []
        for order, shown in state.views:
            codes = self.reader.unknown + belief.exp() @ shown.codes
            answers.append(self.share * self.reader.answer(shown, asked[:, order], codes) + start)
        return Samples(torch.stack(answers))
