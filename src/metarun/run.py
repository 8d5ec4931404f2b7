"""One run, built: a validated config becomes data, net, algorithm and engine. What is done with it is ``experiment``'s.
The only place where classes are picked by name; everything it builds is handed what it needs."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarun.abilities import Attacks, Searches, UpdateRule, refuse_forgotten
from metarun.algorithm import Algorithm
from metarun.config import schema
from metarun.config.schema import Valid
from metarun.config.stored import read_config
from metarun.data.augment import Augment, Augmented
from metarun.data.base import Dataset
from metarun.data.episodes import Episodes
from metarun.engine import Engine
from metarun.errors import RunError, UserError
from metarun.extensions import targets
from metarun.kernels.bfloat16 import slowdown
from metarun.nets import foreign
from metarun.nets.base import Net
from metarun.nets.module import Module
from metarun.nets.norm import Norm
from metarun.nets.pretrained import Pretrained
from metarun.problem import EpisodeSpec, Problem
from metarun.protocols.base import AfterAdaptation, Protocol, Together
from metarun.protocols.episodes import LAST
from metarun.protocols.unknown import Unknown
from metarun.runtime.allocator import keep_freed_memory
from metarun.runtime.distributed import World
from metarun.storage import checkpoint, warmstart
from metarun.storage.files import replace_file

log = logging.getLogger(__name__)
SLOWER = 1.1  # a difference that is not chance


class Run:
    """Everything a config describes, built but not started.

    Args:
        values: a resolved config (see ``compose.resolve``).
        trained: for evaluation, a checkpoint to take the weights from; the data need no training split then.
        world: the processes that share the work; None for this one alone.
        stored: the config is that of a run's folder, for which no net downloads weights.

    Attributes:
        values: the config, in which nothing hangs on other runs any more (see ``settled``).

    Raises:
        UserError: the config is not valid, or data, episodes and checkpoint do not fit.
    """

    def __init__(
        self, values: dict[str, Any], trained: dict[str, Any] | None = None, world: World | None = None, stored: bool = False
    ) -> None:
        keep_freed_memory()
        self.values, self.valid = values, valid = settled(values)
        root = valid.root
        _refuse_other_kinds(values, valid)
        self.world = world or World()
        self.device = pick_device(root.device)
        self.data: Dataset = valid.data.build(root.seed)
        targets.require("the data set", self.data, ("splits", "input_shape"))
        if hasattr(self.data, "batchable"):
            raise UserError(f"{type(self.data).__name__}.batchable is a flag no more: derive the simulator from metarun.abilities.OneByOne")
        specs: dict[str, EpisodeSpec] = {"train": valid.train, "eval": self.data.fixed_spec or valid.eval}
        by_minibatch = valid.algo.target.reads == "minibatches"
        self.spec = {part: replace(spec, whole=spec.whole and by_minibatch) for part, spec in specs.items()}
        self.augment: Augment = valid.augment.build()
        self.augment.refuse(self.data.kind, self.data.input_shape, self.spec["train"], values["data"]["name"])
        anew = bool(trained) and issubclass(valid.algo.target, UpdateRule)
        outputs = self.data.kind.outputs(valid.eval if anew else valid.train)
        shape = {"classes": self.data.classes * self.augment.versions, "outputs": outputs, "attributes": self.data.attributes}
        if trained and not anew:
            shape |= trained["problem"]
        self.problem = Problem(
            self.data.kind,
            self.data.input_shape,
            train=self.spec["train"],
            eval=self.spec["eval"],
            simulator=self.data.simulator,
            attacked=issubclass(valid.algo.target, Attacks),
            **shape,
        )
        if valid.algo.target.reads == "attributes":
            _refuse_attributes(values, self.data.attributes, self.problem.attributes)
        torch.manual_seed(root.seed)
        self.algorithm = build_algorithm(valid, self.problem, trained, stored).to(self.device)
        if not trained and (examples := self.data.examples()) is not None:
            for module in self.algorithm.modules():
                if isinstance(module, Net):
                    module.observe(examples)
        way = self.spec["eval"].way
        if self.algorithm.fixed_way and self.problem.kind.labelled and way != self.problem.outputs:
            raise UserError(
                f"algo={values['algo']['name']} learns one output per class: it is trained for {self.problem.outputs} ways, so "
                f"episode.eval.way={way} must be {self.problem.outputs} as well"
            )
        if root.init_from and not trained:
            log.info(warm_start(self.algorithm, root.init_from))
        elif not trained and values["net"].get("frozen"):
            log.warning("net.frozen=true without init_from=RUN: the net stays as random as it begins")
        self.engine: Engine = valid.engine.build(self.device, root.precision, self.world)
        self.protocols = self._protocols()
        self._episodes: dict[Any, Episodes] = {}  # by split, and by who asks for others than those of their shape
        if root.precision == "bf16" and (factor := slowdown(self.device)) > SLOWER:
            log.warning("a matrix product takes %.1f times as long in bf16 as in fp32 on this machine: precision=fp32 is faster", factor)

    def _protocols(self) -> list[Protocol]:
        """How the learner is asked, but for what it cannot be asked; those that read the same adaptation put together.

        Raises:
            UserError: it can be asked in none of these ways.
        """
        curve = self.valid.trainer.values["curve"]
        chosen: list[Protocol] = [section.build(curve) for section in self.valid.protocol.values()]
        if self.problem.eval.unknown and "unknown" not in self.valid.protocol:
            chosen.append(Unknown(curve))  # whoever adds such queries wants to know
        if not (found := [protocol for protocol in chosen if protocol.asks(self.algorithm)]):
            raise UserError(
                f"protocol={chosen[0].name} is not possible with algo={self.values['algo']['name']}: it needs {chosen[0].needs}"
            )
        shared = tuple(protocol for protocol in found if isinstance(protocol, AfterAdaptation))
        return [Together(these=shared), *(p for p in found if p not in shared)] if len(shared) > 1 else found

    @property
    def validation(self) -> Protocol:
        """How validation asks: what the last state of every episode tells."""
        parts = (part.on_development() for asked in self.protocols for part in asked.parts)
        beside = (part for part in parts if isinstance(part, AfterAdaptation) and part.name != LAST.name)  # whose curve is not asked for
        return Together(these=(LAST, *beside))

    @property
    def title(self) -> str:
        """Of pictures: what was asked of whom."""
        spec, values = self.spec["eval"], self.values
        return f"{values['algo']['name']} on {values['data']['name']}, {spec.way}-way {spec.shot}-shot episodes"

    def episodes(self, split: str, asked: Protocol = LAST) -> Episodes:
        """The episodes of a split, on the run's device; those of training augmented."""
        made = split, type(asked).episodes
        if made in self._episodes:  # so that a split lies once on a GPU
            return self._episodes[made]
        part = "train" if split == "train" else "eval"
        found = asked.episodes(self.data, split, self.spec[part], self.valid.root.seed, self.device)
        self._episodes[made] = Augmented(found, self.augment, self.data.classes) if split == "train" and self.augment else found
        return self._episodes[made]

    @property
    def data_name(self) -> str:
        """What the data are called in reports: ``omniglot``, or ``cifar_fs, 100 a class`` where they are not as published."""
        name: str = self.values["data"]["name"]
        return f"{name}, {self.data.note}" if self.data.note else name

    @property
    def bn_mode(self) -> str:
        """Whose statistics normalise a query; ``none`` when the net has no norm."""
        net = self.algorithm.net
        return net.norm if net.norm == "stored" or any(isinstance(module, Norm) for module in net.modules()) else "none"

    def write(self, path: Path, content: str | bytes) -> None:
        """Put a file of the run in place, atomically; only rank 0 writes."""
        if self.world.rank == 0:
            data = content.encode() if isinstance(content, str) else content
            replace_file(path, lambda handle: handle.write(data))


def settled(values: dict[str, Any]) -> tuple[dict[str, Any], Valid]:
    """A config with what its net has of other runs written out (``Net.settled``), and its sections, validated.

    Raises:
        UserError: the config is not valid, or there is no such run.
    """
    valid = schema.validate(values)
    net = valid.net
    try:
        found = net.target.settled(net.values, backbone_of)
    except ValueError as error:
        raise UserError(str(error)) from None
    if found == net.values:
        return values, valid
    values = values | {"net": values["net"] | found}
    return values, schema.validate(values)


def build_algorithm(valid: Valid, problem: Problem, trained: dict[str, Any] | None = None, stored: bool = False) -> Algorithm:
    """The net and algorithm that a config names, with the weights of a checkpoint if there is one; needs no data.

    ``stored``: the config is that of a run's folder, for which no net downloads weights.

    Raises:
        UserError: net, algorithm, problem and checkpoint do not fit each other.
    """
    if not trained:
        return _build(valid, problem, lambda net: net.fetch(stored))
    with torch.device("meta"):  # takes no memory: is it clear that the checkpoint has so many weights?
        shapes = {name: list(tensor.shape) for name, tensor in _build(valid, problem).state_dict().items()}
    kept = _lasting(valid, trained["algorithm"])
    for name, tensor in kept.items():
        if list(tensor.shape) != shapes.get(name, list(tensor.shape)):
            raise UserError(
                _other_channels(valid, problem, trained)
                or f"the checkpoint does not fit this configuration: {name} is {list(tensor.shape)} in it, and should be {shapes[name]}"
            )
    algorithm = _build(valid, problem)
    try:
        own = algorithm.state_dict()
        anew = own.keys() - _lasting(valid, own).keys()
        algorithm.load_state_dict(kept | {name: own[name] for name in anew})
    except RuntimeError as error:
        raise UserError(f"the checkpoint does not fit this configuration: {_last_line(error)}") from None
    return algorithm


def _lasting(valid: Valid, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a trained learner's ``state_dict``, what another one is built of; the rest begins anew."""
    rule = issubclass(valid.algo.target, UpdateRule)
    return valid.algo.target.lasting(weights) if rule else weights


def _build(valid: Valid, problem: Problem, before: Callable[[Net], None] = lambda net: None) -> Algorithm:
    """Net and algorithm; ``before`` is what the net goes through first."""
    try:
        before(net := _net(valid, problem.input_shape))
        if issubclass(valid.algo.target, Searches) and not net.architecture:
            raise UserError(
                f"algo={valid.algo.target.__name__.lower()} chooses between the alternatives of a net, and this one has none: use net=cell "
                "with net.genotype=null"
            )
        algorithm: Algorithm = valid.algo.build(net, problem)
        refuse_forgotten(algorithm)
        return algorithm
    except ValueError as error:  # a net or method that cannot work with these data says why
        raise UserError(str(error)) from None


def _other_channels(valid: Valid, problem: Problem, trained: dict[str, Any]) -> str | None:
    """What to say of weights that fit images of as many pixels but another number of channels."""
    here = problem.input_shape[0]
    kinds = {1: "grey (1 channel)", 3: "in colour (3 channels)"}
    for channels, trained_on in kinds.items():
        if len(problem.input_shape) != 3 or channels == here:
            continue
        shape = replace(problem, input_shape=(channels, *problem.input_shape[1:]))
        try:
            valid.algo.build(valid.net.build(shape.input_shape), shape).load_state_dict(trained["algorithm"])
        except (RuntimeError, ValueError):
            continue
        these = kinds.get(here, f"of {here} channels")
        return (
            f"this run was trained on images that are {trained_on}, but these are {these}: give data of the same kind, your own pictures "
            f"with data.channels={channels}"
        )
    return None


def _last_line(error: Exception) -> str:
    return str(error).splitlines()[-1].strip()


def _net(valid: Valid, input_shape: tuple[int, ...]) -> Net:
    """The net; one of the user is tried first, so that what is wrong with it is said in one line."""
    net: Net = valid.net.build(input_shape)
    theirs = valid.net.target if targets.foreign(valid.net.target) else type(net.module) if isinstance(net, Module) else None
    home = Path(inspect.getfile(theirs)).parent if theirs else Path()
    if theirs is valid.net.target:
        foreign.check_net(net, input_shape, home)
    if valid.engine.values["map"] == "vmap" and (theirs or (isinstance(net, Pretrained) and not net.frozen)):
        foreign.check_mapped(net, input_shape, home)
    return net


def warm_start(algorithm: Algorithm, source: str) -> str:
    """Begin with the backbone of the run ``source``, its best checkpoint; returns one line on what was taken and what did not match.

    Raises:
        UserError: no such run, no checkpoint that can be read, or nothing in it that fits.
    """
    line = warmstart.take(algorithm.net, backbone_of("init_from", source), source)
    algorithm.follow_net()
    return line


def backbone_of(key: str, source: str) -> dict[str, Tensor]:
    """The weights of the backbone of the run ``source``, its best checkpoint, by their names in the net; ``key`` is what names the run.

    Raises:
        UserError: no such run, or no checkpoint that can be read.
    """
    try:
        folder = Path(source).expanduser()
        method = schema.target_of(read_config(folder), "algo")
        return method.backbone(checkpoint.load(folder / "checkpoints" / "best.pt")["algorithm"])
    except (UserError, RunError) as error:
        raise UserError(f"{key}={source} is not possible: {error}") from None


def _refuse_other_kinds(values: dict[str, Any], valid: Valid) -> None:
    """Before any data are read: can this algorithm solve this kind of problem?

    Raises:
        UserError: it cannot.
    """
    kind, kinds = valid.data.target.kind.name, valid.algo.target.kinds
    if kind not in kinds:
        algo, data = values["algo"]["name"], values["data"]["name"]
        raise UserError(
            f"algo={algo} is for {' and '.join(sorted(kinds))}, but data={data} is {kind}; choose another algo or data (`metarun list`)"
        )


def _refuse_attributes(values: dict[str, Any], there: int, wanted: int) -> None:
    """Are the data's attribute vectors, of length ``there``, what a zero-shot method takes?

    Raises:
        UserError: there are none, or they have another length than those of the training.
    """
    data = values["data"]["name"]
    if not there:
        raise UserError(
            f"algo={values['algo']['name']} knows classes by their attributes, and data={data} has none: use data=glyphs, "
            "or data=folder with an attributes.csv in data.root"
        )
    if there != wanted:
        raise UserError(f"the classes of data={data} have {there} attributes, but this run was trained with {wanted}: give as many")


def pick_device(name: str) -> torch.device:
    """The device a config names.

    Raises:
        UserError: there is no such GPU here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # under torchrun every process has a GPU of its own
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={name} is not here: torch sees {torch.cuda.device_count()} GPUs; use device=cpu or device=auto")
    return device
