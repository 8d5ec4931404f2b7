"""Services beside TensorBoard: what they are sent, that their failures fail no run, and that a stored configuration sends nothing."""

from __future__ import annotations

import importlib.util
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from helpers import classification

from metarun import experiment
from metarun.config.compose import compose, resolve
from metarun.config.stored import read_config
from metarun.errors import MissingLibrary, UserError
from metarun.session import runs
from metarun.sweeps import stored
from metarun.tracking import sinks
from metarun.tracking.sink import Sink
from metarun.tracking.sinks import IDS, Guarded, known_ids


class Kept(Sink):
    """A service that remembers."""

    def __init__(self, known: str | None = None) -> None:
        self.id, self.sent, self.pictures, self.final, self.ended = known or "abc123", [], [], {}, None

    def scalars(self, axis, step, values):
        self.sent.append((axis, step, dict(values)))

    def image(self, tag, image, step):
        assert image.dtype == np.uint8
        self.pictures.append(tag)

    def results(self, values):
        self.final = dict(values)

    def close(self, failed):
        self.ended = failed


class Down(Kept):
    def scalars(self, axis, step, values):
        raise ConnectionError("no route to host")


@pytest.fixture
def opened(monkeypatch):
    """Every service that is opened is one that remembers."""
    found = {}

    def fake(name, wanted, folder, title, parameters, project, known):
        found[name] = Kept(known)
        found[name].opened = (wanted, title, parameters, project, known)
        return found[name]

    monkeypatch.setattr(sinks, "_open", fake)
    return found


def with_services(**services):
    found = classification("protonet", "trainer.iterations=4")
    return {**found, "logger": {**found["logger"], **services}}


def logging_to(name: str, **changes):
    """A run with the options of ``logger=NAME``."""
    option = resolve(compose([f"logger={name}"]))["logger"]
    return {**classification("protonet", "trainer.iterations=4"), "logger": {**option, "every": 2, "pictures": False, **changes}}


def test_several_at_once_get_what_metrics_jsonl_has(opened, tmp_path):
    summary = experiment.train(with_services(wandb="offline", mlflow="local", pictures=True), tmp_path)
    assert set(opened) == {"wandb", "mlflow"}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    wanted = [
        ("iteration", line["step"], {f"{line['split']}/{name}": value for name, value in line.items() if name not in ("step", "split")})
        for line in lines
    ]
    for sink in opened.values():
        sent = [point for point in sink.sent if point[0] == "iteration"]
        assert [(axis, step, set(found)) for axis, step, found in sent] == [(axis, step, set(found)) for axis, step, found in wanted]
        assert sent[0][2]["train/loss"] == wanted[0][2]["train/loss"]
        curve = [(step, found["test/adaptation_curve"]) for axis, step, found in sink.sent if axis == "inner_step"]
        assert curve == [(point["step"], point["mean"]) for point in summary["test"]["curve"]]
        assert sink.final["hparam/accuracy"] == summary["test"]["accuracy"]["mean"]
        assert sink.ended is False
        assert sink.opened[2]["algo.name"] == "protonet"
        assert not any(name.endswith("_target_") or name.startswith(("logger.", "data.root")) for name in sink.opened[2])
    assert known_ids(tmp_path) == {"wandb": "abc123", "mlflow": "abc123"}


def test_a_service_that_is_down_fails_no_run(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(sinks, "_open", lambda *_: Down())
    summary = experiment.train(with_services(mlflow="local"), tmp_path)
    assert summary["test"]
    assert [message for message in caplog.messages if "mlflow" in message] == ["mlflow gets no more of this run: no route to host"]


def test_a_run_that_fails_ends_as_failed(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "measure", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        experiment.train(with_services(wandb="offline"), tmp_path)
    assert opened["wandb"].ended is True


def test_an_error_gives_a_sink_up_once(caplog):
    guarded = Guarded("wandb", Down())
    for _ in range(3):
        guarded(lambda sink: sink.scalars("iteration", 1, {}))
    assert len(caplog.messages) == 1


def test_an_evaluation_and_a_resumed_run_send_only_where_the_command_line_says(opened, tmp_path):
    experiment.train(with_services(wandb="online", mlflow="http://localhost:1", tensorboard=False), tmp_path / "run")
    opened.clear()
    runs.evaluate(tmp_path / "run", [], "best", "test")
    assert not opened
    runs.evaluate(tmp_path / "run", ["shot=3"], "best", "test")
    assert not opened
    runs.evaluate(tmp_path / "run", ["logger=mlflow"], "best", "test")
    assert set(opened) == {"mlflow"}
    assert opened["mlflow"].opened[0] == "local"
    assert opened["mlflow"].final["hparam/accuracy"]
    opened.clear()
    # Cut short and gone on with: what sends is left out, what stays here goes on under the same name.
    (tmp_path / "run" / "summary.json").unlink()
    runs.resume(tmp_path / "run", [])
    assert not opened
    (tmp_path / "run" / "summary.json").unlink()
    runs.resume(tmp_path / "run", ["logger=wandb"])
    assert opened["wandb"].opened[0::4] == ("offline", "abc123")
    opened.clear()
    (tmp_path / "run" / "summary.json").unlink()
    assert read_config(tmp_path / "run")["logger"]["wandb"] == "offline"
    runs.resume(tmp_path / "run", [])
    assert set(opened) == {"wandb"}


def test_a_sweep_from_a_file_sends_nothing(tmp_path):
    for word, refused in (
        ("logger=wandb", False),
        ("logger.wandb=offline", False),
        ("logger.wandb=online", True),
        ("+logger.wandb=online", True),
        ("logger.wandb=offline,online", True),
        ("logger.mlflow=local", False),
        ("logger.mlflow=http://somewhere", True),
    ):
        (tmp_path / "sweep.json").write_text(json.dumps({"words": ["seed=0,1", word], "started": 0.0}))
        if refused:
            with pytest.raises(UserError, match="which can run code, or write or send elsewhere, and is not taken from a file"):
                stored.words(tmp_path, [])
            assert stored.words(tmp_path, [word]) == ["seed=0,1", word]
        else:
            assert stored.words(tmp_path, []) == ["seed=0,1", word]


def test_names_of_services_are_names(tmp_path):
    (tmp_path / IDS).write_text('{"wandb": "../../x", "mlflow": "0a1b"}')
    assert known_ids(tmp_path) == {"mlflow": "0a1b"}
    (tmp_path / IDS).write_text("[1]")
    assert known_ids(tmp_path) == {}


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_library_that_is_not_here_is_named(tmp_path, name):
    if importlib.util.find_spec(name):
        pytest.skip(f"{name} is installed")
    found = logging_to(name)
    with pytest.raises(MissingLibrary, match=rf"logger={name} needs a library that is not installed: pip install -e '\.\[{name}\]'"):
        experiment.train(found, tmp_path)


def test_a_value_that_is_none(tmp_path):
    with pytest.raises(UserError, match=r"logger\.wandb=onlin is not possible: it should be 'offline' or 'online'.*did you mean 'online'"):
        experiment.train(logging_to("wandb", wandb="onlin"), tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_mlflow_keeps_a_run_in_its_local_store(tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    folder = tmp_path / "2026-01-31" / "run"
    folder.mkdir(parents=True)
    summary = experiment.train(logging_to("mlflow", tensorboard=False), folder)
    client = mlflow.tracking.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("metarun").experiment_id])
    assert run.info.run_id == known_ids(folder)["mlflow"]
    assert run.info.status == "FINISHED"
    assert run.data.params["algo.name"] == "protonet"
    assert run.data.metrics["hparam/accuracy"] == pytest.approx(summary["test"]["accuracy"]["mean"])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    wanted = [(line["step"], line["loss"]) for line in lines if line["split"] == "train"]
    assert [(point.step, pytest.approx(point.value)) for point in client.get_metric_history(run.info.run_id, "train/loss")] == wanted
    (folder / "summary.json").unlink()
    runs.resume(folder, [])
    assert len(client.search_runs([run.info.experiment_id])) == 1


@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_a_run_in_its_folder(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "run"
    folder.mkdir()
    summary = experiment.train(logging_to("wandb", pictures=True), folder)
    (kept,) = Path(folder / "wandb").glob("offline-run-*/run-*.wandb")
    assert known_ids(folder)["wandb"] in kept.name
    found, history = read_wandb(kept)
    assert found["hparam/accuracy"] == pytest.approx(summary["test"]["accuracy"]["mean"])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    wanted = [(line["step"], pytest.approx(line["loss"])) for line in lines if line["split"] == "train"]
    assert [(row["iteration"], row["train/loss"]) for row in history if "train/loss" in row] == wanted
    assert list((folder / "tb").iterdir())
    (folder / "summary.json").unlink()
    runs.resume(folder, [])  # goes on under the same name
    assert {path.name for path in folder.glob("wandb/offline-run-*/run-*.wandb")} == {kept.name}
    assert len(list(folder.glob("wandb/offline-run-*"))) == 2


def read_wandb(path: Path):
    """The summary and the rows of an offline run, a log of protocol buffers in blocks as LevelDB's."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole, rows, summary = path.read_bytes(), 7, b"", [], {}
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:  # the rest of a block
            at += 2**15 - at % 2**15
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole, at = whole + data[at + 7 : at + 7 + length], at + 7 + length
        if kind not in (1, 4):  # neither whole nor the last part
            continue
        record, whole = wandb_internal_pb2.Record.FromString(whole), b""
        if record.HasField("history"):
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item})
        for update in record.summary.update:
            summary[update.key or "/".join(update.nested_key)] = json.loads(update.value_json)
    return summary, rows
