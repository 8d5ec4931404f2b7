"""The modified Hausdorff distance against the formula written with loops: zero on itself, symmetric, blind to translation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metarun.algos.metric.hausdorff import Hausdorff, Ink
from metarun.problem import Classification, EpisodeSpec, Problem
from metarun.task import Batch, Context

SPEC = EpisodeSpec(way=2, shot=1, query=1)
SIDE = 12


def hausdorff(points: int = SIDE * SIDE) -> Hausdorff:
    return Hausdorff(nn.Identity(), Problem(Classification(), (1, SIDE, SIDE), 2, 10, SPEC, SPEC), threshold=0.5, points=points)


def drawings(n: int, seed: int, share: float = 0.2) -> Tensor:
    """[n, 1, 12, 12] with ink in the middle, so that there is room to move."""
    x = torch.zeros(n, 1, SIDE, SIDE, dtype=torch.float64)
    x[:, :, 3:9, 3:9] = (torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed)) < share).double()
    x[:, :, 5, 5] = 1
    return x


def distances(a: Tensor, b: Tensor, points: int = SIDE * SIDE) -> Tensor:
    """[n, m] between two piles of drawings."""
    model = hausdorff(points)
    return torch.stack([model.distance(model.ink(a), Ink(at, there)) for at, there in zip(*model.ink(b))], 1)


def by_hand(a: Tensor, b: Tensor) -> float:
    first, second = (np.argwhere(x[0].numpy() > 0.5).astype(float) for x in (a, b))
    first, second = first - first.mean(0), second - second.mean(0)

    def onto(these: np.ndarray, those: np.ndarray) -> float:
        return float(np.mean([min(np.linalg.norm(point - other) for other in those) for point in these]))

    return max(onto(first, second), onto(second, first))


def test_it_is_the_formula() -> None:
    a, b = drawings(4, 0), drawings(5, 1, 0.4)
    expected = torch.tensor([[by_hand(x, y) for y in b] for x in a], dtype=torch.float64)
    assert expected.min() > 0.1
    torch.testing.assert_close(distances(a, b), expected)


def test_a_drawing_is_at_distance_zero_of_itself_and_distances_are_symmetric() -> None:
    x = drawings(5, 0)
    apart = distances(x, x)
    assert torch.equal(apart.diagonal(), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(apart, apart.T)


def test_translation_changes_nothing() -> None:
    a, b = drawings(4, 0), drawings(4, 1)
    torch.testing.assert_close(distances(a.roll((2, -3), (2, 3)), b.roll((-1, 2), (2, 3))), distances(a, b))


def test_it_is_not_a_metric() -> None:
    x = torch.zeros(3, 1, SIDE, SIDE, dtype=torch.float64)
    for drawing, columns in zip(x, ([0, 1, 2, 5, 6, 9, 10, 11], [0, 4, 5, 6, 7, 11], [5, 6])):
        drawing[0, 5, columns] = 1
    apart = distances(x, x)
    torch.testing.assert_close(apart[[0, 0, 1], [2, 1, 2]], torch.tensor([3.0, 0.75, 2.0], dtype=torch.float64))  # 3 > 0.75 + 2


def test_room_for_more_points_changes_nothing_and_too_little_takes_them_evenly() -> None:
    x = drawings(3, 0, 0.5)
    inked = int((x > 0.5).flatten(1).sum(1).max())
    torch.testing.assert_close(distances(x, x, inked), distances(x, x))
    ink, whole = hausdorff(6).ink(x[:1]), hausdorff().ink(x[:1])
    n = int(whole.there.sum())
    assert n > 6
    assert bool(ink.there.all())
    rows = whole.at[0, [i * n // 6 for i in range(6)]]
    torch.testing.assert_close(ink.at[0], rows - rows.mean(0))


@pytest.mark.parametrize("blank", ["query", "support"])
def test_an_empty_drawing_is_far_from_all_others(blank: str) -> None:
    x, nothing = drawings(2, 0), torch.zeros(1, 1, SIDE, SIDE, dtype=torch.float64)
    apart = distances(nothing, x) if blank == "query" else distances(x, nothing)
    torch.testing.assert_close(apart, torch.full_like(apart, 2**0.5 * SIDE))


def test_a_class_is_as_near_as_its_nearest_drawing() -> None:
    support, query, y = drawings(4, 0), drawings(3, 1), torch.tensor([0, 1, 0, 1])
    model = hausdorff()
    answers = model.predict(model.begin(Context(Batch(support, y), torch.arange(2), torch.tensor(0), {})), query)
    apart = distances(query, support)
    torch.testing.assert_close(answers, -torch.stack([apart[:, y == c].amin(1) for c in range(2)], 1))
