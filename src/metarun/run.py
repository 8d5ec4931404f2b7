"""One run: a validated config becomes data, net, algorithm, engine and trainer, and ends as a summary.
The only place where classes are picked by name; everything it calls is handed what it needs."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from metarun import __version__, checkpoint, config, warmstart
from metarun.algorithm import Algorithm
from metarun.allocator import keep_freed_memory
from metarun.augment import Augment, Augmented
from metarun.checkpoint import replace_file
from metarun.data.base import Dataset
from metarun.distributed import World
from metarun.engine import Engine
from metarun.episodes import Episodes
from metarun.errors import RunError, UserError, nearest
from metarun.nets.norm import Norm
from metarun.optim import Outer
from metarun.task import EpisodeSpec, Problem
from metarun.tracker import Tracker
from metarun.trainer import Progress, StopFlag, Trainer, results, statistics, watched_score

log = logging.getLogger(__name__)


class Run:
    """Everything a config describes, built but not started.

    Args:
        values: a resolved config (see ``config.resolve``).
        trained: for evaluation, a checkpoint to take the weights from; the data need no training split then.
        world: the processes that share the work; None for this one alone.

    Raises:
        UserError: the config is not valid, or data, episodes and checkpoint do not fit.
    """

    def __init__(self, values: dict[str, Any], trained: dict[str, Any] | None = None, world: World | None = None) -> None:
        keep_freed_memory()
        self.values = values
        self.valid = config.validate(values)
        _refuse_other_kinds(values)
        self.world = world or World()
        self.device = pick_device(self.valid["device"])
        self.data: Dataset = config.target_of(values, "data")(self.valid["seed"], **self.valid["data"])
        self.spec: dict[str, EpisodeSpec] = dict(self.valid["episode"])
        if self.data.fixed_spec:
            self.spec["eval"] = self.data.fixed_spec
        outputs = self.spec["train"].way if self.data.kind == "classification" else self.data.target_size
        shape = {"classes": self.data.classes, "outputs": outputs, "attributes": self.data.attributes}
        if trained:
            shape |= trained["problem"]
        self.problem = Problem(self.data.kind, self.data.input_shape, train=self.spec["train"], eval=self.spec["eval"], **shape)
        if config.target_of(values, "algo").zero_shot:
            _refuse_attributes(values, self.data.attributes, self.problem.attributes)
        torch.manual_seed(self.valid["seed"])
        self.algorithm = build_algorithm(values, self.valid, self.problem, trained).to(self.device)
        way = self.spec["eval"].way
        if self.algorithm.fixed_way and self.problem.kind == "classification" and way != self.problem.outputs:
            raise UserError(
                f"algo={values['algo']['name']} learns one output per class: it is trained for {self.problem.outputs} ways, so "
                f"episode.eval.way={way} must be {self.problem.outputs} as well"
            )
        self.augment = Augment(**self.valid["augment"])
        if self.augment and len(self.data.input_shape) != 3:
            raise UserError(f"augment changes images, and data={values['data']['name']} has none: leave it at augment=none")
        if self.valid["init_from"] and not trained:
            log.info(warm_start(self.algorithm, self.valid["init_from"]))
        self.engine = Engine(self.device, self.valid["precision"], self.world, **self.valid["engine"])

    def episodes(self, split: str) -> Episodes:
        """The episodes of a split, on the run's device; those of training augmented."""
        part = "train" if split == "train" else "eval"
        found = self.data.episodes(split, self.spec[part], self.valid["seed"], self.device)
        return Augmented(found, self.augment) if split == "train" and self.augment else found

    @property
    def bn_mode(self) -> str:
        """Whose statistics normalise a query; ``none`` when the net has no norm."""
        net = self.algorithm.net
        return net.norm if any(isinstance(module, Norm) for module in net.modules()) else "none"

    def test(self, episodes: Episodes, tracker: Tracker, folder: Path) -> dict[str, Any]:
        """Meta-test with the weights as they are: statistics and adaptation curve; keeps ``test_scores.npy``, and ``roc.png`` of pairs."""
        n = min(self.valid["trainer"]["test_episodes"], episodes.length or sys.maxsize)
        with StopFlag() as stop:
            values = watched_score(self.engine, self.algorithm, episodes, n, True, tracker, "test", stop)
        score = values["score"]
        scores = io.BytesIO()
        np.save(scores, score[:, -1])
        self.write(folder / "test_scores.npy", scores.getvalue())
        points = [statistics(score[:, k]) for k in range(score.shape[1])]
        curve = [{"step": k, "mean": point["mean"], "ci95": point["ci95"]} for k, point in enumerate(points)]
        if "same" in values and tracker.draws:
            from metarun import pictures  # and with it matplotlib

            pictures.save(pictures.roc(self, values["same"], values["different"]), folder / "roc.png")
        return results(self.problem, values) | {"curve": curve}

    def write(self, path: Path, content: str | bytes) -> None:
        """Put a file of the run in place, atomically; only rank 0 writes."""
        if self.world.rank == 0:
            data = content.encode() if isinstance(content, str) else content
            replace_file(path, lambda handle: handle.write(data))

    def summary(self, progress: Progress, test: dict[str, Any] | None, episodes: Episodes | None) -> dict[str, Any]:
        """The contract's summary.json."""
        cuda = self.device.type == "cuda"
        unit = 2**20 if sys.platform == "darwin" else 2**10  # of ru_maxrss in a megabyte
        peak = torch.cuda.max_memory_allocated(self.device) / 2**20 if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
        spec = self.spec["eval"]
        summary = {
            "algo": self.values["algo"]["name"],
            "data": self.values["data"]["name"],
            "way": spec.way,
            "shot": spec.shot,
            "query": spec.query,
            "seed": self.valid["seed"],
            "parameters": sum(p.numel() for p in self.algorithm.parameters()),
            "best_step": progress.best_step,
            "iterations": progress.iteration,
            "val": progress.best,
            "test": test,
            "episodes_sha256": episodes.sha256(int(test[self.problem.metric]["n"])) if episodes and test else None,
            "bn_mode": self.bn_mode,
            "precision": self.valid["precision"],
            "device": str(self.device),
            "wall_s": round(progress.wall_s, 3),
            "tasks_per_s": round(progress.tasks_per_s(self.valid["trainer"]["meta_batch"]), 3),
            "peak_memory_mb": round(peak, 1),
            "versions": {
                "metarun": __version__,
                "torch": torch.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        }
        return _json_able(summary)


def _json_able(value: Any) -> Any:
    """JSON has no NaN: a score that is not a number (an inner loop that diverged) becomes null."""
    if isinstance(value, dict):
        return {key: _json_able(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_json_able(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
    return {str(key): value for key, value in values.items()}


def build_algorithm(values: dict[str, Any], valid: dict[str, Any], problem: Problem, trained: dict[str, Any] | None = None) -> Algorithm:
    """The net and algorithm that a config names, with the weights of a checkpoint if there is one; needs no data.

    Args:
        values, valid: a resolved config, and ``config.validate`` of it.

    Raises:
        UserError: net, algorithm, problem and checkpoint do not fit each other.
    """
    net_class, algorithm_class = config.target_of(values, "net"), config.target_of(values, "algo")
    try:
        algorithm = algorithm_class(net_class(problem.input_shape, **valid["net"]), problem, **valid["algo"])
    except ValueError as error:  # a net or method that cannot work with these data says why
        raise UserError(str(error)) from None
    if trained:
        try:
            algorithm.load_state_dict(trained["algorithm"])
        except RuntimeError as error:
            raise UserError(f"the checkpoint does not fit this configuration: {str(error).splitlines()[-1].strip()}") from None
    return algorithm


def warm_start(algorithm: Algorithm, source: str) -> str:
    """Begin with the backbone of the run ``source``, its best checkpoint; returns one line on what was taken and what did not match.

    Raises:
        UserError: no such run, no checkpoint that can be read, or nothing in it that fits.
    """
    try:
        method = config.target_of(read_config(Path(source)), "algo")
        trained = checkpoint.load(Path(source) / "checkpoints" / "best.pt")
    except (UserError, RunError) as error:
        raise UserError(f"init_from={source} is not possible: {error}") from None
    line = warmstart.take(algorithm.net, method.backbone(trained["algorithm"]), source)
    algorithm.follow_net()
    return line


def train(values: dict[str, Any], folder: Path, resume: bool = False) -> dict[str, Any]:
    """Meta-train (or go on), meta-test the best checkpoint once, write and return the summary.

    Raises:
        UserError, RunError, Interrupted: see ``Run`` and ``Trainer.fit``.
    """
    world = World.join()

    def build() -> tuple[Run, Episodes, Episodes, Episodes | None]:
        # Going on does not take the run that this one began with: its weights are long in the checkpoint.
        run = Run(values | {"init_from": None} if resume else values, world=world)
        test = run.episodes("test") if "test" in run.data.splits else None  # refused now rather than after training
        return run, run.episodes("train"), run.episodes("val"), test

    run, train_episodes, val_episodes, test_episodes = world.together(build)
    if not resume:
        run.write(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(values)))
    outer = Outer(run.algorithm.groups(), **run.valid["optim"])
    state = _read(world, folder / "checkpoints" / "last.pt") if resume else None
    start = state["progress"]["iteration"] if state else 0
    tracker = _tracker(run, folder, start)
    try:
        trainer = Trainer(run.algorithm, outer, run.engine, tracker, folder, train_episodes, val_episodes, **run.valid["trainer"])
        if state:
            trainer.load(state)
            log.info("resuming at iteration %d of %d", start, trainer.iterations)
        else:
            tracker.layout(run.problem.metric)
        trainer.fit()
        run.algorithm.load_state_dict(_read(world, folder / "checkpoints" / "best.pt")["algorithm"])
        result = run.test(test_episodes, tracker, folder) if test_episodes else None
        summary = run.summary(trainer.finish(), result, test_episodes)
        run.write(folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
        best = {f"hparam/{name}": stat["mean"] for name, stat in (result or trainer.progress.best).items() if isinstance(stat, dict)}
        tracker.hparams(_hparams(values), best)
        if result:
            tracker.curve("test", result["curve"])
        if tracker.pictures:
            from metarun import album  # and with it matplotlib, as slow as the drawing

            album.add(run, tracker, trainer.progress.best_step, folder)
        return summary
    finally:
        tracker.close()


def evaluate(values: dict[str, Any], run_folder: Path, name: str, folder: Path) -> dict[str, Any]:
    """Meta-test the checkpoint ``name`` of a run under another config; ``folder`` receives summary.json and test_scores.npy."""
    world = World.join()
    state = _read(world, run_folder / "checkpoints" / f"{name}.pt")

    def build() -> tuple[Run, Episodes]:
        run = Run(values, state, world)
        return run, run.episodes("test")

    run, episodes = world.together(build)
    progress = Progress(**state["progress"])
    started = time.monotonic()
    tracker = _tracker(run, None)
    try:
        result = run.test(episodes, tracker, folder)
    finally:
        tracker.close()
    progress.wall_s = time.monotonic() - started
    summary = run.summary(progress, result, episodes)
    run.write(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(values)))
    run.write(folder / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return summary


def _read(world: World, path: Path) -> dict[str, Any]:
    """A checkpoint's content; rank 0 reads it for all."""
    return world.broadcast(checkpoint.load(path) if world.rank == 0 else None)


def _tracker(run: Run, folder: Path | None, start: int = 0) -> Tracker:
    """The run's tracker; beside rank 0, one that keeps and shows nothing."""
    options = run.valid["logger"]
    return Tracker(None, **options | {"pictures": False, "progress": False}) if run.world.rank else Tracker(folder, start, **options)


def _refuse_other_kinds(values: dict[str, Any]) -> None:
    """Before any data are read: can this algorithm solve this kind of problem?

    Raises:
        UserError: it cannot.
    """
    kind, kinds = config.target_of(values, "data").kind, config.target_of(values, "algo").kinds
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


def _hparams(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a config by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _hparams(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


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


def check(values: dict[str, Any]) -> dict[str, str]:
    """Build everything, adapt to one task of each split, and say what there is; trains and writes nothing.

    Raises:
        UserError: whatever training would refuse.
    """
    run = Run(values)
    report = {
        "algorithm": f"{values['algo']['name']}, {sum(p.numel() for p in run.algorithm.parameters()):,} meta-parameters",
        "device": f"{run.device}, {run.valid['precision']}",
        "norm": run.bn_mode,
    }
    for split in run.data.splits:
        episodes = run.episodes(split)
        run.engine.evaluate(run.algorithm, episodes.batch([0]), curve=False)
        spec = run.spec["train" if split == "train" else "eval"]
        report[split] = f"{run.data.describe(split)}; {spec}"
    return report
