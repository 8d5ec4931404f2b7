"""The benchmark's own arithmetic: ratios of neighbouring turns, differences of outcomes, and a page that says what was found."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def bench() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        import bench

        yield bench
        for name in ("bench", "bench_page"):
            sys.modules.pop(name)


def test_a_ratio_is_that_of_neighbouring_turns(bench: ModuleType) -> None:
    found = bench.against({"metarun": [1.0, 2.0, 10.0], "learn2learn": [3.0, 4.0, 50.0]}, "learn2learn")
    assert found == {"ratio": 3.0, "ratio_min": 2.0, "ratio_max": 5.0, "metarun_s": 2.0, "peer_s": 4.0}


def test_differences_are_relative_and_over_all_weights(bench: ModuleType) -> None:
    theirs = {"loss": torch.tensor(2.0), "a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])}
    ours = {**theirs, "loss": torch.tensor(2.5), "a": torch.tensor([3.5])}
    assert bench.difference(ours, theirs) == {"loss": pytest.approx(0.25), "gradient": pytest.approx(0.1)}
    assert bench.difference(theirs, theirs) == {"loss": 0.0, "gradient": 0.0}


@pytest.mark.parametrize("error", [1e-7, float("nan")])
def test_a_peer_that_disagrees_is_noticed(bench: ModuleType, error: float) -> None:
    assert not bench.disagree({"errors": {"loss": 1e-12, "gradient": 1e-12}})
    assert not bench.disagree({"errors": {}, "metalearn": {"errors": {"loss": 0.0}}})
    assert bench.disagree({"errors": {"loss": 1e-12, "gradient": error}})
    assert bench.disagree({"errors": {}, "metalearn": {"errors": {"loss": error}}})


@pytest.mark.parametrize("name", ["W1", "W5", "W7"])
@pytest.mark.slow
def test_metaruns_side_answers_in_a_process_of_its_own(bench: ModuleType, name: str, tmp_path: Path) -> None:
    options, work = type("Options", (), {"device": "cpu", "threads": 1}), bench.WORKS[name]
    side = bench.ask_on(bench.Process("metarun"), *bench.prepare(work, 2, options), str(tmp_path))
    side.ask("outcome", file=str(tmp_path / "outcome.pt"))
    answer = side.ask("round", seconds=0.001)
    side.close()
    assert answer["seconds"][0] > 0
    assert answer["peak_mb"] >= answer["before_mb"] > 0
    outcome = torch.load(tmp_path / "outcome.pt")
    assert outcome.keys() >= {"W1": {"loss", "head.weight"}, "W5": {"loss", "score"}, "W7": set()}[name]
    assert all(torch.isfinite(value).all() for value in outcome.values())


@pytest.mark.slow
def test_every_work_describes_a_run_that_metarun_accepts(bench: ModuleType) -> None:
    options = type("Options", (), {"device": "cpu", "threads": 1})
    for work in bench.WORKS.values():
        told, data = bench.prepare(work, 2, options)
        assert told["words"] == work.words
        assert all(len(data[name]) == 2 for name in ("xs", "ys", "xq", "yq") if data)


def test_a_library_runs_in_its_own_environment_or_in_this_one(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "CHECKOUT", tmp_path)
    assert bench.interpreter("torch") == Path(sys.executable)
    assert bench.interpreter("no_such_library") is None
    (tmp_path / ".peers/torch/lib/python3.12/site-packages/torch").mkdir(parents=True)
    assert bench.interpreter("torch") == tmp_path / ".peers/torch/bin/python"


def test_on_a_gpu_nothing_is_sampled(bench: ModuleType) -> None:
    assert bench.works_on("cpu") == [*bench.WORKS, "W8"]
    assert bench.works_on("cuda") == [name for name in bench.works_on("cpu") if name != "W7"]
    assert bench.works_on("cpu", bf16=False) == [name for name in bench.works_on("cpu") if not name.endswith("b")]
    assert all(work.bar_gpu is None or work.bar_gpu > work.bar for work in bench.WORKS.values())


@pytest.mark.parametrize("lasting", [False, True])
def test_processes_last_if_they_shall(bench: ModuleType, lasting: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    class Process:
        def __init__(self, library: str) -> None:
            self.library = library

        def close(self) -> None:
            closed.append(self.library)

    monkeypatch.setattr(bench, "Process", Process)
    sides = bench.Sides(lasting)
    first = sides.take(["metarun", "learn2learn"])
    second = sides.take(["metarun"])
    assert list(second) == ["metarun"]
    assert (second["metarun"] is first["metarun"]) == lasting
    assert closed == ([] if lasting else ["metarun", "learn2learn"])
    sides.close()
    assert len(closed) == (2 if lasting else 3)


PEAKS = {"fp32": 100.0, "bf16": 200.0}
ABOUT = {
    "cpu": {"on": "cpu", "machine": {"device": "CPU", "threads": 2, "cpu_capability": "AVX2", "torch": "2"}, "peaks_gflops": PEAKS},
    "cuda": {
        "on": "cuda",
        "machine": {"device": "A GPU", "cpu": "A CPU", "threads": 16, "torch": "2"},
        "peaks_gflops": PEAKS | {"tf32": 150.0},
    },
}


@pytest.mark.parametrize("device", ABOUT)
def test_the_page_has_a_row_for_every_work(bench: ModuleType, device: str) -> None:
    time = {
        "ratio": 3.0,
        "ratio_min": 2.0,
        "ratio_max": 5.0,
        "metarun_s": 0.002,
        "peer_s": 0.006,
        "peer_mb": 700.0,
        "errors": {"loss": 2e-7},
    }
    work = {**time, "title": "some work", "bar": 2.5, "metarun_mb": 600.0, "gflop": 0.1}
    memory = {"title": "memory", "bar": 1.3, "ratio": 1.1, "peer_ratio": 9.0, "peaks_mb": {}}
    memory["grown_mb"] = {"metarun": [100.0, 110.0], "learn2learn": [50.0, 450.0]}
    race = {"title": "a race", "bar": 3.0, "ratio": 4.0, "metarun_s": 100.0, "peer_s": 400.0, "metarun_step": 8, "peer_step": 9, "seed": 0}
    found = ABOUT[device] | {"rounds": 9, "seconds": 1.5, "episodes": 600, "peer_episodes": 30}
    import bench_page

    page = bench_page.page(found | {"works": {"W1": {**work, "metalearn": time}, "W7": {**work, "gflop": 0.0}, "W8": memory, "W9": race}})
    assert "| W1: some work | 2.5 | 3.00 (2.00 to 5.00) | 2.0 | 6.0 | 50 (50%) | 600 / 700 | 2e-07 | 3.00 (2.00 to 5.00) |" in page
    assert "| W7: some work | 2.5 | 3.00 (2.00 to 5.00) | 2.0 | 6.0 | – | 600 / 700 | 2e-07 | – |" in page
    assert "1.10 times the peak" in page
    assert "a race: 4.00 times as fast as learn2learn (must be 3.0); 100 s, at iteration 8, against\n400 s, at iteration 9; seed 0" in page
    on_gpu = (
        "A GPU, A CPU with 16 threads",
        "150 in TF32",
        "learn2learn, which takes one after the other, does 30",
        "allow_tf32",
        "--device cuda --write`",
    )
    assert all((words in page) == (device == "cuda") for words in on_gpu)
    assert ("allocator" in page) == (device == "cpu")


def test_each_device_has_a_page_of_its_own(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bench_page

    monkeypatch.setattr(bench_page, "DOCS", tmp_path)
    assert bench_page.kept(["W9"], "cuda") == {}
    with pytest.raises(SystemExit, match="benchmarks-gpu"):
        bench_page.written("cuda")
    race = {"title": "a race", "bar": 3.0, "ratio": 4.0, "metarun_s": 1.0, "peer_s": 4.0, "metarun_step": 8, "peer_step": 9, "seed": 0}
    for device, about in ABOUT.items():
        bench_page.write(
            about | {"rounds": 9, "seconds": 1.5, "episodes": 600, "peer_episodes": 30, "works": {"W9": race | {"title": device}}}
        )
    assert {path.name for path in tmp_path.iterdir()} == {f"benchmarks{part}" for part in (".md", ".json", "-gpu.md", "-gpu.json")}
    assert [bench_page.kept(["W9"], device)["W9"]["title"] for device in ABOUT] == ["cpu", "cuda"]


def test_an_interrupted_benchmark_keeps_what_was_measured(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bench_page

    def compare(work: Any, _sides: Any, _options: Any) -> dict[str, Any]:
        if work is bench.WORKS["W6"]:
            raise KeyboardInterrupt
        wrong = work is bench.WORKS["W1"]
        times = {"ratio": 3.0, "ratio_min": 2.0, "ratio_max": 5.0, "metarun_s": 0.002, "peer_s": 0.006, "gflop": 0.0}
        return {"title": work.title, "bar": work.bar, **times, "metarun_mb": 1.0, "peer_mb": 1.0, "errors": {"loss": 1.0 if wrong else 0.0}}

    monkeypatch.setattr(bench_page, "DOCS", tmp_path)
    monkeypatch.setattr(bench, "interpreter", lambda library: Path(sys.executable))
    monkeypatch.setattr(bench, "peak", lambda dtype, device: 100.0)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # of this process, which has other tests to run
    monkeypatch.setattr(bench, "compare", compare)
    monkeypatch.setattr(sys, "argv", ["bench.py", "--write", "--rounds", "2"])
    with pytest.raises(KeyboardInterrupt):
        bench.main()
    assert list(bench_page.written("cpu")["works"]) == ["W2", "W3", "W4", "W5", "W5f"]  # not W1, on which the sides disagree
    monkeypatch.setattr(sys, "argv", ["bench.py", "--write", "--rounds", "2", "--works", "W7", "W1b"])
    bench.main()
    assert list(bench_page.written("cpu")["works"]) == ["W2", "W3", "W4", "W5", "W5f", "W1b", "W7"]
    monkeypatch.setattr(sys, "argv", ["bench.py", "--write", "--rounds", "3", "--works", "W7"])
    with pytest.raises(SystemExit):
        bench.main()


def test_the_others_resnet_is_metaruns() -> None:
    from metarun.nets.resnet12 import ResNet12

    spec = importlib.util.spec_from_file_location("sides_native", SCRIPTS / "sides" / "native.py")
    assert spec is not None
    assert spec.loader is not None
    native = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(native)
    net = ResNet12((2, 10, 10), widths=[3, 4, 5, 6], flatten=False, norm="batch").double()
    weights = {f"net.{name}": value for name, value in net.state_dict().items()}
    model = native.learner({"net": "resnet12", "algo": "protonet"}, weights).double()
    x = torch.randn(4, 2, 10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x), net(x))
    assert native.names(model) == [f"net.{name}" for name, _ in net.named_parameters()]
