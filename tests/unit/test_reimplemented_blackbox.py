"""Black-box learners against second implementations, item by item: meta-training loss, its gradient in every parameter, answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers import engine, in_float64, random, small
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun import inner
from metarun.algorithm import Algorithm
from metarun.algos.blackbox.incontext import InContext
from metarun.contract.measures import answers
from metarun.task import Batch, Context, Task, count, select

F64 = torch.float64
Weights = dict[str, Tensor]  # by their names in the algorithm


def disturbed(values: dict[str, Any], tasks: int) -> tuple[Algorithm, Task]:
    """An algorithm none of whose parameters is zero or equal to another one, and its first training tasks."""
    algorithm, found = in_float64(values, tasks)
    for i, parameter in enumerate(algorithm.parameters()):
        parameter.data.add_(0.2 * random(*parameter.shape, seed=i))
    return algorithm, found


def held(algorithm: Algorithm) -> Weights:
    return {name: p.detach().clone().requires_grad_(p.requires_grad) for name, p in algorithm.named_parameters()}


def compare_training(algorithm: Algorithm, tasks: Task, loss: Callable[[Weights, Task], Tensor], metric: str = "loss") -> None:
    """The mean loss of tasks, and for every parameter the meta-gradient, to nine digits."""
    weights = held(algorithm)
    total = torch.stack([loss(weights, select(tasks, i)) for i in range(count(tasks))]).mean()
    learned = {name: weight for name, weight in weights.items() if weight.requires_grad}
    expected = dict(zip(learned, torch.autograd.grad(total, list(learned.values()), materialize_grads=True)))
    size = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    algorithm.zero_grad(set_to_none=True)
    assert engine().meta_gradient(algorithm, tasks, 0.0)[metric] == pytest.approx(float(total.detach()), rel=1e-9)
    for name, parameter in algorithm.named_parameters():
        if name in learned:
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert (found - expected[name]).norm() <= 1e-9 * expected[name].norm() + 1e-14 * size, name
    assert sum(bool(gradient.norm() > 1e-9 * size) for gradient in expected.values()) > len(expected) / 2


def compare_answers(algorithm: Algorithm, tasks: Task, expected: Callable[[Weights, Context, Tensor], Tensor | tuple[Tensor, ...]]) -> None:
    for i in range(count(tasks)):
        context, query, *_ = select(tasks, i)
        with torch.no_grad():
            wanted = expected(held(algorithm), context, query.x)
        for mine, theirs in zip(answers(algorithm, context, query.x), (wanted,) if isinstance(wanted, Tensor) else wanted):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[name + ".weight"].T + w[name + ".bias"]


def perceptron(w: Weights, name: str, x: Tensor, layers: int) -> Tensor:
    """``layers`` linear maps with a ReLU between them, each followed by one in the numbering of its parts."""
    for i in range(layers):
        x = linear(w, f"{name}.{2 * i}", x.clamp(min=0) if i else x)
    return x


def features(w: Weights, x: Tensor) -> Tensor:
    """net=mlp of one hidden layer, tanh."""
    return linear(w, "net.linears.0", x.flatten(1)).tanh()


NET = ["query=1", "net=mlp", "net.sizes=[5]", "net.activation=tanh", "net.norm=none"]


def softmax(scores: Tensor) -> Tensor:
    e = (scores - scores.max()).exp()
    return e / e.sum()


def attended(w: Weights, name: str, query: Tensor, items: Tensor, values: Tensor, heads: int) -> Tensor:
    """What a query [inputs] reads of items [m, inputs] with these values, head by head; zeros where there are none."""
    q, k, v = linear(w, name + ".query", query), linear(w, name + ".key", items), linear(w, name + ".value", values)
    size, read, parts = len(q) // heads, v.shape[1] // heads, []
    for h in range(heads):
        mine = slice(h * size, (h + 1) * size)
        weights = softmax(k[:, mine] @ q[mine] / math.sqrt(size)) if len(items) else torch.zeros(0, dtype=F64)
        parts.append(weights @ v[:, h * read : (h + 1) * read])
    return torch.cat(parts)


def layer_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[name + ".weight"] + w[name + ".bias"]


def transformer(w: Weights, layer: str, tokens: Tensor, seen: Callable[[int], Sequence[int]], heads: int) -> Tensor:
    """A layer with norms first, token by token; ``seen`` says at which places the token of a place looks."""
    normal, made = layer_norm(w, layer + ".before", tokens), []
    for place, token in enumerate(tokens):
        items = normal[list(seen(place))]
        token = token + linear(w, layer + ".attention.output", attended(w, layer + ".attention", normal[place], items, items, heads))
        hidden = linear(w, layer + ".mlp.0", layer_norm(w, layer + ".between", token))
        made.append(token + linear(w, layer + ".mlp.2", 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))))
    return torch.stack(made)


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return -torch.stack([softmax(row)[label].log() for row, label in zip(logits, y.tolist())]).mean()


def one_hot(y: Tensor, n: int) -> Tensor:
    return torch.eye(n, dtype=F64)[y]


def density(mean: Tensor, deviation: Tensor, y: Tensor) -> Tensor:
    return -((y - mean) ** 2) / (2 * deviation**2) - deviation.log() - 0.5 * math.log(2 * math.pi)


def snail(w: Weights, context: Context, x: Tensor, labelled: bool) -> Tensor:
    """Att, TC, Att, TC, Att and a linear layer over [examples in the order of reading, the query with zeros] (handbook 5.3)."""
    order = inner.order(context.key, len(context.support.y))
    y = context.support.y[order]
    told = one_hot(y, 3) if labelled else y
    read = torch.cat([features(w, context.support.x)[order], told], 1)
    made = []
    for asked in features(w, x):
        items = torch.cat([read, torch.cat([asked, torch.zeros(told.shape[1], dtype=F64)])[None]])
        layer = 0
        for block in ("attention", "convolutions", "attention", "convolutions", "attention"):
            for dilation in (1, 2) if block == "convolutions" else (0,):
                rows = []
                for t, item in enumerate(items):
                    if block == "attention":
                        new = attended(w, f"layers.{layer}.attention", item, items[: t + 1], items[: t + 1], 1)
                    else:
                        earlier = items[t - dilation] if t >= dilation else torch.zeros_like(item)
                        a = linear(w, f"layers.{layer}.both", torch.cat([earlier, item]))
                        new = a[:3].tanh() / (1 + (-a[3:]).exp())
                    rows.append(torch.cat([item, new]))
                items, layer = torch.stack(rows), layer + 1
        made.append(linear(w, "head", items[-1]))
    return torch.stack(made)


SIZES = ["algo.length=4", "algo.filters=3", "algo.keys=[2,3,4]", "algo.values=[3,2,4]"]


@pytest.mark.parametrize("labelled", [True, False])
def test_snail(labelled: bool) -> None:
    other = [] if labelled else ["data=sinusoid", "way=1", "shot=5", "query=5"]
    algorithm, tasks = disturbed(small("algo=snail", *NET, *SIZES, *other), tasks=1)

    def loss(w: Weights, task: Task) -> Tensor:
        answer = snail(w, task.context, task.query.x, labelled)
        return cross_entropy(answer, task.query.y) if labelled else ((answer - task.query.y) ** 2).mean()

    compare_training(algorithm, tasks, loss)
    compare_answers(algorithm, tasks, lambda w, context, x: snail(w, context, x, labelled))


def metanet(w: Weights, context: Context, x: Tensor) -> Tensor:
    """Equations 1 to 8 of the paper, example by example; the gradients are inputs, by autograd of constants (handbook 5.4)."""
    f, y, way = features(w, context.support.x), context.support.y, 3

    def slopes(i: int, first: str, second: str) -> tuple[Tensor, Tensor]:
        """∇ of example i's cross-entropy by [W, b] of two layers with a ReLU between them."""
        layers = [torch.cat([w[n + ".weight"], w[n + ".bias"][:, None]], 1).detach().requires_grad_() for n in (first, second)]
        with torch.enable_grad():
            hidden = (layers[0] @ ones(f[i].detach())).clamp(min=0)
            loss = cross_entropy((layers[1] @ ones(hidden))[None], y[i : i + 1])
            of_first, of_second = torch.autograd.grad(loss, layers)
        return of_first, of_second

    def ones(a: Tensor) -> Tensor:
        return torch.cat([a, torch.ones(1, dtype=F64)])

    def preprocessed(g: Tensor) -> Tensor:
        """Of Andrychowicz et al. 2016, appendix A, p = 10."""
        small = g.abs() < math.exp(-10)
        logarithm = torch.where(small, -1.0, g.abs().clamp(min=math.exp(-10)).log() / 10)
        return torch.stack([logarithm, torch.where(small, math.exp(10) * g, g.sign())], -1)

    output = cell = torch.zeros(6, 6, 4, dtype=F64)  # embedding 6, features 5 and a bias, units 4
    for i in inner.order(context.key, len(y)).tolist():
        g = preprocessed(slopes(i, "embed", "tell")[0])
        read, forget, write, new = linear(w, "reader.gates", torch.cat([g, output], -1)).split(4, -1)
        cell = cell / (1 + (-forget).exp()) + new.tanh() / (1 + (-read).exp())
        output = cell.tanh() / (1 + (-write).exp())
    fast_embedder = linear(w, "write_embedder", output)[..., 0]
    fast = [[perceptron(w, "writer", preprocessed(g), 3)[..., 0] for g in slopes(i, "base", "answer")] for i in range(len(y))]

    def index(a: Tensor) -> Tensor:
        return linear(w, "embed", a).clamp(min=0) + (fast_embedder @ ones(a)).clamp(min=0)

    made = []
    for asked in features(w, x):
        r = index(asked)
        cosines = [r @ index(a) / ((r @ r).sqrt() * (index(a) @ index(a)).sqrt()) for a in f]
        attention = softmax(torch.stack(cosines))
        own = [sum(a * layers[j] for a, layers in zip(attention, fast)) for j in (0, 1)]
        hidden = linear(w, "base", asked).clamp(min=0) + (own[0] @ ones(asked)).clamp(min=0)
        made.append(linear(w, "answer", hidden) + own[1] @ ones(hidden))
    assert made[0].shape == (way,)
    return torch.stack(made)


def test_metanet() -> None:
    words = ["algo.units=4", "algo.hidden=7", "algo.embedding=6"]
    algorithm, tasks = disturbed(small("algo=metanet", *NET, *words), tasks=2)
    compare_training(algorithm, tasks, lambda w, task: cross_entropy(metanet(w, task.context, task.query.x), task.query.y))
    compare_answers(algorithm, tasks, metanet)


def test_in_context_learner() -> None:
    """Support tokens look at the support, a query's at the support and itself; logits are products with the classes' ELMES codes."""
    words = ["shot=1", "algo.ways=5", "algo.width=8", "algo.layers=2", "algo.heads=2"]
    algorithm, tasks = disturbed(small("algo=incontext", *NET, *words), tasks=2)
    codes = torch.eye(5, dtype=F64) * math.sqrt(5 / 4) - math.sqrt(5 / 4) / 5
    assert isinstance(algorithm, InContext)
    torch.testing.assert_close(algorithm.codes, codes, rtol=0, atol=1e-7)
    algorithm.codes.copy_(codes)  # which are made in float32

    def logits(w: Weights, context: Context, x: Tensor) -> Tensor:
        drawn = codes[inner.order(context.key, 5)[:3]]
        support = torch.cat([features(w, context.support.x), drawn[context.support.y]], 1)
        n, made = len(support), []
        for asked in features(w, x):
            tokens = linear(w, "embed", torch.cat([support, torch.cat([asked, w["unknown"]])[None]]))
            for layer in range(2):
                tokens = transformer(w, f"layers.{layer}", tokens, lambda place: [*range(n), *([n] if place == n else [])], 2)
            made.append(drawn @ linear(w, "head", layer_norm(w, "norm", tokens[n])))
        return torch.stack(made)

    compare_training(algorithm, tasks, lambda w, task: cross_entropy(logits(w, task.context, task.query.x), task.query.y))
    compare_answers(algorithm, tasks, logits)


def process(*words: str) -> tuple[Algorithm, Task]:
    """A neural process, of functions of which some number of points is seen, in one task none, in one all."""
    algorithm, tasks = disturbed(small("data=gp", "data.fewest=0", *NET, "way=1", "shot=4", "query=3", *words), tasks=40)
    seen = tasks.context.extras["seen"].sum(1).tolist()
    chosen = [seen.index(0), seen.index(2), seen.index(4)]
    return algorithm, Task(*(tree_map(lambda leaf: leaf[chosen], part) for part in tasks))


def seen_of(context: Context) -> Batch:
    x, y = context.support
    return Batch(x[context.extras["seen"]], y[context.extras["seen"]])


def gaussian(numbers: Tensor) -> tuple[Tensor, Tensor]:
    """μ and σ = .1 + .9 softplus(s) of [n, 2] (handbook 5.5)."""
    return numbers[:, :1], 0.1 + 0.9 * numbers[:, 1:].exp().log1p()


def compare_process(algorithm: Algorithm, tasks: Task, numbers: Callable[[Weights, Context, Tensor], Tensor]) -> None:
    """−log density of the queries, and the means and variances, for the numbers [n, 2] that a process makes of queries."""

    def loss(w: Weights, task: Task) -> Tensor:
        return -density(*gaussian(numbers(w, task.context, task.query.x)), task.query.y).mean()

    def moments(w: Weights, context: Context, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, deviation = gaussian(numbers(w, context, x))
        return mean, deviation**2

    compare_training(algorithm, tasks, loss)
    compare_answers(algorithm, tasks, moments)


def joined(w: Weights, name: str, x: Tensor, told: Tensor, modulate: bool) -> Tensor:
    """The first layer of an encoder or a decoder, on one x and what is told of it."""
    if not modulate:
        return linear(w, name + ".linear", torch.cat([x, told]))
    gamma, beta = linear(w, name + ".film", told).split(6)
    return (1 + gamma) * linear(w, name + ".linear", x) + beta


@pytest.mark.parametrize("modulate", [False, True])
@pytest.mark.parametrize("pool", ["mean", "sum"])
def test_conditional_neural_process(modulate: bool, pool: str) -> None:
    """r = mean h(x_i, y_i), zeros where nothing is seen; (μ, s) = g(x, r) (handbook 5.5); or the sum, by the root of shot = 4."""
    words = ["algo=cnp", "algo.width=6", "algo.encoder=2", "algo.decoder=3", f"algo.modulate={modulate}", f"algo.pool={pool}"]

    def numbers(w: Weights, context: Context, x: Tensor) -> Tensor:
        seen, r = seen_of(context), torch.zeros(6, dtype=F64)
        for f, y in zip(features(w, seen.x), seen.y):
            code = perceptron(w, "encoder.1", joined(w, "joined", f, y, modulate).clamp(min=0), 1)
            r = r + code / (len(seen.y) if pool == "mean" else 2)
        return torch.stack([perceptron(w, "decoder.1", joined(w, "asked", f, r, modulate).clamp(min=0), 2) for f in features(w, x)])

    compare_process(*process(*words), numbers)


def test_conditional_neural_process_that_classifies() -> None:
    """The codes of each class are averaged, the means of all classes side by side are r (handbook 5.5)."""
    words = ["algo.width=6", "algo.encoder=2", "algo.decoder=3", "algo.modulate=false"]
    algorithm, tasks = disturbed(small("algo=cnp", *NET, *words), tasks=2)

    def logits(w: Weights, context: Context, x: Tensor) -> Tensor:
        codes = [perceptron(w, "encoder.1", linear(w, "joined.linear", f).clamp(min=0), 1) for f in features(w, context.support.x)]
        labels = context.support.y.tolist()
        means = [torch.stack([code for code, label in zip(codes, labels) if label == c]).mean(0) for c in range(3)]
        first = [linear(w, "asked.linear", torch.cat([f, *means])) for f in features(w, x)]
        return torch.stack([perceptron(w, "decoder.1", a.clamp(min=0), 2) for a in first])

    compare_training(algorithm, tasks, lambda w, task: cross_entropy(logits(w, task.context, task.query.x), task.query.y))
    compare_answers(algorithm, tasks, logits)


ATTENTIVE = ["algo=attentive_np", "algo.width=6", "algo.encoder=2", "algo.decoder=2", "algo.heads=2"]


def attentive(w: Weights, context: Context, x: Tensor, z: Tensor) -> Tensor:
    """g([x, r(x), z]) for each query; r(x) is read from h(x_i, y_i) by the keys k(x_i) (arXiv:1901.05761, section 3)."""
    seen, made = seen_of(context), []
    f = features(w, seen.x)
    keys, values = perceptron(w, "key", f, 2), perceptron(w, "value", torch.cat([f, seen.y], 1), 2)
    for asked in features(w, x):
        r = linear(w, "attention.output", attended(w, "attention", perceptron(w, "key", asked, 2), keys, values, 2))
        made.append(perceptron(w, "decoder", torch.cat([asked, r, z]), 2))
    return torch.stack(made)


def test_attentive_neural_process() -> None:
    nothing = torch.zeros(0, dtype=F64)
    compare_process(*process(*ATTENTIVE), lambda w, context, x: attentive(w, context, x, nothing))


def test_attentive_neural_process_with_a_latent_variable() -> None:
    """The bound of arXiv:1901.05761, equation 3, per target, with the objective's own draw of z; a mixture of draws is the answer."""
    algorithm, tasks = process(*ATTENTIVE, "algo.latent=3", "algo.samples=4")

    def belief(w: Weights, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        pairs = torch.cat([features(w, x), y], 1)
        r = perceptron(w, "path", pairs, 2).sum(0) / max(len(y), 1)
        mean, s = perceptron(w, "moments", r, 2).split(3)
        return mean, 0.1 + 0.9 / (1 + (-s).exp())

    def bound(w: Weights, task: Task) -> Tensor:
        seen, (x, y) = seen_of(task.context), task.query
        prior_mean, prior = belief(w, *seen)
        mean, deviation = belief(w, torch.cat([seen.x, x]), torch.cat([seen.y, y]))
        z = mean + deviation * inner.normal(inner.fold_in(task.context.key, 0), (1, 3))[0]
        kl = (prior / deviation).log() + (deviation**2 + (mean - prior_mean) ** 2) / (2 * prior**2) - 0.5
        return (kl.sum() - density(*gaussian(attentive(w, task.context, x, z)), y).sum()) / len(y)

    def mixture(w: Weights, context: Context, x: Tensor) -> Tensor:
        mean, deviation = belief(w, *seen_of(context))
        draws = mean + deviation * inner.normal(context.key, (4, 3))
        return torch.stack([gaussian(attentive(w, context, x, z))[0] for z in draws]).mean(0)

    def log_density(w: Weights, task: Task) -> Tensor:
        """−log of the mixture's density, a target."""
        mean, deviation = belief(w, *seen_of(task.context))
        draws = mean + deviation * inner.normal(task.context.key, (4, 3))
        each = [density(*gaussian(attentive(w, task.context, task.query.x, z)), task.query.y).exp() for z in draws]
        return -(torch.stack(each).sum(0) / 4).log().mean()

    compare_training(algorithm, tasks, bound, metric="bound")
    compare_answers(algorithm, tasks, mixture)
    for i in range(count(tasks)):
        task = select(tasks, i)
        with torch.no_grad():
            loss = algorithm.problem.loss(algorithm.predict(algorithm.begin(task.context), task.query.x), task.query.y)
        torch.testing.assert_close(loss, log_density(held(algorithm), task).detach(), rtol=1e-9, atol=0)


def test_convolutional_conditional_neural_process() -> None:
    """Algorithm 1 of arXiv:1910.13556 on a fixed grid, with a U-Net of convolutions written as sums over their taps."""
    algorithm, tasks = process("algo=convcnp", "algo.domain=[-3,3]", "algo.points=4", "algo.channels=3", "algo.levels=2")
    grid = (torch.arange(24, dtype=F64) - 12) / 4

    def taps(w: Weights, name: str) -> tuple[Sequence[Tensor], Tensor]:
        return w[name + ".weight"].unbind(-1), w[name + ".bias"][:, None]

    def halved(w: Weights, name: str, x: Tensor) -> Tensor:
        """y_t = Σ_j W_j x_{2t + j − 2} + b."""
        kernel, bias = taps(w, name)
        wide = torch.nn.functional.pad(x, (2, 2))
        columns = [torch.stack([k @ wide[:, 2 * t + j] for j, k in enumerate(kernel)]).sum(0) for t in range(x.shape[1] // 2)]
        return torch.stack(columns, 1) + bias

    def doubled(w: Weights, name: str, x: Tensor) -> Tensor:
        """y_{2t + j − 2} += W_jᵀ x_t, and b."""
        kernel, bias = taps(w, name)
        columns = [torch.zeros(len(bias), dtype=F64)] * (2 * x.shape[1])
        for t in range(x.shape[1]):
            for j, k in enumerate(kernel):
                if 0 <= 2 * t + j - 2 < len(columns):
                    columns[2 * t + j - 2] = columns[2 * t + j - 2] + k.T @ x[:, t]
        return torch.stack(columns, 1) + bias

    def numbers(w: Weights, context: Context, x: Tensor) -> Tensor:
        seen, (own, other) = seen_of(context), w["log_scales"].exp()
        weights = (-((grid - seen.x) ** 2) / (2 * own**2)).exp()
        held = weights.sum(0)
        given = torch.stack([held, (weights * seen.y).sum(0) / (held + 1e-8)])
        top = (w["first.weight"][..., 0] @ given + w["first.bias"][:, None]).clamp(min=0)
        middle = halved(w, "cnn.down.0", top).clamp(min=0)
        bottom = halved(w, "cnn.down.1", middle).clamp(min=0)
        middle = torch.cat([doubled(w, "cnn.up.0", bottom).clamp(min=0), middle])
        field = torch.cat([doubled(w, "cnn.up.1", middle).clamp(min=0), top])
        near = (-((x - grid) ** 2) / (2 * other**2)).exp()
        return linear(w, "last", (near / near.sum(1, keepdim=True)) @ field.T)

    compare_process(algorithm, tasks, numbers)


def test_transformer_neural_process() -> None:
    """All tokens through all layers together, everybody looking at the examples alone (arXiv:2207.04179, section 4.1)."""

    def numbers(w: Weights, context: Context, x: Tensor) -> Tensor:
        seen, zeros = seen_of(context), torch.zeros(len(x), 2, dtype=F64)
        told = torch.cat([torch.cat([seen.y, torch.ones_like(seen.y)], 1), zeros])
        tokens = perceptron(w, "embed", torch.cat([torch.cat([features(w, seen.x), features(w, x)]), told], 1), 2)
        for layer in range(2):
            tokens = transformer(w, f"layers.{layer}", tokens, lambda place: range(len(seen.y)), 2)
        return linear(w, "head", layer_norm(w, "norm", tokens[len(seen.y) :]))

    compare_process(*process("algo=tnp", "algo.width=8", "algo.heads=2", "algo.hidden=6", "algo.layers=2"), numbers)
