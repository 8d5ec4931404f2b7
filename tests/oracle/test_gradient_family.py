"""The meta-gradients of Meta-SGD, ANIL and Meta-Curvature, those of rates and factors too, against learn2learn where it is installed."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from helpers import engine, meta_gradient, relative_error
from native import LR, Native, clone_and_adapt, flat, ours
from torch import Tensor, nn

from metarun.algorithm import Algorithm

CASES = [(net, steps, first_order) for net in ("conv4", "mlp") for steps in (1, 3) for first_order in (False, True)]


def shaken(tensors: Any) -> None:
    """Move every tensor a little, so that no factor is one, no matrix the identity."""
    for i, tensor in enumerate(tensors):
        tensor.data.add_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(i), dtype=tensor.dtype), alpha=0.1)


def learner_gradient(learner: Algorithm) -> Tensor:
    return flat(weight.grad for weight in learner.learner().values())


@pytest.mark.parametrize(("net", "steps", "first_order"), CASES)
def test_metasgd(learn2learn: ModuleType, net: str, steps: int, first_order: bool) -> None:
    learner, tasks = ours("metasgd", net, steps, first_order)
    shaken(learner.rates)
    native = Native(net, learner)
    by_name = dict(zip(learner.learner(), learner.rates))
    rates = nn.ParameterList(by_name[name].detach().clone() for name in native.names)
    theirs = learn2learn.algorithms.MetaSGD(native.model, lrs=rates, first_order=first_order)
    clone_and_adapt(theirs, tasks, steps).backward()
    meta_gradient(learner, tasks, engine())
    assert relative_error(learner_gradient(learner), flat(native.in_our_order(p.grad for p in native.model.parameters()))) < 1e-9
    expected = flat(native.in_our_order(rate.grad for rate in rates))
    assert relative_error(flat(rate.grad for rate in learner.rates), expected) < 1e-9


@pytest.mark.parametrize(("net", "steps", "first_order"), CASES)
def test_anil(learn2learn: ModuleType, net: str, steps: int, first_order: bool) -> None:
    learner, tasks = ours("anil", net, steps, first_order)
    native = Native(net, learner)
    theirs = learn2learn.algorithms.MAML(native.model[-1], lr=LR, first_order=first_order)
    clone_and_adapt(theirs, tasks, steps, body=native.model[:-1]).backward()
    expected = flat(native.in_our_order(p.grad for p in native.model.parameters()))
    assert relative_error(meta_gradient(learner, tasks, engine()), expected) < 1e-9


def theirs_of(transform: Any) -> list[tuple[Tensor, bool]]:
    """learn2learn's factors of a weight in the order of ours, as pairs of a parameter and whether it is the transposed one."""
    if transform.dim == 1:
        return [(transform.mc, False)]
    factors = [(transform.mc_in, False), (transform.mc_out, True)]
    return factors if transform.dim == 2 else [*factors, (transform.mc_f, False)]


@pytest.mark.parametrize(("net", "steps", "first_order"), CASES)
def test_metacurvature(learn2learn: ModuleType, net: str, steps: int, first_order: bool) -> None:
    learner, tasks = ours("metacurvature", net, steps, first_order)
    shaken(learner.curvature.parameters())
    native = Native(net, learner)
    transform = learn2learn.optim.transforms.MetaCurvatureTransform
    theirs = learn2learn.algorithms.GBML(native.model, transform, lr=LR, first_order=first_order).double()
    by_name = dict(zip(learner.learner(), learner.curvature))
    pairs = []
    for name, module in zip(native.names, theirs.compute_update.transforms_modules, strict=True):
        for factor, (parameter, transposed) in zip(by_name[name], theirs_of(module), strict=True):
            parameter.data.copy_(factor.T if transposed else factor)
            pairs.append((factor, parameter, transposed))
    clone_and_adapt(theirs, tasks, steps).backward()
    meta_gradient(learner, tasks, engine())
    assert relative_error(learner_gradient(learner), flat(native.in_our_order(p.grad for p in native.model.parameters()))) < 1e-9
    expected = flat(p.grad.T if transposed else p.grad for _, p, transposed in pairs)
    assert relative_error(flat(factor.grad for factor, *_ in pairs), expected) < 1e-9


@pytest.mark.parametrize(("net", "steps", "first_order"), CASES)
def test_metacurvature_without_output_factors_of_convolutions_is_kfo(
    learn2learn: ModuleType, net: str, steps: int, first_order: bool
) -> None:
    """KFO (Arnold et al. 2019) multiplies a gradient by a matrix from either side: input and filter of a convolution, both of a matrix."""
    learner, tasks = ours("metacurvature", net, steps, first_order)
    native = Native(net, learner)
    by_name = dict(zip(learner.learner(), learner.curvature))
    factors = {name: list(every)[1:] if len(every) == 3 else list(every) for name, every in by_name.items()}
    shaken(factor for some in factors.values() for factor in some)
    transform = learn2learn.optim.KroneckerTransform(learn2learn.nn.KroneckerLinear, psd=False)
    theirs = learn2learn.algorithms.GBML(native.model, transform, lr=LR, first_order=first_order).double()
    modules = [module.transform for module in theirs.compute_update.transforms_modules]
    for name, module in zip(native.names, modules, strict=True):
        left, *right = factors[name]
        module.left.data.copy_(left if right else left.diag())
        if right:
            module.right.data.copy_(right[0].T)
    clone_and_adapt(theirs, tasks, steps).backward()
    meta_gradient(learner, tasks, engine())
    assert relative_error(learner_gradient(learner), flat(native.in_our_order(p.grad for p in native.model.parameters()))) < 1e-9
    actual, expected = [], []
    for name, module in zip(native.names, modules):
        left, *right = factors[name]
        actual += [left.grad, *(factor.grad for factor in right)]
        expected += [module.left.grad, module.right.grad.T] if right else [module.left.grad.diag()]
    assert relative_error(flat(actual), flat(expected)) < 1e-9
