"""A world of one does nothing, and the shares of any world are a partition in order."""

import numpy as np
import pytest
import torch
from torch import nn

from metarun.__main__ import main as entry
from metarun.cli import main
from metarun.runtime import torchrun
from metarun.runtime.distributed import World


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("indices", [range(0), range(1), range(7, 9), range(16), range(5, 28)])
def test_shares_are_contiguous_and_even(indices, size):
    shares = [World(rank, size).share(indices) for rank in range(size)]
    assert [i for share in shares for i in share] == list(indices)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert max(map(len, shares)) == -(-len(indices) // size)  # the number of blocks in Engine.score rests on it


def test_a_process_alone_changes_nothing(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")  # some cluster's variable, and nobody's ranks
    world = World.join()
    assert (world.rank, world.size) == (0, 1)
    assert not torchrun.follows()
    parameter = nn.Parameter(torch.ones(2))
    world.sum_gradients([parameter])
    assert parameter.grad is None
    array = np.arange(3)
    assert world.concatenate(array) is array
    assert world.gather("x") == ["x"]
    assert world.broadcast("x") == "x"
    assert world.sum({"a": 1.0}) == {"a": 1.0}
    assert world.any(True)
    assert not world.any(False)
    assert torchrun.call(max, 1, 2) == 2
    with pytest.raises(ZeroDivisionError):
        world.together(lambda: 1 // 0)


@pytest.mark.parametrize("status", [0, 1, 2, 130])
def test_one_of_several_processes_takes_its_group_down_before_it_ends_whatever_its_status(monkeypatch, status):
    done = []

    def ended(code):
        done.append(code)
        raise SystemExit(code)

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: done.append("group"))
    monkeypatch.setattr(torchrun.os, "_exit", ended)
    monkeypatch.setattr(main, "main", lambda words: status)
    with pytest.raises(SystemExit):
        entry()
    assert done == ["group", status]
