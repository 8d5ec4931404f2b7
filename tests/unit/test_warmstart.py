"""init_from: the backbone of another run by name, for every method; what does not match is said; a run that goes on does not need it."""

from __future__ import annotations

import logging
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import LEARNERS, SIDE, Builder, bandits, classification, control, metrics_of, regression, same

from metarun.abilities import Searches
from metarun.algos.gradient.mamlpp import MAMLPP
from metarun.config.stored import read_config
from metarun.errors import UserError
from metarun.experiment import evaluate, train
from metarun.optim import MetaOptimizer
from metarun.predict import trained
from metarun.run import Run
from metarun.storage import checkpoint
from metarun.trainer import Interrupted

SOURCES = {
    "classification": ("protonet", classification),
    "regression": ("maml", regression),
    "control": ("maml_rl", control),
    "bandits": ("maml_rl", bandits),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A short run of each kind of problem."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in SOURCES}
    for kind, (algo, build) in SOURCES.items():
        train(build(algo, "trainer.iterations=2", "seed=3"), folders[kind])
    return folders


def backbone(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a run's best checkpoint by their names in the net."""
    state = checkpoint.load(folder / "checkpoints" / "best.pt")["algorithm"]
    return {name.removeprefix("net."): tensor for name, tensor in state.items() if name.startswith("net.")}


def starts_from(values: dict[str, Any], source: Path) -> dict[str, Any]:
    return values | {"init_from": str(source)}


@pytest.mark.parametrize(("algo", "problem"), LEARNERS)
def test_every_method_begins_with_the_backbone_and_with_nothing_else(algo: str, problem: Builder, sources: dict[str, Path]) -> None:
    source = sources[problem.__name__]
    values = problem(algo)
    fresh = Run(values).algorithm
    if not fresh.net.state_dict() or isinstance(fresh, Searches):  # the method has a net of its own, or needs another than the source has
        with pytest.raises(UserError, match="has no weight for this net"):
            Run(starts_from(values, source))
        return
    warm = Run(starts_from(values, source)).algorithm
    taken = backbone(source)
    found = {name.replace("parametrizations.", "").removesuffix(".original"): w for name, w in warm.net.state_dict().items()}
    assert all(torch.equal(found[name], weight) for name, weight in taken.items())
    started = fresh.state_dict()
    for name, weight in warm.state_dict().items():
        # What a method has in several copies follows the net.
        copies = [w for w in taken.values() if w.shape == weight.shape[1:] and torch.equal(weight, w.expand_as(weight))]
        assert ".net." in f".{name}" or torch.equal(weight, started[name]) or copies


def test_a_frozen_net_stays_as_it_came(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "run"
    train(classification("protonet", "net.norm=running", "trainer.iterations=2"), source)
    words = ("net.norm=running", "net.frozen=true", "trainer.iterations=2")
    train(starts_from(classification("incontext", *words), source), folder)
    before, after = backbone(source), backbone(folder)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    ours, theirs = (trained.load(run, device="cpu").algorithm.net for run in (folder, source))
    images = torch.rand(4, 2, SIDE, SIDE)
    torch.testing.assert_close(ours.train()(images), theirs(images))
    assert not list(ours.parameters())
    with pytest.raises(UserError, match=r"net.norm=batch looks at others"):
        Run(classification("incontext", "net.frozen=true", "net.norm=batch"))


def test_a_frozen_net_that_comes_from_nowhere_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, words = tmp_path / "source", ("net.norm=running", "net.frozen=true")
    train(classification("protonet", "net.norm=running"), source)
    caplog.clear()
    Run(starts_from(classification("incontext", *words), source))
    assert "stays as random" not in caplog.text
    Run(classification("incontext", *words))
    assert "net.frozen=true without init_from=RUN: the net stays as random as it begins" in caplog.text


def test_norm_weights_of_later_steps_begin_as_those_of_the_other_run(sources: dict[str, Path]) -> None:
    algorithm = Run(starts_from(classification("mamlpp"), sources["classification"])).algorithm
    assert isinstance(algorithm, MAMLPP)
    trained = {f"net.{name}": weight for name, weight in backbone(sources["classification"]).items() if ".norm." in name}
    assert all(not torch.equal(weight, weight.round()) for weight in trained.values())
    for k in range(algorithm.inner_steps + 1):
        assert same(algorithm.own(k), trained)


@pytest.mark.parametrize("algo", ["protonet", "mtl"])
def test_filters_of_mtl_come_with_their_scales(algo: str, tmp_path: Path) -> None:
    train(classification("mtl", "net.norm=running", "optim.lr=0.1"), tmp_path)
    source, warm = trained.load(tmp_path).algorithm.net, Run(starts_from(classification(algo, "net.norm=running"), tmp_path)).algorithm.net
    scales = [weight for name, weight in source.named_parameters() if name.endswith(".scale")]
    assert scales
    assert all(float((scale - 1).abs().max()) > 0.1 for scale in scales)
    x = torch.rand(4, 2, SIDE, SIDE)
    torch.testing.assert_close(warm.eval()(x), source(x))


def said(values: dict[str, Any], caplog: pytest.LogCaptureFixture) -> str:
    """The one line about init_from."""
    with caplog.at_level(logging.INFO):
        Run(values)
    (line,) = [record.getMessage() for record in caplog.records if record.getMessage().startswith("init_from=")]
    return line


def test_the_line_says_what_was_taken(sources: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    source = sources["classification"]
    assert said(starts_from(classification("maml"), source), caplog) == f"init_from={source}: 12 of the net's 12 tensors taken"


def test_the_line_says_what_did_not_match(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(classification("maml", "net.norm=running", "net.hidden=4", "trainer.iterations=1"), tmp_path)
    state = checkpoint.load(tmp_path / "checkpoints" / "best.pt")
    state["algorithm"]["net.blocks.0.norm.weight"] = torch.full((8,), 3.0)
    checkpoint.save(tmp_path / "checkpoints" / "best.pt", state)
    line = said(starts_from(classification("maml"), tmp_path), caplog)
    assert line.startswith(
        f"init_from={tmp_path}: 1 of the net's 12 tensors taken; of another shape: blocks.0.conv.weight, blocks.0.norm.bias, "
    )
    assert line.endswith("; only in that run: blocks.0.norm.mean, blocks.0.norm.var, blocks.1.norm.mean and 5 more")
    assert "\n" not in line


def test_statistics_that_the_other_run_lacks_are_named(sources: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    line = said(starts_from(classification("maml", "net.norm=running"), sources["classification"]), caplog)
    assert line.endswith(
        "12 of the net's 20 tensors taken; not in that run: blocks.0.norm.mean, blocks.0.norm.var, blocks.1.norm.mean and 5 more"
    )


def test_a_run_with_nothing_that_fits_is_refused(sources: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"init_from=.* has no weight for this net; .*choose the net of that run, or init_from=null"):
        Run(starts_from(classification("maml"), sources["regression"]))


def test_a_folder_without_a_run_or_with_a_damaged_one_is_refused(sources: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"init_from=.*nowhere is not possible: there is no run folder"):
        Run(starts_from(classification("maml"), tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"is not a run folder"):
        Run(starts_from(classification("maml"), tmp_path))
    shutil.copytree(sources["classification"], tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "best.pt").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match=r"init_from=.* is not possible: the checkpoint .* is damaged"):
        Run(starts_from(classification("maml"), tmp_path / "run"))
    (tmp_path / "run" / "checkpoints" / "best.pt").unlink()
    with pytest.raises(UserError, match=r"init_from=.* is not possible: no checkpoint at"):
        Run(starts_from(classification("maml"), tmp_path / "run"))


@pytest.mark.parametrize("algo", ["maml", "mtl"])
def test_resume_eval_and_load_do_not_need_the_other_run_any_more(
    algo: str, sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shutil.copytree(sources["classification"], tmp_path / "source")
    values = starts_from(classification(algo), source)
    straight = train(values, tmp_path / "straight")
    step, done = MetaOptimizer.step, []

    def interrupting(self: MetaOptimizer, progress: float) -> dict[str, float]:
        done.append(progress)
        if len(done) == 3:
            signal.raise_signal(signal.SIGINT)
        return step(self, progress)

    with monkeypatch.context() as patch:
        patch.setattr(MetaOptimizer, "step", interrupting)
        with pytest.raises(Interrupted):
            train(values, tmp_path / "cut")
    shutil.rmtree(source)
    resumed = train(read_config(tmp_path / "cut"), tmp_path / "cut", resume=True)
    assert metrics_of(tmp_path / "cut") == metrics_of(tmp_path / "straight")
    assert resumed["test"] == straight["test"]
    assert evaluate(read_config(tmp_path / "cut"), tmp_path / "cut", "best", tmp_path / "eval")["test"] == straight["test"]
    assert trained.load(tmp_path / "cut").algo == algo


def test_run_folders_from_before_the_key_can_be_used(tmp_path: Path) -> None:
    values = classification("maml", "trainer.iterations=1")
    del values["init_from"]
    train(values, tmp_path)
    assert trained.load(tmp_path).algo == "maml"
