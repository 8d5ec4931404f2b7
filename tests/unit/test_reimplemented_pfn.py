"""The prior-fitted net against its description, written out a second time: training loss, its gradient in every parameter, all members."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import in_float64, random, small
from reimplemented import Weights, close, jittered, parameters, same_objective
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun import inner
from metarun.algos.blackbox.pfn import PFN
from metarun.contract.measures import answers
from metarun.task import Context, Task, count, select

F64 = torch.float64
DATA = ["data=tables", "data.units=5", "net=mlp"]
SIZES = ["algo.views=3", "algo.ways=6", "algo.width=8", "algo.heads=2", "algo.layers=2"]


def regression(rows: Tensor, y: Tensor, penalty: float) -> tuple[Tensor, Tensor, Tensor]:
    """The likeliest weights [d + 1, k] of the classes that have rows, those classes, and the log evidence, by Laplace's approximation.

    Weights have a normal prior whose precision is the penalty, biases one of precision .001. The evidence lacks a number that all
    penalties share. Derivatives are autograd's; steps of Newton's method are halved where they do not go down, until the slope is zero.
    """
    classes, target = y.unique(return_inverse=True)
    x = torch.cat([rows, torch.ones(len(rows), 1, dtype=F64)], 1)
    precision = torch.full((x.shape[1], len(classes)), penalty, dtype=F64)
    precision[-1] = 1e-3

    def energy(w: Tensor) -> Tensor:
        """−log p(y, w) of w, one vector."""
        logits = x @ w.view_as(precision)
        fit = torch.gather(logits, 1, target[:, None]).sum() - logits.exp().sum(1).log().sum()
        return -fit + 0.5 * (precision.flatten() * w**2 - precision.flatten().log()).sum()

    w = torch.zeros(precision.numel(), dtype=F64)
    while (slope := torch.func.grad(energy)(w)).abs().max() > 1e-11:
        step = torch.linalg.solve(torch.func.hessian(energy)(w), slope)
        while energy(w - step) > energy(w) + 1e-12:
            step = step / 2
        w = w - step
    return w.view_as(precision), classes, -energy(w) - 0.5 * torch.logdet(torch.func.hessian(energy)(w))


def standard(column: Tensor, asked: Tensor) -> Tensor:
    """Known and asked numbers, less the mean of the known and in parts of their deviation; zeros where they hardly move."""
    mean = column.sum() / len(column)
    deviation = math.sqrt(((column - mean) ** 2).sum() / len(column))
    moves = deviation > 1e-6 * max(map(abs, column.tolist()))
    return (torch.cat([column, asked]) - mean) / deviation if moves else torch.zeros(len(column) + len(asked), dtype=F64)


def bent(x: float, power: float) -> float:
    """A number under the power transform of Yeo and Johnson."""
    if x >= 0:
        return math.log(x + 1) if power == 0 else ((x + 1) ** power - 1) / power
    return -math.log(1 - x) if power == 2 else -((1 - x) ** (2 - power) - 1) / (2 - power)


def likeliest(column: Tensor, known: int) -> Tensor:
    """A standard column after the power that makes its known numbers likeliest as those of a normal distribution; standard again."""
    numbers = column.tolist()
    if not any(numbers):
        return column
    found = []
    for power in (-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4):
        after = torch.tensor([bent(x, power) for x in numbers], dtype=F64)
        normal = torch.distributions.Normal(after[:known].mean(), after[:known].std(correction=0))
        slopes = [math.log(abs(x) + 1) * (power - 1) * (1 if x >= 0 else -1) for x in numbers[:known]]
        found.append((normal.log_prob(after[:known]).sum() + sum(slopes), standard(after[:known], after[known:])))
    return max(found, key=lambda pair: pair[0])[1]


class Reader:
    """A table as the net is shown it."""

    def __init__(self, algorithm: PFN, context: Context, x: Tensor) -> None:
        (rows, self.y), self.key = context.support, context.key
        self.heads, self.way, self.ways = 2, len(context.classes), algorithm.most_classes
        columns = [(plain, likeliest(plain, len(rows))) for plain in map(standard, rows.T, x.T)]
        tables = [torch.stack([look.clamp(-5, 5) for look in looks], 1) for looks in zip(*columns)]
        self.table = tables[1]
        self.size = math.sqrt(len(columns) / sum(bool(plain.any()) for plain, _ in columns))
        self.fits, self.asked = [], []  # regressions, and the queries as each has them
        for table in tables if algorithm.linear else []:
            seen, asked = table.split([len(rows), len(x)])
            self.fits += [regression(seen, self.y, penalty) for penalty in (30, 10, 3, 1, 0.3, 0.1)]
            self.asked += [torch.cat([asked, torch.ones(len(asked), 1, dtype=F64)], 1)] * 6
        self.queries, self.bent = len(x), tables[1]

    def belief(self, w: Weights) -> Tensor:
        """What the regressions make of the queries, [m, way]: a mean weighted by powers of the evidence; a class without rows has none."""
        weights = torch.stack([torch.exp(w["surety"] * (evidence - self.fits[-1][2])) for *_, evidence in self.fits])
        found = torch.zeros(self.queries, self.way, dtype=F64)
        for share, (fit, classes, _), asked in zip(weights / weights.sum(), self.fits, self.asked):
            each = torch.exp(asked @ fit)
            found = found.index_add(1, classes, share * each / each.sum(1, keepdim=True))
        return found.clamp(min=math.exp(-20))

    def told(self, w: Weights) -> Tensor:
        """What normal distributions of one covariance make of the queries, log-probabilities [m, way]."""
        seen, asked = self.bent.split([len(self.y), self.queries])
        pull, classes = torch.exp(w["log_pull"]), self.y.unique()
        means = {int(c): seen[self.y == c].sum(0) / (self.y == c).sum() for c in classes}
        scatter = sum(torch.outer(row - means[c], row - means[c]) for row, c in zip(seen, self.y.tolist()))
        inverse = torch.linalg.inv((scatter + pull * torch.eye(seen.shape[1], dtype=F64)) / (len(seen) + pull))
        heights = []
        for c, mean in means.items():
            distance = torch.einsum("mi,ij,mj->m", asked - mean, inverse, asked - mean)
            heights.append((self.y == c).sum() * torch.exp(-distance / 2))
        found = torch.zeros(self.queries, self.way, dtype=F64).index_add(1, classes, torch.stack(heights, 1))
        return (found / found.sum(1, keepdim=True)).clamp(min=math.exp(-20)).log()

    def member(self, w: Weights, view: int) -> Tensor:
        """Logits [m, way]. All rows are in one table: everybody sees the labelled rows, and itself."""
        key = inner.fold_in(self.key, view)
        codes = simplex(self.ways)[inner.order(key, self.ways)[: self.way]]
        told = w["reader.unknown"].expand(self.queries, -1)
        if self.fits:
            told = told + self.belief(w) @ codes
        numbers = self.size * self.table[:, inner.order(inner.fold_in(key, 1), self.table.shape[1])]
        tokens = linear(w, "reader.embed", torch.cat([numbers, torch.cat([codes[self.y], told])], 1))
        sees = torch.eye(len(tokens), dtype=torch.bool)
        sees[:, : len(self.y)] = True
        for i in range(2):
            tokens = layer(w, f"reader.layers.{i}", tokens, sees, self.heads)
        logits = linear(w, "reader.head", layer_norm(w, "reader.norm", tokens))[len(self.y) :] @ codes.T
        if not self.fits:
            return logits
        return w["share"] * logits + w["trust"][0] * self.belief(w).log() + w["trust"][1] * self.told(w)


def simplex(n: int) -> Tensor:
    """Rows of length 1 whose products are all −1 / (n − 1)."""
    codes = torch.full((n, n), -1 / math.sqrt(n * (n - 1)), dtype=F64)
    return codes.fill_diagonal_(math.sqrt((n - 1) / n))


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[name + ".weight"].T + w[name + ".bias"]


def layer_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(1, keepdim=True) + 1e-5) * w[name + ".weight"] + w[name + ".bias"]


def layer(w: Weights, name: str, tokens: Tensor, sees: Tensor, heads: int) -> Tensor:
    """A layer of a Transformer with norms first, row i of ``sees`` saying where token i looks."""
    normal = layer_norm(w, name + ".before", tokens)
    query, key, value = (linear(w, f"{name}.attention.{part}", normal).unflatten(1, (heads, -1)) for part in ("query", "key", "value"))
    weights = torch.exp(torch.einsum("ihs,jhs->hij", query, key) / math.sqrt(query.shape[2])) * sees
    read = torch.einsum("hij,jhs->ihs", weights / weights.sum(2, keepdim=True), value)
    tokens = tokens + linear(w, name + ".attention.output", read.flatten(1))
    hidden = linear(w, name + ".mlp.0", layer_norm(w, name + ".between", tokens))
    return tokens + linear(w, name + ".mlp.2", hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))))


def tables(words: list[str]) -> tuple[PFN, Task]:
    """Two tables, of which one has a class without labelled rows; a column hardly moves and is constant, another moves just enough."""
    algorithm, tasks = in_float64(small("algo=pfn", *DATA, *SIZES, *words), tasks=20)
    assert isinstance(algorithm, PFN)
    jittered(algorithm)
    torch.testing.assert_close(algorithm.reader.codes, simplex(6), rtol=0, atol=1e-7)
    algorithm.reader.codes.copy_(simplex(6))  # which are made in float32
    classes = [len(y.unique()) for y in tasks.context.support.y]
    chosen = [classes.index(max(classes)), classes.index(max(classes) - 1)]
    tasks = Task(*(tree_map(lambda leaf: leaf[chosen].clone(), part) for part in tasks))
    assert max(classes) == tasks.context.classes.shape[1]
    for place, x in enumerate((tasks.context.support.x, tasks.query.x)):
        x[..., 0] = -3 + 6e-7 * random(*x.shape[:-1], seed=place)
        x[..., 1] = -3 + 6e-5 * (1 + 4 * place) * random(*x.shape[:-1], seed=place)  # some queries lie beyond five deviations
    return algorithm, tasks


@pytest.mark.parametrize("linear", ["true", "false"])
@pytest.mark.parametrize("words", [["data.columns=6", "shot=8"], ["data.columns=16", "way=4", "shot=3"]], ids=["tall", "wide"])
def test_a_table_is_read_as_written(words: list[str], linear: str) -> None:
    algorithm, tasks = tables([*words, f"algo.linear={linear}"])
    each = [select(tasks, i) for i in range(count(tasks))]
    readers = [Reader(algorithm, task.context, task.query.x) for task in each]

    def loss(w: Weights) -> Tensor:
        logits = torch.cat([reader.member(w, 0) for reader in readers])  # tables have as many queries each
        return torch.nn.functional.cross_entropy(logits, torch.cat([task.query.y for task in each]))

    same_objective(algorithm, tasks, loss, idle=[f"reader.layers.{i}.attention.key.bias" for i in range(2)])
    algorithm.eval()
    for reader, task in zip(readers, each):
        with torch.no_grad():
            members = torch.stack([reader.member(parameters(algorithm), view) for view in range(3)])
            close(algorithm.predict(algorithm.begin(task.context), task.query.x).members, members)
        [found] = answers(algorithm, task.context, task.query.x)
        close(found.exp(), members.softmax(2).mean(0))
