"""On a GPU everything is as on a CPU: gradients and scores to 1e-9 in float64, whatever the chunks, and whole runs to their summary.
Without a GPU nothing of this runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_support import TINY, program
from helpers import (
    LEARNING_CLASSIFIERS,
    PROBLEMS,
    Builder,
    classification,
    engine,
    in_float64,
    interrupt_after,
    meta_gradient,
    moved,
    relative_error,
    small,
)

import metarun
from metarun.algorithm import Algorithm
from metarun.experiment import train
from metarun.protocols.episodes import EVERY, LAST
from metarun.run import Run
from metarun.runtime.recording import EAGER, Recordings
from metarun.task import Task
from metarun.trainer import Interrupted

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
GPU = "cuda"


def of_any_net(algo: str, *words: str) -> dict[str, Any]:
    """A resolved config of a tiny run on the toy images, whatever the net."""
    return small(f"algo={algo}", *words)


MODES = [(), ("algo.first_order=true",), ("algo.mode=mixed",)]
VARIANTS = [
    *(pytest.param(*param.values, (), id=str(param.id)) for param in PROBLEMS),
    *(pytest.param("maml", classification, ("net.down=stride", *mode), id=f"maml-{'-'.join(mode)}") for mode in MODES),
    pytest.param("imaml", classification, ("net.down=stride",), id="imaml-stride"),
    pytest.param("metaoptnet", classification, ("algo.head=ridge",), id="metaoptnet-ridge"),
    *(pytest.param("maml", of_any_net, ("way=2", "query=1", f"net={net}"), id=f"maml-{net}") for net in ("mlp", "resnet12")),
    *(pytest.param("maml", classification, (f"net.norm={norm}",), id=f"maml-{norm}") for norm in ("support", "running", "group")),
]


def on_gpu(algorithm: Algorithm, tasks: Task) -> tuple[Algorithm, Task]:
    return algorithm.to(GPU), moved(tasks, GPU)


@pytest.mark.parametrize(("algo", "problem", "words"), VARIANTS)
def test_gradients_and_scores_are_those_of_the_cpu(algo: str, problem: Builder, words: tuple[str, ...]) -> None:
    algorithm, tasks = in_float64(problem(algo, *words))

    def outcomes(tasks: Task, device: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        gradient = meta_gradient(algorithm.train(), tasks, engine(device=device)) if algorithm.learns else torch.zeros(0)
        return gradient.cpu(), engine(device=device).evaluate(algorithm.eval(), tasks, EVERY)

    gradient, scores = outcomes(tasks, "cpu")
    gradient_there, scores_there = outcomes(on_gpu(algorithm, tasks)[1], GPU)
    if algorithm.learns:
        assert relative_error(gradient_there, gradient) < 1e-9
    assert scores_there.keys() == scores.keys()
    for name, values in scores.items():
        torch.testing.assert_close(scores_there[name], values, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("algo", ["maml", "protonet", "imaml"])
@pytest.mark.parametrize("how", [{"chunk": 1}, {"chunk": 2}, {"chunk": "auto"}, {"map": "loop"}], ids=str)
def test_chunks_change_nothing(algo: str, how: dict[str, Any]) -> None:
    algorithm, tasks = on_gpu(*in_float64(classification(algo)))
    whole = meta_gradient(algorithm, tasks, engine(device=GPU))
    assert relative_error(meta_gradient(algorithm, tasks, engine(**how, device=GPU)), whole) < 1e-9


def test_what_cannot_be_recorded_leaves_the_gpu_in_order() -> None:
    module, replay = torch.nn.Linear(3, 3).to(GPU), Recordings(torch.device(GPU))
    call = replay.of(module, "name", lambda module, x: module(x) if x.sum() > 0 else x)
    for _ in range(EAGER + 1):
        call(module, torch.ones(2, 3, device=GPU))
    (entry,) = replay.entries[module].values()
    assert "looks into the data" in entry.why_not
    assert torch.isfinite(torch.randn(3, device=GPU)).all()


@pytest.mark.parametrize("algo", ["maml", "protonet", "reptile", "imaml", "cavia", "anil", "metaoptnet", "r2d2"])
def test_a_step_is_recorded(algo: str) -> None:
    algorithm, tasks = on_gpu(*in_float64(classification(algo)))
    replaying = engine(device=GPU)
    for _ in range(EAGER + 1):
        meta_gradient(algorithm, tasks, replaying)
    (entry,) = replaying.executor.recordings.entries[algorithm].values()
    assert entry.program, entry.why_not


@pytest.mark.parametrize("algo", LEARNING_CLASSIFIERS)
def test_bf16_is_near_fp32(algo: str) -> None:
    run, half = (Run(classification(algo, f"device={GPU}", f"precision={precision}")) for precision in ("fp32", "bf16"))
    tasks = run.episodes("train").batch(range(4))
    exact, rough = (one.engine.evaluate(one.algorithm.eval(), tasks, LAST)["loss"] for one in (run, half))
    assert relative_error(rough, exact) < 0.3
    assert torch.isfinite(meta_gradient(half.algorithm.train(), tasks, half.engine)).all()


def test_training_in_bf16_learns(tmp_path: Path) -> None:
    words = ("precision=bf16", "trainer.iterations=200", "trainer.val_every=200", "trainer.meta_batch=8", "trainer.test_episodes=200")
    summary = train(classification("protonet", f"device={GPU}", *words), tmp_path)
    assert summary["precision"] == "bf16"
    assert summary["test"]["accuracy"]["mean"] > 0.5  # chance is a third


@pytest.mark.parametrize("algo", ["maml", "protonet"])
def test_a_run_that_was_cut_is_resumed(algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = classification(algo, f"device={GPU}")
    straight = train(values, tmp_path / "straight")
    with monkeypatch.context() as patch:
        interrupt_after(3, patch)
        with pytest.raises(Interrupted):
            train(values, tmp_path / "cut")
    resumed = train(values, tmp_path / "cut", resume=True)
    assert resumed["iterations"] == straight["iterations"]
    assert resumed["test"]["loss"]["mean"] == pytest.approx(straight["test"]["loss"]["mean"], rel=1e-3)


def test_the_program_trains_profiles_resumes_and_predicts(tmp_path: Path) -> None:
    run = tmp_path / "run"

    def call(*words: str) -> str:
        with program(*words, cwd=tmp_path) as process:
            _, said = process.communicate()
        assert process.returncode == 0, said
        return said

    said = call("algo=maml", *TINY, f"device={GPU}", "trainer.iterations=6", "trainer.profile=true", f"hydra.run.dir={run}")
    assert "where the time of a few training steps goes" in said
    events = json.loads((run / "profile" / "training.pt.trace.json").read_text())["traceEvents"]
    assert any(event.get("cat") == "kernel" for event in events)
    first = json.loads((run / "summary.json").read_text())
    assert first["device"].startswith(GPU)
    assert first["peak_memory_mb"] > 0
    (run / "summary.json").unlink()  # as if it had been cut during its test
    call("resume", str(run))
    again = json.loads((run / "summary.json").read_text())
    assert again["test"]["accuracy"]["mean"] == pytest.approx(first["test"]["accuracy"]["mean"], abs=0.05)

    model = metarun.load(run)
    assert model.device.type == GPU
    images, labels = torch.rand(6, *model.algorithm.problem.input_shape), list("aabbcc")
    fitted, here = model.adapt(images, labels), metarun.load(run, device="cpu").adapt(images, labels)
    torch.testing.assert_close(fitted.probabilities(images), here.probabilities(images), rtol=0.05, atol=0.02)
    fitted.export(tmp_path / "learner.pt2")
