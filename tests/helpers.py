"""Builders that the tests share: small runs composed from conf/, toy data, tasks in float64, meta-gradients as vectors."""

from __future__ import annotations

import json
import pickle
import re
import signal
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from metarun.abilities import Searches
from metarun.algorithm import Algorithm
from metarun.config.compose import compose, resolve
from metarun.config.options import files, groups
from metarun.config.schema import target_of
from metarun.contract.measures import double, engine, in_float64, meta_gradient, relative_error, slopes
from metarun.data.base import ImageDataset
from metarun.data.episodes import Split
from metarun.data.nas201 import SearchTable
from metarun.data.slots import Slots
from metarun.errors import MissingLibrary, UserError
from metarun.extensions.sources import Source, sources
from metarun.nets.base import Net
from metarun.nets.conv import Conv
from metarun.nets.conv4 import Block
from metarun.nets.norm import Norm, NormKind
from metarun.nets.pretrained import Pretrained
from metarun.optim import MetaOptimizer
from metarun.problem import Classification, EpisodeSpec, Problem
from metarun.run import Run
from metarun.task import Batch, Context, Task

__all__ = ["double", "engine", "in_float64", "meta_gradient", "relative_error", "slopes"]  # for the tests, which find all they share here

torch.set_num_threads(1)

SIDE = 16  # pixels of a toy image
TIMING = {"wall_s", "tasks_per_s", "peak_memory_mb"}  # of a summary: what may differ between two equal runs


@cache
def patterns(classes: int, images: int, seed: int) -> Split:
    """Two-channel images: the class is a coarse pattern in the first channel, a stronger one in the second means nothing.

    Telling the classes apart takes a learner that has found out which channel to look at. Their attributes are the pattern's sixteen signs.
    """
    rng = np.random.default_rng(seed)

    def coarse(*shape: int) -> np.ndarray:
        return rng.choice([-1.0, 1.0], (*shape, 4, 4)).repeat(SIDE // 4, -1).repeat(SIDE // 4, -2)

    meaning = coarse(classes, 1)
    signal = np.broadcast_to(meaning, (classes, images, SIDE, SIDE))
    pixels = 127 + np.stack([25 * signal, 75 * coarse(classes, images)], 2) + 10 * rng.standard_normal((classes, images, 2, SIDE, SIDE))
    starts = np.arange(classes, dtype=np.int64) * images
    rows = torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)).flatten(0, 1)
    attributes = torch.from_numpy(meaning[..., :: SIDE // 4, :: SIDE // 4].reshape(classes, -1).astype(np.float32))
    return Split(rows, starts, np.full(classes, images), [f"pattern {i}" for i in range(classes)], attributes)


class Patterns(ImageDataset):
    """``patterns`` as a dataset, known to configurations as ``metarun.data.toy.Patterns``."""

    def __init__(self, seed: int) -> None:
        super().__init__({"train": patterns(40, 8, 1), "val": patterns(10, 8, 2), "test": patterns(10, 8, 3)})


sys.modules["metarun.data.toy"] = sys.modules[__name__]
TOY = {"_target_": "metarun.data.toy.Patterns", "name": "patterns"}


class Identity(Net):
    """A backbone whose features are its inputs."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features, self.norm = features, "none"

    def layers(self, x: Tensor, n_support: int | None) -> Tensor:
        return x


def capped(value: Any, largest: int) -> Any:
    """Nested config values with no integer above ``largest``."""
    if isinstance(value, dict):
        return {key: capped(inner, largest) for key, inner in value.items()}
    if isinstance(value, list):
        return [capped(inner, largest) for inner in value]
    return min(value, largest) if isinstance(value, int) and not isinstance(value, bool) else value


@cache
def _files(_: tuple[Source, ...]) -> dict[str, dict[str, Path]]:
    return files()


@cache
def _by_hydra(words: tuple[str, ...], _: tuple[Source, ...]) -> DictConfig:
    whole = compose(list(words))
    kept = OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])  # Hydra's own part is as long as the rest
    OmegaConf.set_struct(kept, True)
    return kept


@cache
def _section(word: str, among: tuple[Source, ...]) -> Any:
    """Of a word that chooses an option, the section that it fills; None: it does more than that."""
    group, _, option = word.partition("=")
    path = _files(among).get(group, {}).get(option)
    if group == "experiment" or path is None or path.read_text(encoding="utf-8").startswith("# @package"):
        return None
    section = OmegaConf.load(path)
    return _by_hydra((word,), among)[group] if "defaults" in section else section


@cache
def _chosen(words: tuple[str, ...], among: tuple[Source, ...]) -> bytes:
    # Hydra takes its time for every choice: it composes the defaults once for all, and sections take the place of theirs.
    sections = {word.partition("=")[0]: _section(word, among) for word in words}
    if not (sections and all(sections.values())):
        return pickle.dumps(_by_hydra(words, among))
    config = pickle.loads(_chosen((), among))
    for group, section in sections.items():
        config[group] = section
    return pickle.dumps(config)


@cache
def _composed(words: tuple[str, ...], among: tuple[Source, ...]) -> bytes:
    values = [word for word in words if re.match(r"[\w.]+=", word) and word.partition("=")[0] not in {*_files(among), "experiment"}]
    config = pickle.loads(_chosen(tuple(word for word in words if word not in values), among))
    try:
        for override in OverridesParser.create().parse_overrides(values):
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True)
    except (HydraException, OmegaConfBaseException):  # a word that cannot be: metarun says why
        return pickle.dumps(resolve(compose(list(words))))
    return pickle.dumps(resolve(config))


def composed(*words: str) -> dict[str, Any]:
    """The resolved configuration of these words as Hydra would compose it, in a fraction of its time; the caller's own to change."""
    values: dict[str, Any] = pickle.loads(_composed(words, tuple(sources())))  # many times as fast as deepcopy
    return values


def small(*words: str) -> dict[str, Any]:
    """A resolved config of a tiny run: command-line words, then narrow nets, few steps, toy images unless ``data=`` is given.

    In one chunk, as what a chunk costs beside its arithmetic is most of what such a run costs.
    """
    defaults = ["way=3", "shot=2", "query=2", "device=cpu", "logger=quiet", "trainer.iterations=6", "trainer.meta_batch=2"]
    defaults += ["trainer.val_every=2", "trainer.val_episodes=4", "trainer.test_episodes=6", "logger.every=2", "engine.chunk=20"]
    values = composed(*defaults, *alternatives(words), *words)
    if not any(word.startswith("data=") for word in words):
        values["data"] = TOY
    values["net"], values["algo"] = capped(values["net"], 24), capped(values["algo"], 16)
    if not any(word.startswith("net.operations=") for word in words):
        values["net"] = changed(values["net"], operations=["none", "skip", "conv3"])
    values["algo"] = changed(values["algo"], inner_steps=2, test_steps=3, cg_steps=2)
    return values


def changed(section: dict[str, Any], **values: Any) -> dict[str, Any]:
    """A section with these values wherever it has such keys, in a member of an ensemble as well."""
    return {key: changed(value, **values) if isinstance(value, dict) else values.get(key, value) for key, value in section.items()}


def alternatives(words: Sequence[str]) -> list[str]:
    """For a method that chooses between the alternatives of a net: such a net, unless the words say another."""
    algo = next((word.removeprefix("algo=") for word in words if word.startswith("algo=")), "maml")
    return ["net=cell"] if issubclass(class_of(algo), Searches) and not any(word.startswith("net=") for word in words) else []


Builder = Callable[..., dict[str, Any]]


def classification(algo: str, *words: str) -> dict[str, Any]:
    """A resolved config of a tiny run on the toy images."""
    return small(f"algo={algo}", "net.hidden=8", *words)


def regression(algo: str, *words: str) -> dict[str, Any]:
    """A resolved config of a tiny run on sine waves, with an inner learning rate that suits them."""
    values = small("data=sinusoid", "net=mlp", "way=1", "shot=5", "query=5", f"algo={algo}", *words)
    values["algo"] = changed(values["algo"], inner_lr=0.01)
    return values


def quadratics(*words: str) -> dict[str, Any]:
    """A resolved config of a tiny run on functions of three numbers, by the LSTM optimizer in 3 meta-updates of 2 steps, or by another."""
    few = ["data.size=3", "trainer.iterations=7", "trainer.meta_batch=4", "trainer.val_every=3"]
    few += [] if any(word.startswith("optim=") for word in words) else ["optim.lr=0.01"]
    few += ["trainer.val_episodes=4", "trainer.test_episodes=4", "device=cpu", "logger=quiet", "engine.chunk=20"]
    if any(word.startswith("algo=") for word in words):
        return composed("experiment=quadratics", *few, *words)
    few += ["algo.hidden=4", "algo.inner_steps=2", "algo.horizon=6", "algo.test_steps=6"]
    return composed("experiment=quadratics_lstm", *few, *words)


def control(algo: str, *words: str) -> dict[str, Any]:
    """A resolved config of a tiny run on 2-D navigation: few, short trajectories."""
    return small("data=navigation2d", "data.horizon=5", "net=mlp", "way=1", "shot=4", "query=4", f"algo={algo}", *words)


def bandits(algo: str, *words: str) -> dict[str, Any]:
    """A resolved config of a tiny run on bandits: few pulls of three arms."""
    return small("data=bandits", "data.horizon=6", "data.arms=3", "net=mlp", "way=1", "shot=3", "query=4", f"algo={algo}", *words)


def nodes(algo: str, *words: str) -> dict[str, Any]:
    """A resolved config of a tiny run on the made-up graph."""
    return small("data=graph", "data.size=8", "net=mlp", "way=1", f"algo={algo}", *words)


class Letters(SearchTable):
    """A made-up table of searches, known to configurations as ``metarun.data.toy.Letters``: words of 4 decisions among 3, 2, 4 and 3."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(0)
        merit = sum(np.ix_(*(rng.normal(size=options) for options in (3, 2, 4, 3)))).ravel()
        validation = 0.5 + 0.1 * merit
        super().__init__((3, 2, 4, 3), validation, validation + 0.02 * rng.normal(size=72))


def search(algo: str, *words: str) -> dict[str, Any]:
    """A resolved config of a tiny run of searches in a made-up table."""
    values = small("net=mlp", "net.sizes=[]", f"algo={algo}", *words)
    return values | {"data": {"_target_": "metarun.data.toy.Letters", "name": "letters"}}


def attempt(values: dict[str, Any]) -> Algorithm | UserError:
    """What metarun builds of this configuration, or why it refuses it."""
    try:
        return Run(values).algorithm
    except UserError as refusal:
        return refusal


def possible(tried: Algorithm | UserError) -> bool:
    """Whether an attempt worked, or would have if metarun had the library for it."""
    return isinstance(tried, (Algorithm, MissingLibrary))


def accepts(values: dict[str, Any]) -> bool:
    """Whether metarun builds this configuration, or would if it had the library for it, or refuses it."""
    return possible(attempt(values))


def deep(net: str) -> bool:
    """Whether a net repeats its norm so often that one kind is enough, and takes its time."""
    return sum(isinstance(module, Norm) for module in Run(small(f"net={net}", "net.norm=batch")).algorithm.modules()) > 4


def norms_of(net: str) -> list[str]:
    """The norms to try a net with: all that it accepts, but of a deep one the default."""
    values = small(f"net={net}")
    if deep(net):
        return [values["net"]["norm"]]
    return [norm for norm in get_args(NormKind) if accepts({**values, "net": {**values["net"], "norm": norm}})]


@cache
def class_of(algo: str) -> type[Algorithm]:
    """The class of an option."""
    return target_of({"algo": _section(f"algo={algo}", tuple(sources()))}, "algo")


# Found, not listed: whatever conf/ offers and metarun does not refuse.
# net=module needs a module; backbones trained by others are as deep as their libraries make them, and have tests of their own.
ALGORITHMS = groups()["algo"]
OWN_NETS = [net for net in groups()["net"] if not issubclass(target_of(composed(f"net={net}"), "net"), Pretrained)]
NETS = [net for net in OWN_NETS if accepts(small(f"net={net}"))]
MIXTURES = {net for net in NETS if Run(small(f"net={net}")).algorithm.net.architecture}
# By the name of the kind of problem.
BUILDERS: dict[str, Builder] = {build.__name__: build for build in (classification, regression, control, bandits, search)}
BUILDERS["node classification"] = nodes
# What no method declares is not tried here, which would take a while; a test asks that it is refused.
TRIED = {
    (algo, problem): attempt(problem(algo)) for algo in ALGORITHMS for kind, problem in BUILDERS.items() if kind in class_of(algo).kinds
}
MISSING = {algo: str(tried) for (algo, _), tried in TRIED.items() if isinstance(tried, MissingLibrary)}  # conftest.py skips their tests
NETS_WITH_NORMS = [(net, norm) for net in NETS for norm in norms_of(net)]
# Of each method, the first kind of problem that it solves; `make test-all` tries the others too.
FIRST = {algo: problem for (algo, problem), tried in reversed(TRIED.items()) if possible(tried)}
PROBLEMS = [
    pytest.param(algo, problem, id=f"{algo}-{problem.__name__}", marks=[] if problem is FIRST[algo] else pytest.mark.slow)
    for (algo, problem), tried in TRIED.items()
    if possible(tried)
]
CLASSIFIERS = [param.values[0] for param in PROBLEMS if param.values[1] is classification]
# The others have nothing to meta-train; a method whose library is missing would have.
LEARNERS = [param for param in PROBLEMS if getattr(TRIED[param.values], "learns", True)]
LEARNING_CLASSIFIERS = [param.values[0] for param in LEARNERS if param.values[1] is classification]


@cache
def suits(algo: str, norm: str) -> bool:
    """Whether a classifier goes with a norm; ``support`` and ``running`` are not for every method."""
    return norm not in ("support", "running") or accepts(classification(algo, f"net.norm={norm}"))


def nets_for(algo: str) -> list[str]:
    """The nets that a method goes with."""
    return [net for net in NETS if net in MIXTURES or not issubclass(class_of(algo), Searches)]


@cache
def turn(algo: str) -> tuple[str, str]:
    """The net and the norm with which `make test` tries a method: by turns from method to method."""
    if issubclass(class_of(algo), Searches):
        return "cell", "batch"
    turns = [("mlp", "none"), *(("conv4", norm) for norm in ("batch", "support", "running") if suits(algo, norm))]
    return turns[ALGORITHMS.index(algo) % len(turns)]


def family(algo: str) -> str:
    """The folder of its class."""
    return class_of(algo).__module__.split(".")[2]


def by_family(tried: list[Any]) -> list[Any]:
    """Of methods, or of parameters that begin with one: `make test` tries one method of each family, `make test-all` the others too.

    For what is the engine's to keep, and no single method's.
    """
    params = [param if isinstance(param, type(pytest.param())) else pytest.param(param) for param in tried]
    first = {family(param.values[0]): param.values[0] for param in reversed(params)}
    return [pytest.param(*p.values, id=p.id, marks=p.marks if p.values[0] in first.values() else pytest.mark.slow) for p in params]


def with_nets(algos: list[str]) -> list[Any]:
    """(algo, net, norm), all that go together; `make test` tries each method with those whose ``turn`` it is, `make test-all` with all."""
    together = [(algo, *pair) for algo in algos for pair in NETS_WITH_NORMS if pair[0] in nets_for(algo) and suits(algo, pair[1])]
    return [pytest.param(*each, marks=[] if turn(each[0]) == each[1:] else pytest.mark.slow) for each in together]


def vectors(features: int, way: int, shot: int, query: int = 2, seed: int = 0) -> tuple[Problem, Task]:
    """A problem whose examples are plain vectors, for ``Identity``, and one task of normal ones in float64, its classes a little apart."""
    spec = EpisodeSpec(way=way, shot=shot, query=query)
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(way, features, generator=generator, dtype=torch.float64)

    def batch(n: int) -> Batch:
        y = torch.arange(way).repeat_interleave(n)
        return Batch(centres[y] + torch.randn(way * n, features, generator=generator, dtype=torch.float64), y)

    context = Context(batch(shot), torch.arange(way), torch.tensor(seed), {})
    return Problem(Classification(), (features,), way, way, spec, spec), Task(context, batch(query))


class Double:
    """Episodes in float64."""

    def __init__(self, episodes: Any) -> None:
        self.episodes = episodes

    def batch(self, indices: Sequence[int]) -> Task:
        return double(self.episodes.batch(indices))


def moved(tasks: Any, device: str) -> Any:
    """The same tasks (or any tree) on another device."""
    return tree_map(lambda leaf: leaf.to(device), tasks)


def places(*indices: int) -> Slots:
    """A meta-batch of these episodes, each begun and ended in one meta-update."""
    return Slots(list(indices), [True] * len(indices), [0] * len(indices), 0)


def interrupt_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send Ctrl-C during optimizer step number ``steps``."""
    step, done = MetaOptimizer.step, []

    def counted(self: MetaOptimizer, progress: float) -> dict[str, float]:
        done.append(progress)
        if len(done) == steps:
            signal.raise_signal(signal.SIGINT)
        return step(self, progress)

    monkeypatch.setattr(MetaOptimizer, "step", counted)


def random(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64, the same every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rectified(norm: Norm, conv: Conv, x: Tensor, n_support: int | None, pool: bool) -> Tensor:
    """A block of Conv-4 of these parts."""
    block = object.__new__(Block)  # nothing is drawn: this may run under torch.vmap
    nn.Module.__init__(block)
    block.down, block.conv, block.norm = "pool" if pool else "none", conv, norm
    return block(x, n_support)


def same(a: Any, b: Any) -> bool:
    """Whether two trees hold the very same numbers, bit for bit."""
    (left, shape), (right, other) = tree_flatten(a), tree_flatten(b)
    return shape == other and all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(left, right))


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, without timings."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING} for line in lines]
