"""A trained meta-learner put to use from Python: ``metarun.load(RUN).adapt(images, labels).predict(images)``, and its export.
Works without the data it was trained on; predict.py is the command on top of it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from metarun.abilities import LimitedWay
from metarun.adaptation import adapt
from metarun.algorithm import Algorithm, State
from metarun.config import inputs, schema
from metarun.config.stored import read_config
from metarun.data.base import Dataset, Scaling, TableForm
from metarun.data.episodes import episode_keys, task_keys
from metarun.data.picture import Reader
from metarun.errors import RunError, UserError, nearest
from metarun.kernels import select as kernels
from metarun.predict import given
from metarun.predict.given import Images
from metarun.problem import Gaussian, Problem, Regression, Samples, best_guess, spread
from metarun.protocols.belonging import UNKNOWN, belonging, left_out, threshold
from metarun.protocols.calibration import temperature_in
from metarun.run import build_algorithm, pick_device
from metarun.runtime.private import tree_leaves, tree_map
from metarun.storage.checkpoint import load as load_checkpoint
from metarun.storage.files import replace_file
from metarun.task import Batch, Context

CHUNK = 256  # queries that pass the net at a time, unless they have to see each other
LEFT_OUT = 50  # examples that a learner without features adapts without, one after the other, to calibrate a threshold


def load(run: str | PathLike[str], checkpoint: Literal["best", "last"] = "best", device: str = "auto") -> Model:
    """The trained meta-learner of a run's folder. The data it was trained on are not needed.

    Args:
        run: the folder, as in ``outputs/2026-01-31/12-00-00_protonet-omniglot-5w1s``.
        checkpoint: ``best`` on the development tasks, or ``last``.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        UserError: no such run, checkpoint or device, or a run without examples of anybody's to predict.
        RunError: the checkpoint is damaged.
    """
    if not isinstance(run, (str, PathLike)):
        raise UserError(f"{run!r} is no folder: name the run's, as in metarun.load('outputs/RUN')")
    folder = Path(run).expanduser()
    values = read_config(folder) | {"device": device}
    valid = schema.validate(values)
    if checkpoint not in ("best", "last"):
        raise UserError(f"there is no checkpoint '{checkpoint}'{nearest(checkpoint, ('best', 'last'))} (best or last)")
    kind = valid.data.target.kind
    if kind.acts or kind.space or not kind.alone:
        what = "learned to act" if kind.acts else "is a search" if kind.space else "tells nodes of its own graph alone"
        raise UserError(f"{folder} {what}, and data={values['data']['name']} has no examples to predict: test it with metarun eval")
    trained = load_checkpoint(folder / "checkpoints" / f"{checkpoint}.pt")
    data, seed = valid.data, valid.root.seed
    reader: Reader | None = data.target.reader(**data.values)
    columns = None if reader else inputs.columns(folder)
    built: Dataset | None = None if reader or columns else data.build(seed)
    if built:
        shape, kind = built.input_shape, built.kind
    elif columns:
        shape, kind = (len(columns.names),), replace(kind, size=len(columns.form.targets)) if isinstance(kind, Regression) else kind
    else:
        shape = reader.shape if reader else ()
    problem = Problem(kind, shape, train=valid.train, eval=valid.eval, **trained["problem"])
    with torch.random.fork_rng(devices=[]):  # a library leaves its caller's random numbers alone
        algorithm = build_algorithm(valid, problem, trained)
    chosen = pick_device(device)
    algorithm.to(chosen).eval().requires_grad_(False)
    key = task_keys(episode_keys(seed, "predict", [0]))[0].to(chosen)
    choice = valid.engine.values.get("kernels", "auto")
    temperature = temperature_in(trained["progress"].get("best", {}))
    model = Model(algorithm, values["algo"]["name"], values["data"]["name"], reader, key, choice, temperature)
    if table := columns or built:
        model.scaling, model.target_scaling, model.form = table.scaling, table.target_scaling, table.form
    return model


def file_reader(model: Model, run: str) -> Reader:
    """How files become inputs of the run's learner.

    Raises:
        UserError: they do not: its data are no files of anybody's, or it knows classes by attributes.
    """
    if model.reader is None:
        raise UserError(
            f"{run} was trained on data={model.data}, which does not say how pictures are read; use it from Python: "
            "metarun.load(RUN).adapt(x, y).predict(x)"
        )
    if model.algorithm.reads == "attributes":
        raise UserError(
            f"{run} is zero-shot: it knows classes by their attributes, not by pictures; use it from Python: "
            "metarun.load(RUN).adapt(attributes, names).predict(files)"
        )
    return model.reader


class Model:
    """A trained meta-learner, by ``load``; ``adapt`` fits it to a task as often as you like, and it stays as it is.

    Attributes:
        algorithm: the meta-learner itself, its weights frozen, in fp32 whatever the precision of the run.
        algo, data: their names in the run's configuration.
        reader: how a file of anybody's (a picture, a recording, a text) becomes an input; None where none does.
        key: [] int64, of the randomness of methods that draw; always the same, so that equal tasks get equal answers.
        kernels: as the run's ``engine.kernels``.
        temperature: by which logits are divided, as validation fitted it; 1 where it did not.
        scaling, target_scaling: of rows of numbers and of the targets of regression, as in the run; None: taken as they are.
        form: of tables whose rows are inputs; None: inputs are no such rows.
    """

    scaling: Scaling | None = None
    target_scaling: Scaling | None = None
    form: TableForm | None = None

    def __init__(
        self,
        algorithm: Algorithm,
        algo: str,
        data: str,
        reader: Reader | None,
        key: Tensor,
        kernels: kernels.Choice = "auto",
        temperature: float = 1.0,
    ) -> None:
        self.algorithm, self.algo, self.data, self.reader, self.key = algorithm, algo, data, reader, key
        self.kernels, self.temperature = kernels, temperature

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.key.device

    @property
    def transductive(self) -> bool:
        """Whether the answer to one query depends on the queries beside it (``net.norm=batch``, ``algo.matching``)."""
        return self.algorithm.transductive

    def adapt(
        self,
        images: Images,
        labels: Sequence[Any] | np.ndarray | Tensor,
        steps: int | None = None,
        unlabelled: Images | None = None,
    ) -> Fitted:
        """Learn a new task from labelled examples.

        Args:
            images: files, PIL images, or arrays [height, width] or [height, width, 3 or 4] uint8 of any size, which are prepared as the
                training pictures were; or inputs as they are, [n, channels, height, width] or (grey) [n, height, width], uint8 0..255
                or floats 0..1, of the run's size and polarity (handwriting: ink = 1). Of a run on texts: texts, or their files as ``Path``.
                Regression: inputs [n, *input_shape], or [n] where an input is one number.
                Zero-shot: no images but attribute vectors [n, attributes].
            labels: n labels, any hashable things; classes may differ in their number of examples. Regression: targets [n] or [n, outputs].
            steps: inner steps, 0 or more; None: as many as in the run's test.
            unlabelled: further images, in any of the forms of ``images``, for semi-supervised methods; the others ignore them.

        Raises:
            UserError: shapes, values or labels that do not fit, or more or fewer classes than the method can tell apart.
        """
        if steps is not None:
            steps = given.whole(steps)
            if type(self.algorithm).step is Algorithm.step:
                raise UserError(f"algo={self.algo} takes no inner steps: leave steps out")
        problem = self.algorithm.problem
        named = self.algorithm.reads == "attributes"
        x = given.attributes(images, problem.attributes, self.algo).to(self.device) if named else self.inputs(images)
        classes: list[Any] = []
        if not problem.kind.labelled:
            y = given.targets(labels, len(x), problem.outputs)
            y = self.target_scaling(y) if self.target_scaling else y
        else:
            classes, y = given.labels(labels, len(x))
            self._check_way(classes, len(x))
            order = y.argsort(stable=True)  # learners are promised a support that is grouped by class
            x, y = x[order], y[order]
        ids = torch.zeros(max(1, len(classes)), dtype=torch.int64, device=self.device)  # new classes have no global ones
        extras = {} if unlabelled is None else {"unlabelled": self.inputs(unlabelled)}
        return self._fit(Context(Batch(x, y.to(self.device)), ids, self.key, extras), classes, steps)

    def _fit(self, context: Context, classes: list[Any], steps: int | None) -> Fitted:
        with torch.no_grad(), kernels.using(self.kernels):
            for last in adapt(self.algorithm, context, self.algorithm.steps(context, False) if steps is None else steps):
                state = last
        return Fitted(self, state, classes, context, lambda other: self._fit(other, classes, steps))

    def inputs(self, images: Images) -> Tensor:
        """What the net is given for ``images`` (see ``adapt``): [n, *input_shape] float32 in 0..1 on the model's device.

        Raises:
            UserError: files that cannot be read, shapes or values that do not fit.
        """
        x = given.examples(images, self.algorithm.problem.input_shape, self.reader, self.data)
        return (self.scaling(x.double()) if self.scaling else x).float().to(self.device)

    def _check_way(self, classes: list[Any], n: int) -> None:
        if len(classes) < 2:
            raise UserError(f"all {n} examples are of the class {classes[0]!r}: telling classes apart needs two at least")
        trained = self.algorithm.problem.outputs
        if self.algorithm.fixed_way and len(classes) != trained:
            raise UserError(
                f"this run was trained for {trained} ways, but the support has {len(classes)} classes; algo={self.algo} has one output per "
                f"class: give {trained} classes, train with way={len(classes)}, or use a method for any number, such as algo=protonet"
            )
        rooms = [part.most_classes for part in self.algorithm.modules() if isinstance(part, LimitedWay)]
        if rooms and len(classes) > (most := min(rooms)):
            raise UserError(
                f"algo={self.algo} of this run tells {most} classes apart at most, but the support has {len(classes)}: leave some out, or "
                "use a method for any number, such as algo=protonet"
            )


class Fitted:
    """A learner that has adapted to one task, by ``Model.adapt``.

    With ``net.norm=batch`` queries are normalised together: the answer to one depends on which others are asked with it, so all that are
    given at once are answered in one batch (``transductive``). With other norms every query is answered for itself.

    Attributes:
        model: where it comes from.
        state: the algorithm's own task state.
        classes: the labels in sorted order (by type and text if they cannot be compared); empty for regression.
        context: what it has adapted to.
        again: adapts to another context with the same classes.
    """

    def __init__(self, model: Model, state: State, classes: list[Any], context: Context, again: Callable[[Context], Fitted]) -> None:
        self.model, self.state, self.classes, self.context, self.again = model, state, classes, context, again

    @property
    def transductive(self) -> bool:
        """Whether the answer to one query depends on the queries beside it."""
        return self.model.transductive

    def predict(self, images: Images, reject: float | None = None) -> Any:
        """The label of every image as a list of n; regression: predictions, a tensor [n, outputs] on the CPU.

        Args:
            images: n queries, in any of the forms that ``Model.adapt`` takes.
            reject: answer ``UNKNOWN`` to images below ``threshold(reject)``; None: every image is of one of the classes.

        Raises:
            UserError: shapes or values that do not fit.
            RunError: the adapted net does not answer with numbers.
        """
        least = None if reject is None else self.threshold(reject)[0]
        if not self.classes:
            return self.regress(images)[0]
        x = self.model.inputs(images)
        named = [self.classes[i] for i in best_guess(self._outputs(x)).argmax(-1).tolist()]
        if least is None:
            return named
        return [UNKNOWN if score < least else name for name, score in zip(named, self._belonging(x).tolist())]

    def belonging(self, images: Images) -> Tensor:
        """How well every image fits the class that it fits best, [n] on the CPU: the higher, the better; raises as ``predict`` does.

        Of a method that sees images through its net alone by ``protocols.belonging``, in its features; else the largest probability.
        """
        return self._belonging(self.model.inputs(images))

    def _belonging(self, x: Tensor) -> Tensor:
        """Of inputs as the net is given them."""
        if not self.model.algorithm.encodes or self.model.algorithm.reads == "attributes":
            return self._probabilities(x, self.model.temperature).max(-1).values
        support = self._features(self.context.support.x)
        return belonging(self._features(x), support, self.context.support.y.cpu(), len(self.classes))

    def threshold(self, rate: float) -> tuple[float, float]:
        """The ``belonging`` below which an image is of none of the classes, calibrated by leaving out examples of the support.

        About ``rate`` of the images that do belong are below it; the second number is the rate to be expected, which cannot be below
        1 / (examples + 1). Methods that have no features adapt anew without each example, of at most ``LEFT_OUT``.

        Raises:
            UserError: ``rate`` is not between 0 and 1, a class is ``UNKNOWN``, or no class has two examples; regression.
        """
        if not self.classes or self.model.algorithm.reads == "attributes":
            raise UserError("there are no examples of classes here, so nothing to tell what belongs to none of them")
        if UNKNOWN in self.classes:
            raise UserError(
                f"one of the classes is '{UNKNOWN}', which is the answer to what is rejected: call it otherwise, or do not reject"
            )
        rate = given.share(rate)
        x, y = self.context.support
        if self.model.algorithm.encodes:
            scores = left_out(self._features(x), y.cpu(), len(self.classes))
        else:
            several = (y.bincount()[y] > 1).nonzero()[:, 0]
            chosen = several[torch.linspace(0, len(several) - 1, min(LEFT_OUT, len(several)), device=y.device).round().long()]
            scores = torch.cat([self._without(int(i)) for i in chosen]) if len(chosen) else torch.empty(0)
        try:
            return threshold(scores, rate)
        except ValueError:
            raise UserError(
                "a threshold needs two examples of a class at least, of which one is left out: add some, or do not reject"
            ) from None

    def _without(self, i: int) -> Tensor:
        """The ``belonging`` of example i of the support to a learner that has adapted to the others, [1]."""
        support = self.context.support
        rest = torch.arange(len(support.y), device=support.y.device) != i
        others = self.context._replace(support=Batch(support.x[rest], support.y[rest]))
        return self.again(others)._belonging(support.x[i : i + 1])

    @torch.no_grad()
    def _features(self, x: Tensor) -> Tensor:
        """[n, features] on the CPU."""
        net, support_x = self.model.algorithm.net, self.context.support.x
        with kernels.using(self.model.kernels):
            return torch.cat([net(part, support_x).cpu() for part in ([x] if self.transductive else x.split(CHUNK))])

    def probabilities(self, images: Images, raw: bool = False) -> Tensor:
        """Probabilities [n, way] on the CPU, columns as in ``classes``; raises as ``predict`` does.

        They are the softmax of logits / ``model.temperature``, calibrated on development tasks; ``raw``: of the logits as they are.
        """
        if not self.classes:
            raise UserError("regression has no probabilities: use predict")
        return self._probabilities(self.model.inputs(images), 1.0 if raw else self.model.temperature)

    def _probabilities(self, x: Tensor, temperature: float) -> Tensor:
        return (best_guess(self._outputs(x)) / temperature).softmax(-1)

    def deviations(self, inputs: Images) -> Tensor:
        """The standard deviation of every prediction, [n, outputs] on the CPU; raises as ``predict`` does, and where the method has none.

        They are the method's own; targets lie within two of them of the prediction 19 times in 20 if it is calibrated.
        """
        found = None if self.classes else self.regress(inputs)[1]
        if found is None:
            raise UserError(f"algo={self.model.algo} does not know how sure it is of a prediction: use a method such as algo=alpaca")
        return found

    def regress(self, inputs: Images) -> tuple[Tensor, Tensor | None]:
        """``predict`` and ``deviations`` of a regression at once; None where the method has none of the latter."""
        outputs, scaling = self._outputs(self.model.inputs(inputs)), self.model.target_scaling
        guess, sure = best_guess(outputs), None if isinstance(outputs, Tensor) else spread(outputs).sqrt()
        if scaling:
            guess, sure = scaling.back(guess), None if sure is None else sure * scaling.deviation.to(sure)
        return guess, sure

    def export(self, path: str | Path) -> None:
        """Write the adapted learner as a program of its own, which needs torch but not metarun: ``torch.export.load(path).module()(x)``.

        It maps x [n, *input_shape] float32 on the CPU, any n >= 1 (pictures 0..1, prepared as ``Model.inputs`` does; rows of a table as
        they are), to probabilities [n, way], or to predictions [n, outputs]. The extra file ``metarun.json`` in it names classes, input
        shape, the columns of a table in order, and norm: with ``net.norm=batch`` the program, too, normalises its queries together.

        Raises:
            UserError: the path does not end in .pt2, or is a folder.
        """
        path = Path(path)
        if path.suffix != ".pt2" or path.is_dir():
            raise UserError(f"cannot export to {path}: give a file that ends in .pt2")
        net, problem = self.model.algorithm.net, self.model.algorithm.problem
        facts = {
            "algo": self.model.algo,
            "classes": self.classes,
            "input_shape": problem.input_shape,
            "transductive": self.transductive,
            "norm": net.norm,
        } | (self.model.form._asdict() if self.model.form else {})
        batch = torch.export.Dim("n", min=1, max=2**20)
        program = torch.export.export(Network(self), (torch.rand(3, *problem.input_shape),), dynamic_shapes=({0: batch},), strict=False)
        extra = {"metarun.json": json.dumps(facts, default=str)}
        replace_file(path, lambda handle: torch.export.save(program, handle, extra_files=extra))

    @torch.no_grad()
    def _outputs(self, x: Tensor) -> Tensor | Gaussian | Samples:
        """Logits or predictions on the CPU, of inputs as the net is given them."""
        parts = [x] if self.transductive else x.split(CHUNK)
        with kernels.using(self.model.kernels):
            answers = [self.model.algorithm.predict(self.state, part) for part in parts]
        axis = int(isinstance(answers[0], Samples))  # of the queries: that of the members comes before it
        outputs = tree_map(lambda *leaves: torch.cat(leaves, axis).float().cpu(), *answers)
        if not all(leaf.isfinite().all() for leaf in tree_leaves(outputs)):
            raise RunError("the adapted net answers with numbers that are not finite: adaptation diverged; take fewer steps")
        return outputs


class Network(nn.Module):
    """An adapted learner as one net on the CPU: [n, *input_shape] to probabilities [n, way] or predictions [n, outputs].

    Learner and state are no submodules: what the answer does not need (weights from before adaptation) then stays out of the export.
    """

    def __init__(self, fitted: Fitted) -> None:
        super().__init__()
        algorithm = copy.deepcopy(fitted.model.algorithm).cpu()
        # Contiguous: weights lie in another order in memory, of which saving warns.
        for parameter in algorithm.parameters():
            parameter.data = parameter.data.contiguous()
        state = tree_map(lambda leaf: leaf.cpu().contiguous() if isinstance(leaf, Tensor) else leaf, fitted.state)
        self.answer = lambda x: best_guess(algorithm.predict(state, x))
        self.classify, self.temperature = bool(fitted.classes), fitted.model.temperature
        self.scaling, self.target_scaling = fitted.model.scaling, fitted.model.target_scaling

    def forward(self, x: Tensor) -> Tensor:
        if self.scaling:
            x = self.scaling(x.double()).to(x)
        if self.classify:
            return (self.answer(x) / self.temperature).softmax(-1)
        return self.target_scaling.back(self.answer(x)) if self.target_scaling else self.answer(x)
