"""An ordinary nn.Module as a net: the numbers stay those of torch's layers, and second derivatives become right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import small
from torch import Tensor, nn

from metarun.contract import checks
from metarun.errors import UserError
from metarun.extensions.sources import given
from metarun.nets.module import Module
from metarun.nets.native import LayerNorm
from metarun.nets.norm import Norm

TEXT = """
import torch
from torch import nn


class OfOneNorm(nn.Module):
    def __init__(self, norm: str, arguments: list, channels: int = 1) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, 8, 3, stride=2), getattr(nn, norm)(*arguments)
        for parameter in self.norm.parameters():
            nn.init.normal_(parameter, 1)

    def forward(self, x):
        return torch.tanh(self.norm(self.conv(x))).flatten(1)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(8, 5, padding_idx=0)

    def forward(self, x):
        return self.rows((x.flatten(1)[:, ::7] * 7.99).long()).tanh().mean(1)


class Squashed(nn.GroupNorm):
    def forward(self, x):
        return super().forward(x).tanh()


class WithSquashed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 8, 3), Squashed(2, 8), nn.Flatten())

    def forward(self, x):
        return self.layers(x)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        norm = nn.GroupNorm(2, 4)
        self.first, self.then = nn.Sequential(nn.Conv2d(1, 4, 3), norm), nn.Sequential(nn.Conv2d(4, 4, 3), norm)
        self.again = norm

    def forward(self, x):
        return self.again(self.then(self.first(x))).mean((2, 3))


class Listed(Shared):
    def __init__(self) -> None:
        super().__init__()
        self.stages = [self.first, {"norm": self.again}]


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        x = x[:, 0]
        return self.attention(x, x, x, need_weights=False)[0].tanh().mean(1)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return x.flatten(1) * self.seen


class Spectral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(256, 4))

    def forward(self, x):
        return self.layer(x.flatten(1))


class Dropping(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x.flatten(1), 0.5, self.training)
"""
# By the name of a norm of torch: its arguments, and what the net then says of itself.
NORMS: dict[str, tuple[list[Any], str]] = {
    "BatchNorm2d": ([8], "batch"),
    "GroupNorm": ([4, 8], "group"),
    "InstanceNorm2d": ([8, 1e-5, 0.1, True], "instance"),
    "LayerNorm": ([[8, 7, 7]], "none"),
}


@pytest.fixture(autouse=True)
def mine(tmp_path: Path) -> Iterator[None]:
    """A folder with a net that has one norm; every test's package has a name of its own, as Python imports one once."""
    (tmp_path / f"{tmp_path.name}_nets.py").write_text(TEXT, encoding="utf-8")
    with given([tmp_path]):
        yield


def built(tmp_path: Path, kind: str, shape: tuple[int, ...], **settings: Any) -> Module:
    arguments = {"norm": kind, "arguments": NORMS[kind][0], "channels": shape[0]}
    return Module(shape, module=f"{tmp_path.name}_nets.OfOneNorm", arguments=arguments, features="auto", **{"norm": "batch", **settings})


@pytest.mark.parametrize("norm", NORMS)
def test_the_answers_are_those_of_torchs_layers(tmp_path: Path, norm: str) -> None:
    torch.manual_seed(0)
    net = built(tmp_path, norm, (1, 16, 16))
    torch.manual_seed(0)
    native = type(net.module)(norm, NORMS[norm][0])
    x = torch.randn(5, 1, 16, 16)
    torch.testing.assert_close(net(x), native(x), rtol=1e-5, atol=1e-5)
    assert (net.features, net.map_shape, net.norm) == (8 * 7 * 7, (8 * 7 * 7, 1, 1), NORMS[norm][1])
    assert [type(layer) for layer in net.modules() if isinstance(layer, (Norm, LayerNorm))] == [LayerNorm if norm == "LayerNorm" else Norm]
    assert net.transductive == (norm == "BatchNorm2d")


@pytest.mark.parametrize("norm", NORMS)
def test_second_derivatives_are_right_where_weights_adapt_per_task(tmp_path: Path, norm: str) -> None:
    arguments = {"norm": norm, "arguments": NORMS[norm][0], "channels": 2}
    values = small("algo=maml", "net=module")
    values["net"] |= {"module": f"{tmp_path.name}_nets.OfOneNorm", "arguments": arguments}
    checks.mapping(values)
    checks.gradient(values)


def test_running_statistics_are_a_choice_for_batch_norm_alone(tmp_path: Path) -> None:
    assert built(tmp_path, "BatchNorm2d", (1, 16, 16), norm="running").norm == "running"
    assert built(tmp_path, "GroupNorm", (1, 16, 16), norm="running").norm == "group"


def test_building_leaves_torchs_random_numbers_to_the_net(tmp_path: Path) -> None:
    torch.manual_seed(0)
    built(tmp_path, "GroupNorm", (1, 16, 16))
    after = torch.rand(3)
    torch.manual_seed(0)
    conv: nn.Module = nn.Conv2d(1, 8, 3, stride=2)
    weights: list[Tensor] = [nn.init.normal_(parameter, 1) for parameter in nn.GroupNorm(4, 8).parameters()]
    assert torch.equal(torch.rand(3), after)
    assert (sum(p.numel() for p in conv.parameters()), len(weights)) == (80, 2)


def of(tmp_path: Path, name: str) -> Module:
    return Module((1, 16, 16), module=f"{tmp_path.name}_nets.{name}", arguments=None, features="auto", norm="batch")


def test_the_row_of_padding_learns_nothing_in_any_task(tmp_path: Path) -> None:
    """Torch masks the row of the first task alone where gradients are taken around ``torch.vmap``."""
    values = small("algo=maml", "net=module", "data=glyphs", "data.size=16")
    values["net"] |= {"module": f"{tmp_path.name}_nets.Words"}
    checks.mapping(values)
    net = of(tmp_path, "Words")
    x = torch.rand(3, 1, 16, 16)
    native = type(net.module)()
    native.load_state_dict(net.module.state_dict())
    torch.testing.assert_close(net(x), native(x))
    net(x).sum().backward()
    native(x).sum().backward()
    torch.testing.assert_close(net.module.rows.weight.grad, native.rows.weight.grad)
    assert not net.module.rows.weight.grad[0].any()


def test_attention_has_second_derivatives(tmp_path: Path) -> None:
    values = small("algo=maml", "net=module", "data=glyphs", "data.size=16")
    values["net"] |= {"module": f"{tmp_path.name}_nets.Attending"}
    checks.mapping(values)
    checks.gradient(values)


def test_a_layer_that_is_there_several_times_stays_one(tmp_path: Path) -> None:
    net = of(tmp_path, "Shared").module
    assert isinstance(net.again, Norm)
    assert net.again is net.first[1] is net.then[1]
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in type(net)().parameters())


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("WithSquashed", r"has torch's Squashed \(layers.1\), whose second derivatives are wrong"),
        ("Listed", r"holds its GroupNorm in a list or dictionary of its own, where it cannot be replaced: use nn.ModuleList"),
        ("Counting", r"writes into its buffer seen when it is asked, so that chunks would change a result"),
        ("Spectral", r"writes into its buffer layer.parametrizations.weight.0._[uv] when it is asked"),
        ("Dropping", r"draws from torch's global generator, as dropout does, so that chunks would change a result: take it out"),
    ],
)
def test_what_would_go_wrong_without_a_word_is_refused(tmp_path: Path, name: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        of(tmp_path, name)
