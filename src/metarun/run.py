"""One run, built: a validated config becomes data, net, algorithm and engine. What is done with it is ``experiment``'s.
The only place where classes are picked by name; everything it builds is handed what it needs."""

from __future__ import annotations

import inspect
import logging
import os
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from metarun.algorithm import Algorithm
from metarun.config import legacy, schema
from metarun.config.schema import Valid
from metarun.data.augment import Augment, Augmented
from metarun.data.base import Dataset
from metarun.data.episodes import Episodes
from metarun.engine import Engine
from metarun.errors import RunError, UserError, nearest
from metarun.extensions import targets
from metarun.nets import foreign
from metarun.nets.base import Net
from metarun.nets.module import Module
from metarun.nets.norm import Norm
from metarun.problem import EpisodeSpec, Problem
from metarun.runtime.allocator import keep_freed_memory
from metarun.runtime.distributed import World
from metarun.storage import checkpoint, warmstart
from metarun.storage.checkpoint import replace_file

log = logging.getLogger(__name__)


class Run:
    """Everything a config describes, built but not started.

    Args:
        values: a resolved config (see ``compose.resolve``).
        trained: for evaluation, a checkpoint to take the weights from; the data need no training split then.
        world: the processes that share the work; None for this one alone.

    Raises:
        UserError: the config is not valid, or data, episodes and checkpoint do not fit.
    """

    def __init__(self, values: dict[str, Any], trained: dict[str, Any] | None = None, world: World | None = None) -> None:
        keep_freed_memory()
        self.values, self.valid = values, schema.validate(values)
        valid, root = self.valid, self.valid.root
        _refuse_other_kinds(values, valid)
        self.world = world or World()
        self.device = pick_device(root.device)
        self.data: Dataset = valid.data.build(root.seed)
        targets.require("the data set", self.data, ("splits", "input_shape"))
        self.spec: dict[str, EpisodeSpec] = {"train": valid.train, "eval": self.data.fixed_spec or valid.eval}
        outputs = valid.train.way if self.data.kind == "classification" else self.data.target_size
        shape = {"classes": self.data.classes, "outputs": outputs, "attributes": self.data.attributes}
        if trained:
            shape |= trained["problem"]
        self.problem = Problem(self.data.kind, self.data.input_shape, train=self.spec["train"], eval=self.spec["eval"], **shape)
        if valid.algo.target.zero_shot:
            _refuse_attributes(values, self.data.attributes, self.problem.attributes)
        torch.manual_seed(root.seed)
        self.algorithm = build_algorithm(valid, self.problem, trained).to(self.device)
        way = self.spec["eval"].way
        if self.algorithm.fixed_way and self.problem.kind == "classification" and way != self.problem.outputs:
            raise UserError(
                f"algo={values['algo']['name']} learns one output per class: it is trained for {self.problem.outputs} ways, so "
                f"episode.eval.way={way} must be {self.problem.outputs} as well"
            )
        self.augment: Augment = valid.augment.build()
        if self.augment and len(self.data.input_shape) != 3:
            raise UserError(f"augment changes images, and data={values['data']['name']} has none: leave it at augment=none")
        if root.init_from and not trained:
            log.info(warm_start(self.algorithm, root.init_from))
        self.engine: Engine = valid.engine.build(self.device, root.precision, self.world)

    def episodes(self, split: str) -> Episodes:
        """The episodes of a split, on the run's device; those of training augmented."""
        part = "train" if split == "train" else "eval"
        found = self.data.episodes(split, self.spec[part], self.valid.root.seed, self.device)
        return Augmented(found, self.augment) if split == "train" and self.augment else found

    @property
    def bn_mode(self) -> str:
        """Whose statistics normalise a query; ``none`` when the net has no norm."""
        net = self.algorithm.net
        return net.norm if any(isinstance(module, Norm) for module in net.modules()) else "none"

    def write(self, path: Path, content: str | bytes) -> None:
        """Put a file of the run in place, atomically; only rank 0 writes."""
        if self.world.rank == 0:
            data = content.encode() if isinstance(content, str) else content
            replace_file(path, lambda handle: handle.write(data))


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved config that a run's folder holds.

    Raises:
        UserError: it is no run folder, or its config cannot be read.
    """
    if not folder.is_dir():
        siblings = [str(path) for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
        raise UserError(f"there is no run folder {folder}{nearest(str(folder), siblings)}")
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is not a run folder: it has no config.yaml; name a folder like outputs/DATE/TIME_NAME")
    try:
        values = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    except Exception as error:  # whatever YAML and OmegaConf think of it
        raise UserError(f"{folder}/config.yaml cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{folder}/config.yaml holds no configuration")
    return legacy.updated({str(key): value for key, value in values.items()})


def build_algorithm(valid: Valid, problem: Problem, trained: dict[str, Any] | None = None) -> Algorithm:
    """The net and algorithm that a config names, with the weights of a checkpoint if there is one; needs no data.

    Raises:
        UserError: net, algorithm, problem and checkpoint do not fit each other.
    """
    try:
        net = _net(valid, problem.input_shape)
        algorithm: Algorithm = valid.algo.build(net, problem)
    except ValueError as error:  # a net or method that cannot work with these data says why
        raise UserError(str(error)) from None
    if trained:
        try:
            algorithm.load_state_dict(trained["algorithm"])
        except RuntimeError as error:
            raise UserError(f"the checkpoint does not fit this configuration: {str(error).splitlines()[-1].strip()}") from None
    return algorithm


def _net(valid: Valid, input_shape: tuple[int, ...]) -> Net:
    """The net; one of the user is tried first, so that what is wrong with it is said in one line."""
    net: Net = valid.net.build(input_shape)
    theirs = valid.net.target if targets.foreign(valid.net.target) else type(net.module) if isinstance(net, Module) else None
    if theirs:
        home = Path(inspect.getfile(theirs)).parent
        if theirs is valid.net.target:
            foreign.check_net(net, input_shape, home)
        if valid.engine.values["map"] == "vmap":
            foreign.check_mapped(net, input_shape, home)
    return net


def warm_start(algorithm: Algorithm, source: str) -> str:
    """Begin with the backbone of the run ``source``, its best checkpoint; returns one line on what was taken and what did not match.

    Raises:
        UserError: no such run, no checkpoint that can be read, or nothing in it that fits.
    """
    try:
        method = schema.target_of(read_config(Path(source)), "algo")
        trained = checkpoint.load(Path(source) / "checkpoints" / "best.pt")
    except (UserError, RunError) as error:
        raise UserError(f"init_from={source} is not possible: {error}") from None
    line = warmstart.take(algorithm.net, method.backbone(trained["algorithm"]), source)
    algorithm.follow_net()
    return line


def _refuse_other_kinds(values: dict[str, Any], valid: Valid) -> None:
    """Before any data are read: can this algorithm solve this kind of problem?

    Raises:
        UserError: it cannot.
    """
    kind, kinds = valid.data.target.kind, valid.algo.target.kinds
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
