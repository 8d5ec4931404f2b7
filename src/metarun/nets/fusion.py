"""Layers that follow each other as one operation, where that is the same and faster; else the layers are called one by one."""

from __future__ import annotations

import torch
from torch import Tensor

from metarun.kernels import select
from metarun.kernels.ops.conv import linear, matrix
from metarun.kernels.ops.linear_pool_relu import Covariance, linear_pool_relu
from metarun.kernels.ops.norm_pool_relu import norm_pool_relu
from metarun.kernels.ops.transforms import needs_gradient
from metarun.nets.conv import Conv
from metarun.nets.norm import Norm


def conv_norm(conv: Conv, norm: Norm, x: Tensor, n_support: int | None) -> Tensor:
    """norm(conv(x)) of x [n, channels_in, h, w]; where the input has few channels, as one linear map of patches."""
    return linear(*_folded(conv, norm, x, n_support)) if _folds(conv, norm) else norm(conv(x), n_support)


def conv_norm_relu_pool(conv: Conv, norm: Norm, x: Tensor, n_support: int | None, pool: bool) -> Tensor | None:
    """relu(norm(conv(x))), max-pooled 2x2 if ``pool``: [n, channels, h', w'] by one fused operation; None where there is none for it."""
    if select.loops(x.device) is None or _watched(norm):
        return None
    window = 2 if pool else 1
    if _folds(conv, norm):
        return None if needs_gradient(x) else linear_pool_relu(*_folded(conv, norm, x, n_support), window)
    if norm.kind == "batch" or (norm.kind == "running" and norm.training):
        y, *moments = norm_pool_relu(conv(x), norm.weight, norm.bias, norm.eps, window)
        if norm.tally is not None:
            norm.tally.append((moments[0], moments[1]))
        return y
    return None


def _watched(norm: Norm) -> bool:
    """Whether hooks are to see the norm's own output."""
    return bool(norm._forward_hooks or norm._forward_pre_hooks)


def _folds(conv: Conv, norm: Norm) -> bool:
    """Whether ``_folded`` is for these layers."""
    return conv.narrow and norm.kind in ("batch", "support", "running") and select.has("folding") and not _watched(norm)


def _folded(conv: Conv, norm: Norm, x: Tensor, n_support: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Norm and convolution as one linear map of patches p: the moments of w·p are w·mean(p) and wᵀ cov(p) w.

    The moments of few input channels cost next to nothing, while a first layer's output is the largest tensor of a net.

    Returns:
        patches [n, h', w', k], weight [channels, k] and bias [channels].
    """
    weight = matrix(conv.weight)
    if norm.kind == "running" and not norm.training:
        patches, mean, var = conv.patches(x), norm.mean, norm.var
    else:
        # Less each channel's mean, which neighbouring pixels share: behind a filter of differences, variance and output would else be
        # small differences of large numbers, which bfloat16 cannot tell. The moments are in float64 even so.
        common = (x[:n_support] if norm.kind == "support" else x).mean((0, 2, 3))
        patches = conv.patches(x, common)
        source, rows = (patches[:n_support] if norm.kind == "support" else patches).flatten(0, -2), weight.double()
        loops = select.loops(x.device)
        if loops is not None and loops.covariance is not None and not needs_gradient(x):
            centre, covariance = Covariance.apply(source)
        else:
            source = source.double()
            centre = source.mean(0)
            # A product for each image: a single one of so few rows and so many columns would keep little of a GPU busy.
            images = source.unflatten(0, (-1, patches.shape[1] * patches.shape[2]))
            covariance = (images.mT @ images).sum(0) / source.shape[0] - centre[:, None] * centre
        mean = (rows @ centre).to(weight.dtype)
        var = ((rows @ covariance) * rows).sum(1).to(weight.dtype)
        if norm.tally is not None:
            norm.tally.append((mean + weight @ common.repeat(conv.kernel**2), var))
    scale = torch.rsqrt(var + norm.eps) * norm.weight
    return patches, scale[:, None] * weight, norm.bias - scale * mean
