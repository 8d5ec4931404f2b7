"""Episodes are a pure function of (seed, split, index): uniform, disjoint, hashed, and the same for ever."""

from __future__ import annotations

import hashlib
from itertools import permutations

import numpy as np
import pytest
import torch
from helpers import same

from metarun.config.compose import compose, resolve
from metarun.config.schema import validate
from metarun.data.episodes import ClassEpisodes, Split, choose, choose_others, draws, episode_keys
from metarun.errors import UserError
from metarun.problem import EpisodeSpec
from metarun.task import select

SPEC = EpisodeSpec(way=3, shot=2, query=3)
SEMI = EpisodeSpec(way=3, shot=1, query=2, unlabelled=3, distractors=2)


def split(classes: int = 7, images: int = 6) -> Split:
    """One-pixel images whose value is their own row number, so that an episode shows which images it holds."""
    n = classes * images
    rows = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1)
    return Split(rows, np.arange(classes) * images, np.full(classes, images), [f"class {i}" for i in range(classes)])


def episodes(spec: EpisodeSpec = SPEC, seed: int = 0, name: str = "train", **size: int) -> ClassEpisodes:
    return ClassEpisodes(split(**size), name, spec, seed)


def rows(x: torch.Tensor) -> torch.Tensor:
    """The row numbers that images show."""
    return (x * 255).round().long().flatten(1)


def chi_square_is_plausible(counts: np.ndarray) -> bool:
    """Pearson's statistic of equal probabilities, within 5 standard deviations of its mean."""
    expected, freedom = counts.sum() / counts.size, counts.size - 1
    return abs(((counts - expected) ** 2 / expected).sum() - freedom) < 5 * np.sqrt(2 * freedom)


def test_an_episode_does_not_depend_on_its_batch() -> None:
    source = episodes()
    together = source.batch([5, 0, 9])
    for position, index in enumerate([5, 0, 9]):
        assert same(select(together, position), select(source.batch([index]), 0))
    assert same(source.batch(range(3)), episodes().batch([0, 1, 2]))


def test_seed_split_and_index_each_change_the_episode() -> None:
    identities = [episodes(seed=seed, name=name).identity([index]) for seed in (0, 1) for name in ("train", "val") for index in (0, 1)]
    assert len(set(identities)) == len(identities)


def test_negative_and_huge_seeds_are_seeds_too() -> None:
    identities = {episodes(seed=seed).identity([0]) for seed in (-1, 0, 2**40, 2**62)}
    assert len(identities) == 4


def test_support_and_query_are_disjoint_and_labelled_by_class() -> None:
    tasks = episodes().batch(range(50))
    support, query = rows(tasks.context.support.x.flatten(2)[..., 0]), rows(tasks.query.x.flatten(2)[..., 0])
    for part, y in ((support, tasks.context.support.y), (query, tasks.query.y)):
        torch.testing.assert_close(part // 6, tasks.context.classes.gather(1, y))
    images = torch.cat([support, query], 1)
    assert all(len(set(episode.tolist())) == 3 * 5 for episode in images)
    assert all(len(set(classes.tolist())) == 3 for classes in tasks.context.classes)
    assert torch.equal(tasks.context.support.y[0], torch.tensor([0, 0, 1, 1, 2, 2]))


def test_ordered_classes_and_images_are_uniform() -> None:
    _, classes, images = episodes(EpisodeSpec(way=2, shot=1, query=1), classes=4, images=3).indices(range(6000))
    assert chi_square_is_plausible(np.unique(classes @ [4, 1], return_counts=True)[1])
    ordered_images = (images - 3 * classes[..., None]) @ [3, 1]
    for label in (0, 1):
        counts = np.unique(ordered_images[:, label], return_counts=True)[1]
        assert len(counts) == 6
        assert chi_square_is_plausible(counts)


@pytest.mark.parametrize(("n", "k"), [(4, 2), (4, 3), (3, 3), (5, 1)])
def test_choose_is_uniform_over_ordered_samples(n: int, k: int) -> None:
    uniform = draws(episode_keys(0, "test", range(12_000)), 1, (2 * k,))
    counts = {sample: 0 for sample in permutations(range(n), k)}
    for sample in choose(uniform, n, k).tolist():
        counts[tuple(sample)] += 1
    assert chi_square_is_plausible(np.array(list(counts.values())))


@pytest.mark.parametrize(("n", "k", "taken"), [(5, 2, [3]), (6, 3, [5, 0, 2]), (4, 2, [])])
def test_choose_others_is_uniform_over_ordered_samples_of_what_is_left(n: int, k: int, taken: list[int]) -> None:
    uniform = draws(episode_keys(0, "test", range(12_000)), 1, (2 * k,))
    counts = {sample: 0 for sample in permutations([i for i in range(n) if i not in taken], k)}
    for sample in choose_others(uniform, n, k, np.broadcast_to(np.array(taken, np.int64), (12_000, len(taken)))).tolist():
        counts[tuple(sample)] += 1
    assert chi_square_is_plausible(np.array(list(counts.values())))


def test_unlabelled_images_are_of_the_classes_and_of_distractors_and_of_no_other_part() -> None:
    tasks = episodes(SEMI).batch(range(50))
    assert tasks.context.unlabelled.shape == (50, (3 + 2) * 3, 1, 1, 1)
    support, query, unlabelled = (rows(x.flatten(2)[..., 0]) for x in (tasks.context.support.x, tasks.query.x, tasks.context.unlabelled))
    for one, two, three, classes in zip(support.tolist(), query.tolist(), unlabelled.tolist(), tasks.context.classes.tolist()):
        assert len({*one, *two, *three}) == 3 * 3 + 5 * 3  # all of them different images
        found = np.bincount(np.array(three) // 6, minlength=7)
        assert (found[classes] == 3).all()
        assert sorted(np.delete(found, classes)) == [0, 0, 3, 3]  # two classes that the learner is not asked about


def test_unlabelled_images_are_in_random_order() -> None:
    """Their order must not tell their classes."""
    source = episodes(SEMI)
    keys, classes, images = source.indices(range(6000))
    first = source.unlabelled(keys, classes, images)[:, 0] // 6
    label = np.where(first[:, None] == classes, np.arange(3), 3).min(1)
    *known, foreign = np.bincount(label)
    assert chi_square_is_plausible(np.array(known))
    assert abs(foreign / 6000 - 2 / 5) < 5 * np.sqrt(0.4 * 0.6 / 6000)


@pytest.mark.parametrize("more", [{"unlabelled": 1}, {"unlabelled": 3, "distractors": 4}])
def test_asking_for_unlabelled_images_leaves_support_and_query_as_they_are(more: dict[str, int]) -> None:
    plain, semi = episodes(EpisodeSpec(way=3, shot=1, query=2)), episodes(EpisodeSpec(way=3, shot=1, query=2, **more))
    task, other = plain.batch(range(5)), semi.batch(range(5))
    assert same(task, other._replace(context=other.context._replace(extras={})))
    assert plain.sha256(5) != semi.sha256(5)
    assert same(select(semi.batch([3, 7]), 1), select(semi.batch([7]), 0))
    assert not same(semi.batch([0]), episodes(semi.spec, seed=1).batch([0]))


def test_more_distractors_leave_the_known_classes_unlabelled_images_as_they_are() -> None:
    def own(distractors: int) -> list[set[int]]:
        spec = EpisodeSpec(way=3, shot=1, query=2, unlabelled=2, distractors=distractors)
        keys, classes, images = episodes(spec).indices(range(20))
        found = episodes(spec).unlabelled(keys, classes, images)
        return [{row for row in one if row // 6 in known} for one, known in zip(found.tolist(), classes.tolist())]

    assert own(0) == own(4)


def test_an_episode_without_unlabelled_images_has_none() -> None:
    context = select(episodes().batch([0]), 0).context
    assert context.extras == {}
    assert context.unlabelled.shape == (0, 1, 1, 1)


def test_classes_of_an_episode_are_of_one_group_that_has_enough_each_as_likely() -> None:
    groups = np.array([2, 0, 2, 5, 0, 2, 2])
    data = split()._replace(groups=groups)
    source = ClassEpisodes(data, "train", EpisodeSpec(way=2, shot=1, query=1), 0)
    _, classes, _ = source.indices(range(4000))
    assert (groups[classes[:, 0]] == groups[classes[:, 1]]).all()
    assert chi_square_is_plausible(np.bincount(groups[classes[:, 0]])[[0, 2]])
    for group, pairs in ((0, 2), (2, 12)):  # ordered
        found = np.unique(classes[groups[classes[:, 0]] == group], axis=0, return_counts=True)[1]
        assert len(found) == pairs
        assert chi_square_is_plausible(found)


def test_distractors_are_of_the_same_group() -> None:
    groups = np.array([0, 1] * 5)
    source = ClassEpisodes(split(classes=10)._replace(groups=groups), "train", SEMI, 0)
    keys, classes, known = source.indices(range(200))
    foreign = source.unlabelled(keys, classes, known) // 6
    of_one = np.concatenate([classes, foreign], 1)
    assert (groups[of_one] == groups[of_one[:, :1]]).all()
    assert all(len(set(classes)) == 5 for classes in of_one)


def test_no_group_with_enough_classes_is_refused() -> None:
    with pytest.raises(UserError, match="way=3 is larger than the 2 classes of the largest group of classes in the test split"):
        ClassEpisodes(split(classes=4)._replace(groups=np.array([0, 1, 1, 0])), "test", SPEC, 0)


def test_draws_are_uniform_and_streams_are_independent() -> None:
    keys = episode_keys(3, "val", range(2000))
    first, second = draws(keys, 1, (5,)), draws(keys, 2, (5,))
    assert chi_square_is_plausible(np.histogram(first, bins=50, range=(0, 1))[0])
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 4 / np.sqrt(first.size)
    assert first.min() >= 0
    assert first.max() < 1
    np.testing.assert_array_equal(draws(keys, 1, (3,)), first[:, :3])  # asking for more leaves the first ones alone


def test_keys_of_episodes_differ_from_each_other_and_do_not_depend_on_the_batch() -> None:
    keys = episodes().batch(range(1000)).context.key
    assert len(set(keys.tolist())) == 1000
    assert torch.equal(episodes().batch([500]).context.key[0], keys[500])


def test_the_stream_of_episodes_never_changes() -> None:
    """A lock: if this fails, earlier runs can no longer be compared with new ones. Mend the sampler, not the hashes."""
    source = episodes(seed=123, name="test")
    assert hashlib.sha256(source.identity(range(10))).hexdigest() == GOLDEN_EPISODES
    assert source.sha256(10) == GOLDEN_HASH
    tasks = source.batch(range(10))
    content = b"".join(part.numpy().tobytes() for part in (tasks.context.key, tasks.context.support.x, tasks.query.x, tasks.query.y))
    assert hashlib.sha256(content).hexdigest() == GOLDEN_CONTENT


GOLDEN_EPISODES = "db495214a0907e5dc86fd406793f14cd73fe04e64e6b06ceecbf9eec018360cd"
GOLDEN_HASH = "66af66e798c1c3c2c9ae9f91d0a6c57cdf28d265a489ca4ce159e6d54155ae4a"
GOLDEN_CONTENT = "a4f0ffcf270b7ae2c12b18a5aecd0de4c50bf061a830b9d2bc115179bda09276"


def test_the_hash_does_not_depend_on_the_block_size_but_on_every_episode() -> None:
    source = episodes()
    assert len({source.sha256(100, block) for block in (1, 7, 100, 1000)}) == 1
    assert source.sha256(100) != source.sha256(99)
    assert source.sha256(100) != episodes(seed=1).sha256(100)


def test_the_hash_covers_the_pixels_the_grouping_and_the_attributes_but_not_the_names() -> None:
    """Equal indices into other data are other episodes."""
    data = split()
    pixel = data.images.clone()
    pixel[-1] += 1
    others = [
        data._replace(images=pixel),
        data._replace(counts=np.array([*data.counts[:-1], 5])),
        data._replace(attributes=torch.zeros(7, 2)),
        data._replace(attributes=torch.ones(7, 2)),
    ]
    hashes = {ClassEpisodes(other, "train", SPEC, 0).sha256(1) for other in (data, *others)}
    assert len(hashes) == 5
    renamed = data._replace(names=[f"other {i}" for i in range(7)])
    assert ClassEpisodes(renamed, "train", SPEC, 0).sha256(1) == episodes().sha256(1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (EpisodeSpec(way=8, shot=1, query=1), "way=8 is larger than the 7 classes of the train split; choose way <= 7"),
        (
            EpisodeSpec(way=2, shot=4, query=3),
            r"shot=4 \+ query=3 = 7 images per class, but class 'class 0' .* has 6; choose shot \+ query <= 6",
        ),
        (
            EpisodeSpec(way=5, shot=1, query=1, unlabelled=1, distractors=3),
            r"way=5 \+ distractors=3 = 8 is larger than the 7 classes of the train split; choose way \+ distractors <= 7",
        ),
        (
            EpisodeSpec(way=2, shot=1, query=2, unlabelled=4),
            r"shot=1 \+ query=2 \+ unlabelled=4 = 7 images per class, but .* has 6; choose shot \+ query \+ unlabelled <= 6",
        ),
        (EpisodeSpec(way=2, shot=1, query=2, distractors=1), "distractors=1 are classes of unlabelled images, but unlabelled=0; choose"),
    ],
)
def test_impossible_requests_are_refused_with_the_numbers(spec: EpisodeSpec, message: str) -> None:
    with pytest.raises(UserError, match=message):
        episodes(spec)


def test_requests_at_the_limit_are_served() -> None:
    tasks = episodes(EpisodeSpec(way=7, shot=1, query=5)).batch([0])
    assert sorted(tasks.context.classes[0].tolist()) == list(range(7))
    assert episodes(EpisodeSpec(way=4, shot=1, query=1, unlabelled=4, distractors=3)).batch([0]).context.unlabelled.shape[1] == 28


def test_the_class_that_is_too_small_is_the_one_named() -> None:
    data = split()._replace(counts=np.array([6, 6, 6, 4, 6, 6, 6]))
    with pytest.raises(UserError, match="class 'class 3' of the val split has 4"):
        ClassEpisodes(data, "val", SPEC, 0)


def unequal(spec: EpisodeSpec, *counts: int) -> ClassEpisodes:
    """Episodes of classes of so many images, whose values are their row numbers."""
    sizes = np.array(counts)
    images = torch.arange(sizes.sum(), dtype=torch.uint8).view(-1, 1, 1, 1)
    return ClassEpisodes(Split(images, sizes.cumsum() - sizes, sizes, [f"class {i}" for i in range(len(sizes))]), "train", spec, 0)


@pytest.mark.parametrize("unlabelled", [0, 1])
def test_uneven_supports_keep_their_size_and_stay_within_their_classes(unlabelled: int) -> None:
    spec = EpisodeSpec(way=3, shot=3, query=2, unlabelled=unlabelled, uneven=True)
    source = unequal(spec, 4, 6, 9, 12)
    tasks = source.batch(range(200))
    (x, y), query = tasks.context.support, tasks.query
    assert y.shape == (200, 9)
    assert (y.diff() >= 0).all(), "grouped by class"
    shots = torch.stack([(y == c).sum(1) for c in range(3)], 1)
    counts = torch.from_numpy(source.data.counts)[tasks.context.classes]
    assert (shots >= 1).all()
    assert (shots <= counts - 2 - unlabelled).all()
    assert (shots == counts - 2 - unlabelled).any(), "a class may give all it has"
    assert len(shots.unique(dim=0)) > 5
    owner = torch.repeat_interleave(torch.arange(4), torch.from_numpy(source.data.counts))
    seen = [(rows(x), y), (rows(query.x), query.y)]
    for images, labels in seen:
        torch.testing.assert_close(owner[images.squeeze(-1).view(200, -1)], tasks.context.classes.gather(1, labels))
    everything = torch.cat([x.flatten(1), query.x.flatten(1), tasks.context.extras.get("unlabelled", x[:, :0]).flatten(1)], 1)
    assert all(len(episode.unique()) == 9 + 6 + 3 * unlabelled for episode in everything)
    for position in (0, 7):
        assert same(select(tasks, position), select(source.batch([position]), 0))


def test_the_further_images_of_uneven_supports_are_drawn_from_all_that_the_classes_have_left() -> None:
    tasks = unequal(EpisodeSpec(way=2, shot=2, query=1, uneven=True), 3, 5).batch(range(4000))
    smaller = tasks.context.support.y == tasks.context.classes.argmin(1, keepdim=True)
    # Beside a query and a first image there are 1 and 3 left, of which 2 are drawn.
    frequency = float((smaller.sum(1) == 2).double().mean())
    assert abs(frequency - 1 / 2) < 5 * np.sqrt(1 / 4 / 4000)
    assert int(smaller.sum(1).max()) == 2


def test_uneven_supports_of_one_image_per_class_are_even_ones() -> None:
    one, spec = EpisodeSpec(way=3, shot=1, query=2), EpisodeSpec(way=3, shot=1, query=2, uneven=True)
    assert same(episodes(one).batch(range(5)), episodes(spec).batch(range(5)))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((2, 9, 9), r"query=2 images per class and one of support, but class 'class 0' of the train split has 2; choose query <= 1"),
        ((4, 5, 5), r"shot=3 \+ query=2 = 5 images per class are 15 in an episode, but the 3 smallest .* have 14; choose .* <= 4"),
    ],
)
def test_uneven_supports_for_which_there_are_too_few_images_are_refused(counts: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        unequal(EpisodeSpec(way=3, shot=3, query=2, uneven=True), *counts)
    unequal(EpisodeSpec(way=3, shot=3, query=2, uneven=True), 3, 6, 6)


def test_uneven_supports_are_refused_where_there_are_no_classes() -> None:
    values = resolve(compose(["data=sinusoid", "net=mlp", "way=1", "episode.uneven=true"]))
    with pytest.raises(UserError, match=r"^episode\.train\.uneven=true is not possible: data=sinusoid has no classes; leave it at false$"):
        validate(values)
