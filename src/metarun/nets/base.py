"""What every backbone offers: features of a batch, and a stated policy of normalisation.
Heads belong to the algorithms; a backbone maps [n, *input_shape] to [n, features]."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from metarun import inner
from metarun.nets.norm import AnyNorm, Norm

T = TypeVar("T")


def image_shape(input_shape: tuple[int, ...], name: str) -> tuple[int, int, int]:
    """Channels, height and width of an example.

    Raises:
        ValueError: the examples are not images; ``name`` is the net that asked.
    """
    if len(input_shape) != 3:
        raise ValueError(f"net={name} needs images, these examples have shape {list(input_shape)}; use net=mlp")
    channels, height, width = input_shape
    return channels, height, width


def as_buffers(module: nn.Module, recurse: bool = True) -> None:
    """Make all parameters buffers of the same names."""
    for layer in module.modules() if recurse else [module]:
        for name, parameter in list(layer.named_parameters(recurse=False)):
            del layer._parameters[name]
            layer.register_buffer(name, parameter.detach())


def of_both_sides(features: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The mean of the features of images x [n, channels, height, width] and of their mirror images: left and right are one to it."""
    return (features(x) + features(x.flip(-1))) / 2


def draw(module: nn.Module, key: Tensor) -> dict[str, Tensor]:
    """Random weights for a module by parameter name, determined by a key [] int64: as torch draws those of linear layers and convolutions.

    Weights and biases are uniform within ± 1 / √(inputs of an output); single numbers, and what is no layer's with inputs, as a norm's
    scale and shift, begin as they are. In tensor operations, so that every task has weights of its own under torch.vmap.
    """
    inputs, drawn = inputs_of(module), {name: w.detach() for name, w in module.named_parameters()}
    for i, (name, w) in enumerate(drawn.items()):
        if name in inputs:
            drawn[name] = (2 * inner.uniform(key, tuple(w.shape), i).to(w.dtype) - 1) / math.sqrt(inputs[name])
    return drawn


def inputs_of(module: nn.Module) -> dict[str, int]:
    """How many inputs an output of its layer has, by the name of each parameter that is drawn anew where all are: see ``draw``."""
    found: dict[str, int] = {}
    for path, part in module.named_modules():
        weights = dict(part.named_parameters(recurse=False))
        inputs = next((w[0].numel() for w in weights.values() if w.dim() > 1), 0)
        found |= {f"{path}.{name}" if path else name: inputs for name, w in weights.items() if inputs and w.dim()}
    return found


class Net(nn.Module, ABC):
    """A backbone. Constructors take the input shape first, then only keyword arguments, which are the YAML's keys.

    Attributes:
        features: length of the feature vector.
        map_shape: channels, height and width of the map that a feature vector is the flattened form of; (features, 1, 1) if it is none.
        norm: whose statistics normalise a query (see ``Norm``); printed beside every accuracy.
        frozen: nothing in it is learned or adapted, and an example's features depend on it alone (see ``stem``).
        modulated: the submodule, a ``Norm`` or a linear layer, whose output a task may scale and shift before its activation (CAVIA).
        architecture: the parameter that weighs alternatives of which one will be chosen (DARTS), by its name; "" where there is none.
    """

    architecture: str = ""
    features: int
    map_shape: tuple[int, int, int]
    norm: AnyNorm
    modulated: str
    frozen: bool = False

    def __getattr__(self, name: str) -> Any:
        """What torch looks up; a net that lacks an answer above is told which.

        Raises:
            ValueError: the constructor has not set it.
        """
        if name in Net.__annotations__:
            raise ValueError(f"the net {type(self).__name__} does not say its {name}: set self.{name} in its constructor")
        return super().__getattr__(name)

    @abstractmethod
    def layers(self, x: Tensor, n_support: int | None) -> Tensor:
        """Features [n, features] of x [n, *input_shape]; ``n_support`` is handed on to every ``Norm``."""

    def forward(self, x: Tensor, support_x: Tensor | None = None) -> Tensor:
        """Features [n, features] of x [n, *input_shape].

        With ``norm=support`` the statistics come from ``support_x`` [m, *input_shape], which is sent along; other norms
        ignore it, and without it x is its own support.
        """
        if self.norm != "support" or support_x is None or support_x is x:
            return self.layers(x, None)
        n_support = support_x.shape[0]
        return self.layers(torch.cat([support_x, x]), n_support)[n_support:]

    @property
    def stem(self) -> Net | None:
        """The frozen part that examples go through first, the net itself where all of it is frozen; None: there is none.

        Its features of an example are computed once for all, so ``layers`` takes these, [n, stem.features], as well as examples.
        """
        return self if self.frozen else None

    @property
    def transductive(self) -> bool:
        """Whether the answer to one query depends on the other queries."""
        return self.norm == "batch" and any(isinstance(module, Norm) for module in self.modules())

    def fetch(self, stored: bool) -> None:
        """Called once where no checkpoint brings the weights: take those that the net comes with, if it comes with some.

        Args:
            stored: the configuration is that of a run's folder, for which nothing is ever downloaded.

        Raises:
            UserError: they are not to be had.
        """

    def observe(self, examples: Tensor) -> None:
        """Called once before meta-training with all its examples [n, *input_shape] as they are stored, uint8 or float.

        For what is counted rather than learned, such as how rare words are.
        """

    def monitored(self) -> dict[str, Tensor]:
        """Numbers [] of the net's own to be logged along with training, by name."""
        return {}

    def found(self) -> dict[str, Any]:
        """What training has found of the net's form, plain values by name, for the summary of a run."""
        return {}

    @classmethod
    def settled(cls, settings: Mapping[str, Any], weights_of: Callable[[str, str], dict[str, Tensor]]) -> dict[str, Any]:
        """The settings with whatever another run found written out in place of its folder, on which nothing hangs from then on.

        Args:
            settings: the constructor's keyword arguments.
            weights_of: (key, folder) to the weights of that run's net; the key that names the folder is for messages.
        """
        return dict(settings)

    def draw(self, key: Tensor) -> dict[str, Tensor]:
        """See ``draw``: random weights of this net, by parameter name."""
        return draw(self, key)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[T], forward: Callable[[T], Any] | None = None) -> None:
        """Set the population statistics of ``norm=running``; other norms need none.

        Args:
            batches: [n, *input_shape] each, or whatever ``forward`` takes.
            forward: makes the pass of one batch through the net; the net's own by default.
        """
        norms = [module for module in self.modules() if isinstance(module, Norm) and module.kind == "running"]
        if not norms:
            return
        was_training = self.training
        self.train()
        for norm in norms:
            norm.tally = []
        for batch in batches:
            (forward or self)(batch)
        for norm in norms:
            means, variances = (torch.stack(moments) for moments in zip(*norm.tally or []))
            norm.mean.copy_(means.mean(0))
            norm.var.copy_(variances.mean(0) + means.var(0, unbiased=False))  # law of total variance
            norm.tally = None
        self.train(was_training)
