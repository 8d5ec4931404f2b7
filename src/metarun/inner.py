"""The inner-loop mathematics that methods share: gradients with a chosen derivative mode, steps, prototypes, ridge, keyed randomness.
Everything is written for one task, in operations that torch.vmap can batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from contextvars import copy_context
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.runtime.loop import loop as scanned_loop
from metarun.runtime.private import alone_under_vmap, function_modes, plain_tensors, tree_flatten, tree_leaves, tree_map, tree_unflatten
from metarun.runtime.steps import Kept, within_a_step

Mode = Literal["unroll", "mixed", "none"]
Weights = Any  # a tensor, or a nested dict or tuple of tensors


def gradient(loss: Callable[..., Tensor], fast: Weights, *args: Any, mode: Mode = "unroll") -> Weights:
    """The gradient of ``loss(fast, *args)`` with respect to ``fast``, differentiable as ``mode`` says.

    Args:
        loss: a pure function of its arguments, returning a scalar. In mode ``mixed`` it must not close over tensors that
            need a gradient: pass them in ``args``.
        fast: the adapted weights.
        args: all else the loss depends on (shared weights, support examples).
        mode: ``unroll`` keeps the graph of the gradient (autograd through autograd, exact second order);
            ``mixed`` gives the same derivatives but keeps only the inputs, and computes the rest again on the way back: less memory for
            many steps, as in MixFlow-MG (Kemaev et al. 2025, arXiv:2505.00793), whose product with the Hessian is forward over reverse;
            here it is reverse over reverse, which takes as many products of matrices and has faster kernels. In a step of ``loop``, which
            keeps of a step what it is told to (``kept``), it is ``unroll``;
            ``none`` treats the gradient as a constant (first order).

    Returns:
        A tree like ``fast``.
    """
    leaves, spec = tree_flatten((fast, args))
    weights, form = tree_flatten(fast)
    modes = function_modes()

    def flat_loss(*flat: Tensor) -> Tensor:
        fast, args = tree_unflatten(list(flat), spec)
        with ExitStack() as stack:
            for mode in modes:  # as ``BFloat16``, which torch leaves outside of an autograd.Function under torch.func
                stack.enter_context(mode)
            return loss(fast, *args)

    how: Mode = mode if torch.is_grad_enabled() else "none"
    if how == "mixed" and within_a_step():
        how = "unroll"  # a step that is computed again would else compute its gradient a third time
    if alone_under_vmap(leaves):
        grads = _GradientByTask.apply(flat_loss, len(weights), how, *leaves)
    elif how == "mixed" and plain_tensors():
        grads = _GradientAnew.apply(flat_loss, len(weights), *leaves)
    else:
        with torch.set_grad_enabled(how != "none"):
            return torch.func.grad(loss)(fast, *args)
    return tree_unflatten(list(grads), form)


class _GradientByTask(torch.autograd.Function):
    """``torch.func.grad`` under torch.vmap, as the gradient of the sum of all tasks' losses, each of which has weights of its own.

    So that below vmap all is plain autograd: every level of torch.func costs every operation Python, most of the time of a small net.
    """

    @staticmethod
    def forward(loss: Callable[..., Tensor], n_fast: int, mode: Mode, *leaves: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError  # there is nothing but ``vmap``

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing: the derivatives are those of what ``vmap`` does."""

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], loss: Callable[..., Tensor], n_fast: int, mode: Mode, *leaves: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        dims = in_dims[3:]
        if mode == "none":
            leaves = tuple(leaf.detach() for leaf in leaves)
        # Views, as shared weights may be among the other leaves as well.
        fast = [
            as_it_lies(lambda w: w.expand(info.batch_size, *w.shape), w) if dim is None else w.movedim(dim, 0)
            for w, dim in zip(leaves[:n_fast], dims)
        ]

        def total(*leaves: Tensor) -> Tensor:
            return torch.vmap(loss, in_dims=(*[0] * n_fast, *dims[n_fast:]))(*leaves).sum()

        if mode == "mixed":
            grads = _GradientAnew.apply(total, n_fast, *fast, *leaves[n_fast:])
        else:
            fast = [w if w.requires_grad else w.detach().requires_grad_() for w in fast]
            with torch.enable_grad():
                loss_of_all = total(*fast, *leaves[n_fast:])
                grads = torch.autograd.grad(loss_of_all, fast, create_graph=mode == "unroll", materialize_grads=True)
        return grads, (0,) * n_fast


class _GradientAnew(torch.autograd.Function):
    """The gradient of a loss of plain tensors by the first ``n_fast``, which keeps its arguments alone; the way back computes it again."""

    @staticmethod
    def forward(loss: Callable[..., Tensor], n_fast: int, *leaves: Tensor) -> tuple[Tensor, ...]:
        fast = [w.detach().requires_grad_() for w in leaves[:n_fast]]
        with torch.enable_grad():
            value = loss(*fast, *(leaf.detach() for leaf in leaves[n_fast:]))
        return torch.autograd.grad(value, fast, materialize_grads=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.loss, ctx.n_fast, *leaves = inputs
        ctx.context = copy_context()  # on a GPU the way back has a thread of its own
        ctx.save_for_backward(*leaves)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        wanted = [
            i for i, leaf in enumerate(ctx.saved_tensors) if ctx.needs_input_grad[2 + i] and (leaf.is_floating_point() or leaf.is_complex())
        ]
        again = torch.is_grad_enabled()  # the way back is to be differentiated, too

        def products() -> tuple[Tensor, ...]:
            leaves = [
                (leaf.view_as(leaf) if again and leaf.requires_grad else leaf.detach().requires_grad_())
                if i in wanted or i < ctx.n_fast
                else leaf
                for i, leaf in enumerate(ctx.saved_tensors)
            ]
            with torch.enable_grad():
                fast = leaves[: ctx.n_fast]
                grads = torch.autograd.grad(ctx.loss(*leaves), fast, create_graph=True, materialize_grads=True)
                pairs = [(grad, given) for grad, given in zip(grads, cotangents) if grad.requires_grad]
            if not pairs:
                return tuple(torch.zeros_like(leaves[i]) for i in wanted)
            outputs, given = zip(*pairs)
            return torch.autograd.grad(outputs, [leaves[i] for i in wanted], given, create_graph=again, materialize_grads=True)

        # Autograd may have a thread of its own for the way back, which knows nothing of the choice of kernels.
        by_leaf = dict(zip(wanted, ctx.context.copy().run(products)))
        return (None, None, *(by_leaf.get(i) for i in range(len(ctx.saved_tensors))))


def kept_by(mode: Mode) -> Literal["auto", "states"]:
    """What a loop of steps by gradients of this mode keeps for the way back: with ``mixed``, which saves memory, no more than states."""
    return "states" if mode == "mixed" else "auto"


def loop(
    step: Callable[[Any, Any], Any],
    state: Any,
    steps: int,
    xs: Any = None,
    *,
    read: Callable[[Any], Any] | None = None,
    kept: Kept = "auto",
) -> Any:
    """``steps`` times ``state = step(state, x)``, at the cost of one step to be recorded and differentiated.

    The same numbers as Python's own loop, under torch.vmap too, differentiable as often as ``step`` is, and loops may be nested. Where a
    step is not the same computation as the one before it (the state changes its shape; the step closes over an object with a state of its
    own), Python's own loop is what runs.

    Args:
        step: a pure function of nested tensors, of whatever it closes over, and of x. Without ``xs``, x is k = 0, 1, …, an int64 tensor [];
            where its value decides what is done, every step is recorded by itself.
        state: nested tuples and dicts of tensors, which keep their shapes and types.
        steps: K >= 0.
        xs: nested tensors with a leading axis of length K; x is their row k.
        read: what to note of the state after every step, nested tensors.
        kept: for the way back: ``all`` that each step needs; ``auto``, what fits into 512 MiB, or ``states``, into 64 MiB, and the rest is
            computed again from a state before it; or a number n, the state before every n-th step. Results do not depend on it.

    Returns:
        The last state; with ``read`` also what it noted, with a leading axis of length K.
    """
    last, noted = scanned_loop(step, state, steps, xs, read, kept)
    return last if read is None else (last, noted)


def sgd(fast: Weights, grads: Weights, lr: float | Tensor | Weights) -> Weights:
    """One step of gradient descent, ``fast - lr * grads``; ``lr`` is one number or a tree like ``fast``."""
    if isinstance(lr, (float, int)):
        return tree_map(lambda w, g: as_it_lies(partial(torch.add, alpha=-lr), w, g), fast, grads)
    if isinstance(lr, Tensor):
        return tree_map(lambda w, g: as_it_lies(lambda w, g: w - lr * g, w, g), fast, grads)
    return tree_map(lambda *leaves: as_it_lies(lambda w, g, rate: w - rate * g, *leaves), fast, grads, lr)


def as_it_lies(function: Callable[..., Tensor], *weights: Tensor) -> Tensor:
    """An elementwise ``function`` of weights, those of convolutions with the channels last, as they lie in memory (``nets.conv``).

    Where tasks share them, the way back sums over tasks, ten times as fast along memory.
    """
    if weights[0].dim() != 4:
        return function(*weights)
    return function(*(w.movedim(-3, -1) if w.dim() == 4 else w for w in weights)).movedim(-1, -3)


def hessian(loss: Callable[..., Tensor], fast: Weights, *args: Any) -> Callable[[Weights], Weights]:
    """The map v -> ∇²_fast loss(fast, *args) v of trees like ``fast``.

    The graph of one gradient is kept and gone back through once for every v, which, the Hessian being symmetric, is the product.
    """
    back = torch.func.vjp(lambda weights: torch.func.grad(loss)(weights, *args), fast)[1]
    return lambda v: back(v)[0]


def conjugate_gradient(operator: Callable[[Weights], Weights], target: Weights, steps: int) -> Weights:
    """``steps`` steps from zero towards the solution of operator(x) = target (Hestenes & Stiefel 1952).

    Args:
        operator: a linear, symmetric map of trees like ``target``. If positive definite, the result is exact after as many steps as it
            has different eigenvalues. Where it proves not to be, the steps end, at ``target`` if that is at once (Steihaug 1983).
    """

    def dot(a: Weights, b: Weights) -> Tensor:
        return torch.stack([(x * y).sum() for x, y in zip(tree_leaves(a), tree_leaves(b))]).sum()

    solution, residual, direction = tree_map(torch.zeros_like, target), target, target
    size = dot(target, target)
    open_ended = torch.ones_like(size, dtype=torch.bool)
    for k in range(steps):
        image = operator(direction)
        curvature = dot(direction, image)
        open_ended = open_ended & (curvature > 0)
        # Divisors of ended steps are replaced, as vmap has no branches and 0 times infinity is no number.
        stride = torch.where(open_ended, size / torch.where(open_ended, curvature, 1.0), 0.0 if k else 1.0)
        solution = sgd(solution, direction, -stride)
        residual = sgd(residual, image, stride)
        size, before = dot(residual, residual), size
        direction = sgd(residual, direction, -size / torch.where(before > 0, before, 1.0))
    return solution


class Moments(NamedTuple):
    """What Adam remembers of past gradients, two trees like the weights."""

    mean: Weights
    square: Weights


def no_moments(fast: Weights) -> Moments:
    """Adam's memory before its first step."""
    return Moments(tree_map(torch.zeros_like, fast), tree_map(torch.zeros_like, fast))


def adam(
    fast: Weights, grads: Weights, moments: Moments, k: int | Tensor, lr: float, beta1: float, beta2: float = 0.999, eps: float = 1e-8
) -> tuple[Weights, Moments]:
    """Step k = 0, 1, … of Adam (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1): the new weights and moments."""
    mean = tree_map(lambda m, g: beta1 * m + (1 - beta1) * g, moments.mean, grads)
    square = tree_map(lambda v, g: beta2 * v + (1 - beta2) * g * g, moments.square, grads)
    age = k.double() + 1 if isinstance(k, Tensor) else k + 1
    unbias1, unbias2 = 1 - beta1**age, 1 - beta2**age
    fast = tree_map(lambda w, m, v: w - lr * (m / unbias1) / ((v / unbias2).sqrt() + eps), fast, mean, square)
    return fast, Moments(mean, square)


def constant(tree: Weights) -> Weights:
    """The same numbers, through which no gradient flows."""
    return tree_map(lambda leaf: leaf.detach(), tree)


def mode_product(tensor: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """``tensor`` with ``matrix`` [m, n] applied along ``axis`` of length n, which becomes m (Kolda & Bader 2009, section 2.5)."""
    return torch.tensordot(matrix, tensor, dims=([1], [axis])).movedim(0, axis)


def upcast(x: Tensor) -> Tensor:
    """``x`` in fp32 at least: bf16 is too coarse for losses, statistics and distances, float64 stays what it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def log_and_sign(gradient: Tensor, least: float) -> Tensor:
    """A gradient of any shape as a net can read it, with a last axis of two: (log |g| / p, sign g) where |g| ≥ e^−p, else (−1, e^p g).

    Andrychowicz et al. 2016, arXiv:1606.04474, appendix A; ``least`` is p.
    """
    size = gradient.abs()
    large = size >= math.exp(-least)
    logarithm = torch.where(large, torch.log(torch.where(large, size, 1.0)) / least, -1.0)
    return torch.stack([logarithm, torch.where(large, gradient.sign(), math.exp(least) * gradient)], -1)


def directions(features: Tensor) -> Tensor:
    """Features [n, d] at length one, in fp32 at least: their products are cosines."""
    return F.normalize(upcast(features), dim=-1)


def one_hot(y: Tensor, way: int) -> Tensor:
    """Labels y [n] in 0..way-1 as rows [n, way], bool; torch's own looks into the data, which vmap does not allow."""
    return y[:, None] == torch.arange(way, device=y.device)


def label_error(scores: Tensor, y: Tensor) -> Tensor:
    """Mean squared error [] of σ(scores) [n, way] against 1 for the class y [n] and 0 for the others (arXiv:1711.06025, equation 2)."""
    scores = upcast(scores)
    return (torch.sigmoid(scores) - one_hot(y, scores.shape[1]).to(scores.dtype)).square().mean()


def class_means(features: Tensor, y: Tensor, way: int) -> Tensor:
    """Mean feature per class, [way, d], from features [n, d] and labels y [n] in 0..way-1 (arXiv:1703.05175, equation 1).

    A class without example, as wrong labels may leave one, has the mean 0.
    """
    member = one_hot(y, way).to(features.dtype)
    return (member.T @ features) / member.sum(0).clamp(min=1)[:, None]


def with_ones(features: Tensor) -> Tensor:
    """Features [n, d] with a last column of ones, [n, d + 1], through which a linear map gets a bias."""
    return torch.cat([features, torch.ones_like(features[:, :1])], 1)


def precision_matrix(x: Tensor, noise: Tensor) -> Tensor:
    """I + Σ_i x_i x_iᵀ / noise_i [d, d]: of weights with the prior N(0, I), after targets of variance ``noise`` at x [n, d]."""
    return torch.eye(x.shape[1], dtype=x.dtype, device=x.device) + (x.T / noise) @ x


def solve(a: Tensor, b: Tensor) -> Tensor:
    """The x of a x = b, for a [n, n]; no number where a is singular.

    torch.linalg.solve looks whether it is, for which a GPU would have to be waited for, and which a recording of its work cannot do.
    """
    return torch.linalg.solve_ex(a, b)[0]


def ridge(x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    """The W [d, outputs] that minimises Σ_i ‖x_i W − y_i‖² / noise_i + ‖W‖²; with noise [] it is ridge regression of that penalty.

    By whichever side of the Woodbury identity has the smaller system, d x d or n x n.

    Args:
        x: [n, d].
        y: [n, outputs], or [n] for W [d].
        noise: [] or [n], > 0; weighted least squares have noise_i = penalty / weight_i.
    """
    if x.shape[1] < x.shape[0]:
        return solve(precision_matrix(x, noise), (x.T / noise) @ y)
    return x.T @ solve(x @ x.T + noise.expand(x.shape[0]).diag(), y)


def by_class(scores: Tensor, member: Tensor) -> Tensor:
    """Scores [n, m] of n queries with m examples, sorted by the class of the example: [n, way, m], −∞ where it is of another class.

    A maximum or a log-sum-exp over the last axis makes class scores of them. ``member`` [m, way] is the ``one_hot`` of the examples.
    A class without examples has ``below`` everywhere.
    """
    others = torch.where(member.any(0)[:, None], -torch.inf, below(scores)[:, :, None])
    return torch.where(member.T, scores[:, None, :], others)


def below(scores: Tensor) -> Tensor:
    """Less than all scores [n, m] of a query, [n, 1]: for a class without examples, which comes last, but is not infinitely wrong.

    The log-sum-exp of m of them is below the lowest score, too.
    """
    return scores.detach().amin(1, keepdim=True) - math.log(scores.shape[1] + 1)


def balanced(logits: Tensor, rounds: int = 30) -> Tensor:
    """Log-probabilities [n, way] of n queries that every class has equally many of, n / way, from logits [n, way].

    Of all such, those nearest to the softmax: every class's logit changes by a number, the same for all queries (Sinkhorn & Knopp 1967;
    Cuturi 2013, arXiv:1306.0895). ``rounds``: how often classes and queries take turns.
    """
    share = math.log(logits.shape[0] / logits.shape[1])
    answers = logits.log_softmax(1)
    for _ in range(rounds):
        answers = (answers - answers.logsumexp(0) + share).log_softmax(1)
    return answers


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances [n, m] between a [n, d] and b [m, d], written out: torch.cdist has no second derivative."""
    return (a[:, None, :] - b[None, :, :]).square().sum(-1)


def order(key: Tensor, n: int) -> Tensor:
    """The order in which n examples are read one by one: a shuffle [n] of their places, determined by the episode's key."""
    return uniform(key, (n,)).argsort()


def minibatch(key: Tensor, n: int, size: int, k: int | Tensor) -> Tensor:
    """Which of n examples form minibatch k = 0, 1, …: indices [size], from one keyed shuffle of all n after another."""
    turn, place = k * size // n, k * size % n
    last = place + size - 1 if isinstance(place, int) else n + size - 2  # of the places, counted from the first shuffle on
    order = torch.cat([uniform(key, (n,), turn + ahead).argsort() for ahead in range(last // n + 1)])
    return order[place + torch.arange(size, device=key.device)]


def places(key: Tensor, n: int, size: int, k: int | Tensor) -> Tensor | slice:
    """``minibatch``, or all n examples where ``size`` is 0 or not below n."""
    return minibatch(key, n, size, k) if 0 < size < n else slice(None)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 tensors (two's complement wraps as uint64 does; shifts are made logical by masks)."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def uniform(key: Tensor, shape: tuple[int, ...], stream: int | Tensor = 0) -> Tensor:
    """Uniform numbers in (0, 1), float32 ``shape``, determined by the episode's key [] int64 and the stream's number, 0 or more.

    Counter-based and made of tensor operations, so vmap, chunks and ranks do not change a draw.
    """
    counter = torch.arange(1, math.prod(shape) + 1, device=key.device) * -0x61C8864680B583EB
    bits = _mix(_mix(key + (stream * 0x2545F4914F6CDD1D & 2**63 - 1)) + counter)
    return (((bits >> 41) & 0x7FFFFF).float().add(0.5) * 2.0**-23).reshape(shape)


def fold_in(key: Tensor, number: int | Tensor) -> Tensor:
    """Other keys in place of keys of any shape int64, for every number 0, 1, … others."""
    return _mix(key + ((number + 1) * 0x2545F4914F6CDD1D & 2**63 - 1))


def normal(key: Tensor, shape: tuple[int, ...], stream: int | Tensor = 0) -> Tensor:
    """Standard normal numbers, float32 ``shape``, keyed as ``uniform`` (Box & Muller 1958)."""
    u = uniform(key, (2, *shape), stream)
    return torch.sqrt(-2 * torch.log(u[0])) * torch.cos(2 * math.pi * u[1])
