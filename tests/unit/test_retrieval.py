"""protocol=retrieval: average precision against its definition, ties, chance, whole splits, whole runs and the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import small
from PIL import Image

from metarun.cli import summary_table
from metarun.errors import UserError
from metarun.experiment import evaluate, train
from metarun.protocols.retrieval import OF_CLASSES, OF_IMAGES, Retrieval, average_precision, chance, retrieved
from metarun.run import Run


def by_definition(scores: np.ndarray, relevant: np.ndarray) -> float:
    """The mean of the precision at the place of every relevant one."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    places = [place for place, i in enumerate(order, 1) if relevant[i]]
    return float(np.mean([(k + 1) / place for k, place in enumerate(places)]))


def test_what_is_read_is_what_its_definition_says() -> None:
    random = np.random.default_rng(0)
    y = np.repeat(np.arange(4), 6)
    scores = random.normal(size=(24, 4)) + 1.5 * (y[:, None] == np.arange(4))
    found = retrieved(torch.from_numpy(scores), torch.from_numpy(y), torch.tensor(5))
    for c in range(4):
        assert float(found["ap"][c]) == pytest.approx(by_definition(scores[:, c], y == c))
        order = np.argsort(-scores[:, c])
        assert found["top"][c].tolist() == order[:10].tolist()
        for k, precision in zip((1, 5, 10), found["first"][c]):
            assert float(precision) == pytest.approx((y[order[:k]] == c).mean())
    for i in range(24):
        assert float(found["rank"][i]) == 1 + (scores[i] > scores[i, y[i]]).sum()


def test_equal_scores_come_in_an_order_by_chance() -> None:
    """Images lie class by class, so that an order that kept them so would find all of the first class at once."""
    y = torch.arange(4).repeat_interleave(25)
    found = [retrieved(torch.zeros(100, 4), y, torch.tensor(key)) for key in range(40)]
    mean = float(torch.stack([one["ap"] for one in found]).mean())
    assert mean == pytest.approx(chance(100, 25), abs=0.01)
    assert set(found[0]["rank"].tolist()) == {2.5}


@pytest.mark.parametrize(("n", "right"), [(5, 2), (6, 1), (4, 4)])
def test_chance_is_the_mean_over_all_orders(n: int, right: int) -> None:
    from itertools import permutations

    orders = torch.tensor([order for order in permutations([1] * right + [0] * (n - right))]).bool()
    assert chance(n, right) == pytest.approx(float(average_precision(orders.T).mean()))


def test_what_is_no_number_is_lost() -> None:
    scores = torch.randn(6, 2)
    scores[0, 0] = torch.nan
    assert retrieved(scores, torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor(0))["ap"].isnan().all()


def test_a_whole_split_is_retrieved() -> None:
    zero = Run(small("algo=protonet_zeroshot", "net=mlp", "protocol=retrieval"))
    episodes = zero.episodes("test", zero.protocols[0])
    assert (episodes.length, episodes.spec.way, episodes.spec.query, episodes.spec.shot) == (1, 10, 8, 0)
    few = Run(small("algo=protonet", "net=mlp", "protocol=retrieval"))
    episodes = few.episodes("val", few.protocols[0])
    assert (episodes.length, episodes.spec.way, episodes.spec.query, episodes.spec.shot) == (None, 10, 6, 2)
    run = Run(small("algo=protonet", "net=mlp", "protocol=retrieval", "episode.eval.shot=8"))
    with pytest.raises(UserError, match="shot=8 leaves no image of some class to be retrieved; choose shot < 8"):
        run.episodes("test", run.protocols[0])


def test_who_has_no_scores_to_compare_is_told() -> None:
    with pytest.raises(UserError, match="protocol=retrieval is not possible with algo=maml: it needs scores that mean the same"):
        Run(small("algo=maml", "net.hidden=8", "protocol=retrieval"))


@pytest.mark.parametrize(("algo", "n"), [("protonet_zeroshot", 10), ("protonet", 6)])
@pytest.mark.slow
def test_a_run_tells_of_it(algo: str, n: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"algo={algo}", "data=glyphs", "data.train_classes=8", "data.val_classes=6", "data.test_classes=10", "data.drawers=4"]
    values = small(*words, "net=mlp", "net.sizes=[8]", "protocol=[episodes,retrieval]", "trainer.iterations=1")
    train(values, tmp_path / "run")
    folder = tmp_path / "eval"
    folder.mkdir()
    logged = small(*words, "net=mlp", "net.sizes=[8]", "protocol=retrieval", "logger.pictures=true")
    summary = evaluate(logged, tmp_path / "run", "best", folder)
    assert (summary["metric"], summary["higher_is_better"]) == ("map", True)
    assert {*OF_IMAGES, *OF_CLASSES} <= set(summary["test"])
    assert summary["test"]["map"]["n"] == n
    ap = np.load(folder / "test_scores.npy")
    assert float(ap.mean()) == pytest.approx(summary["test"]["map"]["mean"])
    with Image.open(folder / "retrieval.png") as picture:
        assert picture.width > 400
    summary_table.show(summary, folder, ("test",))
    assert "from a class to images" in capsys.readouterr().out


def test_the_picture_frames_what_is_right() -> None:
    from metarun.protocols.retrieval import RIGHT, WRONG, figure

    run = Run(small("algo=protonet_zeroshot", "data=glyphs", "data.train_classes=8", "data.val_classes=6", "data.test_classes=4",
                    "data.drawers=4", "net.hidden=8", "net.norm=running", "protocol=retrieval"))  # fmt: skip
    episodes = run.episodes("test", run.protocols[0])
    y = episodes.query_y.numpy()
    top = np.stack([np.roll(np.arange(len(y)), -4 * c)[:10] for c in range(4)])[None]
    drawn = figure({"top": top, "ap": np.ones((1, 4))}, "", episodes)
    _, classes, rows = episodes.indices([0])
    names = [episodes.data.names[c] for c in classes[0]]
    for place, axes in enumerate(drawn.axes):
        label = sorted(range(4), key=names.__getitem__)[place // 10]
        which = top[0, label, place % 10]
        shown = np.asarray(axes.images[0].get_array())
        assert np.array_equal(shown, episodes.data.images[rows[0].reshape(-1)[which]][0].numpy())
        edge = matplotlib_hex(axes.spines["top"].get_edgecolor())
        assert edge == (RIGHT if y[which] == label else WRONG)


def matplotlib_hex(colour: tuple[float, ...]) -> str:
    from matplotlib.colors import to_hex

    return to_hex(colour)


def test_episodes_of_one_class_at_a_time_are_means_over_classes() -> None:
    arrays = {"ap": np.array([[0.2, 0.4]]), "first": np.zeros((1, 2, 3)), "rank": np.array([[1.0, 2.0, 2.0, 1.0]])}
    scores, curve = Retrieval().summarise(None, arrays)  # type: ignore[arg-type]
    assert curve == []
    assert (scores["map"]["mean"], scores["map"]["n"]) == (pytest.approx(0.3), 2)
    assert Retrieval().per_episode(arrays).tolist() == [0.2, 0.4], "as many as the summary says"
    assert scores["class_map"]["mean"] == pytest.approx(0.75)
    assert scores["class_hit_at_5"]["mean"] == 1
    assert scores["map_chance"]["mean"] == pytest.approx(chance(4, 2))
