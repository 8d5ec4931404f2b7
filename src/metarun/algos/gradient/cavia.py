"""CAVIA: a few context numbers adapt to the task, and the weights are shared by all tasks.
Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson 2019, arXiv:1810.03642."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn

from metarun.learners import Adapted, InnerLoop
from metarun.nets.base import Net
from metarun.problem import Problem
from metarun.task import Context


class CAVIA(InnerLoop):
    """Fast context adaptation.

        c_0 = 0,   c_{k+1} = c_k − α ∇_c L_support(c_k, θ)          (equation 4)
        min_θ  mean over tasks of L_query(c_K, θ)                  (equation 5)

    Images: the context scales and shifts the channels of the third layer of four before its ReLU, h ← γ(c) h + β(c), (γ, β) linear in c
    (FiLM, section 3.4). Other inputs: the first layer sees [x, c] (section 3.3), which is to say that W_c c is added to its output.

    Deviations: (1) γ starts from 1 and β from 0 at c = 0, as of no effect; the authors start the layer at random. (2) The authors
    modulate after max-pooling, here it is before: the same as long as γ > 0. (3) Behind a norm of the first layer of an MLP the context is
    added after it, as batch statistics would take it away again. (4) Defaults: α = 30 in five steps where the authors have 1 in two, which
    in these few iterations moves nothing.

    Args:
        net, problem: the backbone and the data's shape.
        inner_lr: α, on the mean support loss.
        inner_steps, test_steps: K in meta-training, and in validation and test.
        context_size: length of c.
        first_order: drop the second derivatives.
        mode: how second derivatives are computed, ``unroll`` or ``mixed`` (see ``inner.gradient``).
    """

    def __init__(self, net: Net, problem: Problem, *, context_size: Annotated[int, Ge(1)], **settings: Any) -> None:
        super().__init__(net, problem, **settings)
        if not net.modulated:
            raise ValueError("algo=cavia modulates a layer of the net, and this net has none: give net.sizes one width or more")
        layer = net.get_submodule(net.modulated)
        channels = len(layer.get_parameter("weight"))
        if len(problem.input_shape) == 3:
            layer.film = nn.Linear(context_size, 2 * channels)
            layer.film.bias.data = torch.cat([torch.ones(channels), torch.zeros(channels)])
        else:
            layer.film = nn.Linear(context_size, channels, bias=False)
        layer.register_buffer("context", torch.zeros(context_size), persistent=False)
        layer.register_forward_hook(modulate)
        self.context = f"net.{net.modulated}.context"  # its name

    def begin(self, context: Context) -> Adapted:
        return Adapted({self.context: torch.zeros_like(self.get_buffer(self.context))}, context.support.x)


def modulate(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """The layer's output [n, channels, *space] under its context, which ``functional_call`` may have put in place."""
    film = layer.get_submodule("film")
    modulation = film(layer.get_buffer("context")).to(output.dtype)
    if film.bias is None:
        return output + modulation
    scale, shift = modulation.view(2, -1, *[1] * (output.dim() - 2))
    return scale * output + shift
