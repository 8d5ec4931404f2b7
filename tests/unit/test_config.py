"""Validation: every section against the signature of what it configures, each mistake in one line that says how to mend it."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from helpers import composed

from metarun.config import legacy
from metarun.config.compose import compose, override, resolve
from metarun.config.schema import schema, target_of, validate
from metarun.errors import UserError
from metarun.problem import EpisodeSpec

VALUES = resolve(compose([]))


def changed(key: str, value: Any) -> dict[str, Any]:
    """The default configuration with one key set."""
    values = copy.deepcopy(VALUES)
    section = values
    *path, last = key.split(".")
    for name in path:
        section = section[name]
    section[last] = value
    return values


def without(key: str) -> dict[str, Any]:
    values = copy.deepcopy(VALUES)
    section, _, last = key.rpartition(".")
    del (values[section] if section else values)[last]
    return values


def complaint(values: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        validate(values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_validation_returns_values_and_two_episode_shapes() -> None:
    valid = validate(VALUES)
    assert valid.train == valid.eval == EpisodeSpec(way=5, shot=1, query=15)
    assert valid.trainer.values["iterations"] == VALUES["trainer"]["iterations"]
    assert "_target_" not in valid.algo.values
    assert "name" not in valid.net.values


def test_training_and_evaluation_may_differ_in_unlabelled_images_and_distractors() -> None:
    words = ["episode.unlabelled=5", "episode.distractors=2", "episode.eval.unlabelled=4", "query=1"]
    valid = validate(resolve(compose(words)))
    assert valid.train == EpisodeSpec(way=5, shot=1, query=1, unlabelled=5, distractors=2)
    assert valid.eval == EpisodeSpec(way=5, shot=1, query=1, unlabelled=4, distractors=2)


@pytest.mark.parametrize("word", ["way=4", "episode.way=4", "episode.unlabelled=4", "episode.distractors=4"])
def test_the_shape_of_episodes_given_to_a_finished_run_is_that_of_evaluation(word: str) -> None:
    found = override(VALUES, [word])["episode"]
    assert found["train"] == VALUES["episode"]["train"]
    assert found["eval"] == VALUES["episode"]["eval"] | {word.removeprefix("episode.").partition("=")[0]: 4}


def test_a_finished_run_takes_keys_that_its_method_has_got_since() -> None:
    values = composed("algo=protonet")
    old = values | {"algo": {key: value for key, value in values["algo"].items() if key not in ("views", "matching")}}
    assert override(old, ["algo.views=3"])["algo"] == old["algo"] | {"views": 3}
    with pytest.raises(UserError, match=r"unknown key 'algo\.view'"):
        override(old, ["algo.view=3"])
    other = old | {"algo": old["algo"] | {"_target_": "mine.ProtoNet"}}
    with pytest.raises(UserError, match=r"unknown key 'algo\.views'"):
        override(other, ["algo.views=3"])


def test_regression_has_no_unlabelled_images() -> None:
    values = resolve(compose(["data=sinusoid", "net=mlp", "episode.train.unlabelled=2"]))
    assert complaint(values) == "episode.train.unlabelled=2 is not possible: data=sinusoid has no images"


MISSPELT = ["algo.inner_lrr", "data.drawerz", "net.hiden", "optim.lrr", "trainer.iteration", "logger.evry", "engine.chunks"]
NOT_TEXTS = ["algo.inner_lr", "data.size", "net.hidden", "optim.lr", "trainer.iterations", "logger.every", "engine.map", "seed"]
OUT_OF_RANGE = {
    "algo.inner_lr": -1.0,
    "algo.inner_steps": -1,
    "net.hidden": 0,
    "optim.momentum": 1.0,
    "optim.warmup": 1.5,
    "trainer.meta_batch": 0,
    "trainer.max_minutes": 0.0,
    "engine.chunk": 0,
    "episode.train.shot": 0,
    "episode.eval.unlabelled": -1,
    "episode.distractors": -1,
    "way": 0,
    "shot": 0,
    "seed": -1,
    "precision": "fp16",
}
OF_ANOTHER_TYPE = {"trainer.iterations": True, "algo.first_order": 1, "trainer.meta_batch": 10.5, "net.hidden": None}


@pytest.mark.parametrize("key", MISSPELT)
def test_an_unknown_key_is_named_with_the_nearest_one(key: str) -> None:
    section = key.partition(".")[0]
    message = complaint(changed(key, 1))
    assert message.startswith(f"unknown key {key}; did you mean '")
    assert f"known: {section}." in message


@pytest.mark.parametrize("key", NOT_TEXTS)
def test_a_wrong_type_is_refused_in_every_section(key: str) -> None:
    assert complaint(changed(key, "abc")).startswith(f"{key}=abc is not possible: it should be ")


@pytest.mark.parametrize(("key", "value"), OUT_OF_RANGE.items())
def test_a_value_out_of_range_is_refused(key: str, value: Any) -> None:
    assert complaint(changed(key, value)).startswith(f"{key}={value} is not possible: it should be ")


@pytest.mark.parametrize(("key", "value"), OF_ANOTHER_TYPE.items())
def test_types_are_not_guessed(key: str, value: Any) -> None:
    assert f"{key}=" in complaint(changed(key, value))


@pytest.mark.parametrize(("key", "value"), [("algo.inner_lr", 1), ("trainer.patience", None), ("trainer.patience", 3), ("engine.chunk", 4)])
def test_alternatives_are_accepted(key: str, value: Any) -> None:
    validate(changed(key, value))


def test_a_misspelt_choice_gets_the_nearest_one() -> None:
    assert "did you mean 'cosine'?" in complaint(changed("optim.schedule", "cosin"))


@pytest.mark.parametrize("key", ["algo.inner_lr", "optim.lr", "seed"])
def test_a_missing_key_is_named(key: str) -> None:
    assert complaint(without(key)) == f"{key} is missing from the configuration"


@pytest.mark.parametrize("section", ["algo", "trainer", "episode"])
def test_a_missing_section_is_named(section: str) -> None:
    assert section in complaint(without(section))


@pytest.mark.parametrize("part", ["train", "eval"])
def test_one_way_is_no_classification(part: str) -> None:
    assert "telling classes apart needs way >= 2" in complaint(changed(f"episode.{part}.way", 1))
    validate(resolve(compose(["data=sinusoid", "net=mlp", "way=1"])))


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpuu"])
def test_a_device_that_is_none_is_refused(device: str) -> None:
    assert complaint(changed("device", device)).startswith(f"device={device} is not a device")


@pytest.mark.parametrize(
    "target", ["os.system", "subprocess.run", "metarun.cli.main.main", "metarun.algorithm.Algorithm", "metarun.algosx.Y"]
)
def test_a_configuration_cannot_name_other_peoples_code(target: str) -> None:
    with pytest.raises(UserError, match="is refused: only classes below metarun"):
        target_of(changed("algo._target_", target), "algo")
    assert "is refused" in complaint(changed("algo._target_", target))


@pytest.mark.parametrize("target", ["metarun.algos.mamll.MAML", "metarun.algos.gradient.maml.MAMML"])
def test_a_target_that_does_not_exist_is_refused(target: str) -> None:
    assert complaint(changed("algo._target_", target)) == f"algo._target_={target} does not exist in this version of metarun"


@pytest.mark.parametrize(
    "target",
    ["metarun.algos.gradient.reptile.Tensor", "metarun.algos.gradient.reptile.inner", "metarun.algos.metric.protonet.PrototypeLearner"],
)
def test_a_target_must_be_a_concrete_class_of_its_kind(target: str) -> None:
    """What a module of ours has imported is not for a configuration to run."""
    with pytest.raises(UserError, match="is refused"):
        target_of(changed("algo._target_", target), "algo")


class Above:
    def __init__(self, net: object, *, width: int, depth: int) -> None: ...


class Below(Above):
    def __init__(self, net: object, *, rate: float, **settings: Any) -> None: ...


class Alone(Above):
    def __init__(self, net: object, *, rate: float) -> None: ...


def test_a_section_holds_what_the_constructor_takes_and_what_it_hands_on() -> None:
    fields = {target: set(schema(target).model_fields) for target in (Above, Below, Alone)}
    assert fields == {Above: {"width", "depth"}, Below: {"width", "depth", "rate"}, Alone: {"rate"}}


def test_a_configuration_of_today_stays_as_it_is_to_the_order_of_its_keys() -> None:
    values = resolve(compose(["algo=protonet"]))
    assert json.dumps(legacy.updated(values)) == json.dumps(values)
    earlier = {"episode": {"way": 5, "eval": {"way": 5}}}
    assert legacy.updated(earlier) == {"episode": {"way": 5, "unknown": 0, "eval": {"way": 5, "unknown": 0}}}


def test_equal_configurations_are_equal_when_they_are_checked() -> None:
    first, again = (validate(resolve(compose(["algo=emaml"]))) for _ in range(2))
    assert first == again
    assert first.algo != validate(resolve(compose(["algo=emaml", "algo.member.inner_lr=0.3"]))).algo
