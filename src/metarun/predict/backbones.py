"""Where the features of pictures come from that ``metarun classify`` compares: a backbone trained by others, the net of a run of one's own,
or, where neither is at hand, the small learner that is shipped with metarun."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from metarun.config import compose, schema
from metarun.data import features
from metarun.data.feature_store import Store, fingerprint
from metarun.data.folder import decode
from metarun.data.picture import Reader
from metarun.errors import UserError
from metarun.kernels import select as kernels
from metarun.nets.base import Net
from metarun.nets.package import Package
from metarun.nets.pretrained import Pretrained
from metarun.predict.trained import load
from metarun.run import pick_device
from metarun.runtime.execute import Executor
from metarun.task import to_float

log = logging.getLogger(__name__)
SHIPPED = Path(__file__).parent / "shipped"  # the folder of a run
KEYS = ("net", "device")  # of a configuration: what decides here


@dataclass(frozen=True)
class Backbone:
    """A net that stays as it is.

    Attributes:
        name: what the features are, in a report.
        net: in evaluation mode; features of one picture do not depend on another.
        reader: how a file becomes what the net is given.
        device: where it computes.
        kernels: as a run's ``engine.kernels``.
    """

    name: str
    net: Net
    reader: Reader
    device: torch.device
    kernels: kernels.Choice = "auto"

    @cached_property
    def store(self) -> Store:
        """Where its features are kept."""
        return Store(fingerprint(self.net, f"{self.device.type} fp32"), self.net.features)

    @torch.no_grad()
    def features(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """[n, features] float32 on the CPU of n pictures as ``reader`` reads them; computed once, and kept on disk."""

        def encode(net: Net, part: Tensor) -> Tensor:
            with kernels.using(self.kernels):
                return net(to_float(part.to(self.device)))

        executor = Executor(self.device, record=False, threads="auto")
        return features.kept(torch.from_numpy(np.stack(pictures)), self.store, lambda parts: executor.map(encode, self.net, parts))


def of(words: Sequence[str], run: str | None, checkpoint: Literal["best", "last"] = "best") -> Backbone:
    """What a command names: ``net=…``, a run, or nothing.

    Raises:
        UserError: both; see also ``of_words`` and ``of_run``.
    """
    if run and words:
        raise UserError(f"--run {run} and {words[0]} contradict each other: leave one out")
    if run:
        return of_run(run, checkpoint)
    if any(word.startswith("net=") for word in words):
        return of_words(words)
    # A setting of a net is one of the packaged backbone.
    return of_words(["net=package", *words]) if any(word.startswith("net.") for word in words) else at_hand(words)


def of_words(words: Sequence[str]) -> Backbone:
    """The backbone that ``net=…`` and ``net.KEY=VALUE`` describe, frozen whatever ``net.freeze`` says.

    Raises:
        UserError: another key, a net without weights of its own, or one that cannot be had.
    """
    for word in words:
        if word.partition("=")[0].partition(".")[0] not in KEYS:
            raise UserError(f"classify takes net=…, net.KEY=VALUE and device=…, not '{word}'")
    values = compose.resolve(compose.compose(["data=folder", *words]))
    target = schema.target_of(values, "net")
    if not issubclass(target, Pretrained):
        name = values["net"]["name"]
        raise UserError(
            f"net={name} is no net of pictures with weights of its own: choose net=package, net=timm or net=torchvision, or --run RUN "
            "for a net that you have trained"
        )
    settings = schema.check(target, schema.without_meta(values["net"]), "net.") | {"freeze": "all"}
    device = pick_device(values["device"])
    with torch.random.fork_rng(devices=[]):
        net: Pretrained = target(None, **settings)
    net.fetch(stored=False)
    resized, size = net.picture
    first = (resized - size) // 2

    def read(path: Path) -> np.ndarray:
        whole = decode(path, 3, resized, False)
        return np.ascontiguousarray(whole[:, first : first + size, first : first + size])

    name = f"{net.title}, frozen, {net.features} numbers a picture"
    return Backbone(name, net.to(device).eval(), Reader((3, size, size), read), device)


def of_run(run: str | Path, checkpoint: Literal["best", "last"] = "best") -> Backbone:
    """The net of a trained run.

    Raises:
        UserError: the run is none of classes of pictures, or its features depend on which pictures are asked together; see ``load``.
    """
    model = load(run, checkpoint)
    net, problem = model.algorithm.net, model.algorithm.problem
    if model.reader is None or not problem.kind.labelled or model.algorithm.reads == "attributes":
        raise UserError(f"{run} (algo={model.algo} on data={model.data}) does not classify pictures: choose another run")
    if net.transductive or net.norm == "support":
        raise UserError(
            f"{run} has net.norm={net.norm}, with which a picture's features depend on others: use metarun predict {run}, or a run with "
            "net.norm=running"
        )
    name = f"the net of {model.algo} trained on {model.data}, {net.features} numbers a picture"
    return Backbone(name, net, model.reader, model.device, model.kernels)


def at_hand(words: Sequence[str]) -> Backbone:
    """The packaged backbone if it is installed, else the shipped learner; says how to get a backbone then."""
    if Package.there(Package.example()):
        return of_words(["net=package", *words])
    log.warning(
        "no pretrained backbone is installed, without which photographs are told apart badly: pip install %s, or net=timm net.model=NAME, "
        "or --run RUN; going on with the small learner of characters that is shipped with metarun",
        Package.needs(Package.example()),
    )
    source = of_run(SHIPPED)
    return replace(source, name=f"the shipped learner of characters, {source.net.features} numbers a picture")
