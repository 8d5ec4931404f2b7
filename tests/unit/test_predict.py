"""``metarun.load(RUN).adapt(…).predict(…)``: the same answers as the engine's, from any form of input, and what is refused.
The runs are hardly trained: what they answer matters less than that it is the same everywhere."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import small
from PIL import Image

import metarun
from metarun import experiment
from metarun.config.stored import read_config
from metarun.errors import RunError, UserError
from metarun.predict import trained as module
from metarun.protocols.episodes import LAST
from metarun.run import Run
from metarun.task import select

GLYPHS = ["data=glyphs", "data.train_classes=8", "data.val_classes=8", "data.test_classes=8", "data.size=16", "trainer.iterations=1"]
CASES = {
    "protonet": ["algo=protonet", "net.norm=batch"],
    "protonet-layer": ["algo=protonet", "net.norm=layer"],
    "protonet-support": ["algo=protonet", "net.norm=support"],
    "protonet-running": ["algo=protonet", "net.norm=running"],
    "maml": ["algo=maml", "net.norm=batch"],
    "maml-layer": ["algo=maml", "net.norm=layer"],
    "pretrain": ["algo=pretrain", "net.norm=group"],
    "semi": ["algo=protonet_soft", "net.norm=layer", "episode.unlabelled=3"],
}
WAVES = ["algo=maml", "data=sinusoid", "net=mlp", "way=1", "shot=5", "query=7", "trainer.iterations=1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of a run by its name; every run is trained once."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("runs") / name
            experiment.train(small(*(WAVES if name == "waves" else GLYPHS + CASES[name])), made[name])
        return made[name]

    return folder


def load(folder):
    return metarun.load(folder, device="cpu")


def episode(folder):
    """Task 0 of the run's test split, the engine's scores of it, and the run."""
    trained = Run(read_config(folder), torch.load(folder / "checkpoints" / "best.pt", weights_only=True))
    trained.algorithm.eval()
    tasks = trained.episodes("test").batch([0])
    return select(tasks, 0), trained.engine.evaluate(trained.algorithm, tasks, LAST), trained


@pytest.mark.parametrize("name", CASES)
def test_answers_as_the_engine_does(runs, name):
    task, scores, _ = episode(runs(name))
    support, query = task.context.support, task.query
    unlabelled = task.context.unlabelled if task.context.extras else None
    fitted = load(runs(name)).adapt(support.x, support.y, unlabelled=unlabelled)
    assert fitted.classes == [0, 1, 2]
    answers = torch.tensor(fitted.predict(query.x))
    assert (answers == query.y).float().mean() == scores["score"][0, 0]
    probabilities = fitted.probabilities(query.x, raw=True)
    assert torch.allclose(probabilities.sum(-1), torch.ones(6))
    assert torch.nn.functional.nll_loss(probabilities.log(), query.y) == pytest.approx(float(scores["loss"][0, 0]), abs=1e-5)
    assert fitted.transductive == (name in ("protonet", "maml"))


def test_regression_answers_as_the_engine_does(runs):
    task, scores, _ = episode(runs("waves"))
    model = load(runs("waves"))
    fitted = model.adapt(task.context.support.x, task.context.support.y)
    predictions = fitted.predict(task.query.x)
    assert predictions.shape == (7, 1)
    assert (predictions - task.query.y).square().mean() == pytest.approx(float(scores["score"][0, 0]), rel=1e-5)
    flat = model.adapt(task.context.support.x[:, 0].tolist(), task.context.support.y[:, 0].numpy())
    assert torch.equal(flat.predict(task.query.x[:, 0].tolist()), predictions)
    with pytest.raises(UserError, match="regression has no probabilities"):
        fitted.probabilities(task.query.x)
    with pytest.raises(UserError, match=r"targets have shape \[4, 1\], but 5 inputs with 1 numbers each need \[5, 1\]"):
        model.adapt(task.context.support.x, [0.0, 1.0, 2.0, 3.0])
    with pytest.raises(UserError, match=r"target 3 of 5, counted from 0, has a number that is not finite"):
        model.adapt(task.context.support.x, [0.0, 1.0, 2.0, float("nan"), 3.0])
    with pytest.raises(UserError, match="not pictures: give numbers instead of files"):
        model.adapt(["a.png", "b.png"], [0.0, 1.0])


def test_the_data_of_the_run_are_not_needed(tmp_path):
    for name in "abcdefgh":
        for i in range(4):
            path = tmp_path / "data" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), (30 * ord(name) % 256, 60 * i, 9)).save(path)
    words = ["algo=protonet", "data=folder", f"data.root={tmp_path}/data", "data.size=16", "way=2", "shot=1", "query=1"]
    experiment.train(small(*words, "data.val_fraction=0.3", "data.test_fraction=0.3", "trainer.iterations=1"), tmp_path / "run")
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    model = load(tmp_path / "run")
    files = sorted((tmp_path / "elsewhere").glob("[ab]/*.png"))
    fitted = model.adapt(files, [path.parent.name for path in files])
    assert model.reader.shape == (3, 16, 16)
    assert len(fitted.predict([str(path) for path in files])) == 8


def test_data_that_are_not_pictures_take_tensors(tmp_path):
    experiment.train(small("algo=protonet", "trainer.iterations=1"), tmp_path / "run")
    model = load(tmp_path / "run")
    assert model.reader is None
    assert len(model.adapt(torch.rand(4, 2, 16, 16), list("abab")).predict(torch.rand(3, 2, 16, 16))) == 3
    with pytest.raises(UserError, match=r"takes \[n, 2, 16, 16\], n >= 1$"):
        model.inputs(torch.rand(4, 16, 16))


def test_every_form_of_an_image_is_the_same(runs, tmp_path):
    model = load(runs("protonet-layer"))
    pixels = torch.randint(0, 256, (4, 16, 16), dtype=torch.uint8)
    pixels[:, [0, -1]], pixels[:, :, [0, -1]] = 0, 0  # dark paper: ink is light already
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path, image in zip(paths, pixels):
        Image.fromarray(image.numpy()).save(path)
    wanted = model.inputs(pixels)
    assert wanted.shape == (4, 1, 16, 16)
    assert 0.9 < wanted.max() <= 1
    forms = [
        pixels[:, None],
        pixels.numpy(),
        pixels.float() / 255,
        (pixels.double() / 255)[:, None].numpy(),
        paths,
        [str(p) for p in paths],
    ]
    for images in forms:
        assert torch.allclose(model.inputs(images), wanted, atol=1e-7)


def test_pictures_and_arrays_are_prepared_as_files_are(runs, tmp_path):
    """PIL images and arrays of any size, as cameras and libraries give them; what has the shape of an input is one already."""
    model = load(runs("protonet-layer"))
    pictures = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (40 + i, 30, 3), dtype=np.uint8)) for i in range(3)]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
    wanted = model.inputs(sorted(tmp_path.glob("*.png")))
    before = [picture.tobytes() for picture in pictures]
    assert torch.equal(model.inputs(pictures), wanted)
    assert [picture.tobytes() for picture in pictures] == before
    assert torch.equal(model.inputs([np.asarray(picture) for picture in pictures]), wanted)
    assert torch.equal(model.inputs([pictures[0], tmp_path / "1.png", str(tmp_path / "2.png")]), wanted)
    grey = np.stack([np.asarray(picture.convert("L").resize((33, 33))) for picture in pictures])
    assert torch.equal(model.inputs(grey), model.inputs([Image.fromarray(image) for image in grey]))
    assert torch.equal(model.inputs(path for path in sorted(tmp_path.glob("*.png"))), wanted)
    assert torch.equal(model.inputs(np.array([str(path) for path in sorted(tmp_path.glob("*.png"))])), wanted)
    assert torch.equal(model.inputs([np.asarray(pictures[0]), tmp_path / "1.png", pictures[2]]), wanted)
    ink = [np.pad(np.zeros((8, 8), np.uint8), (side - 8) // 2, constant_values=255) for side in (16, 20)]  # on white paper
    for some in ([ink[0]], ink):  # of a list each is a picture, also where it has the size of an input by chance
        assert torch.equal(model.inputs(some), model.inputs([Image.fromarray(image) for image in some]))
    fitted = model.adapt(pictures, ["a", "b", "b"])
    assert len(fitted.predict([pictures[2]])) == 1
    with pytest.raises(UserError, match="this is one picture: give a list of pictures"):
        model.inputs(np.asarray(pictures[0]))
    with pytest.raises(UserError, match="one of them is a list, others are files"):
        model.inputs([tmp_path / "1.png", [1.0]])
    with pytest.raises(UserError, match="this is one picture: give a list of pictures"):
        model.inputs(pictures[0])
    with pytest.raises(UserError, match="one of the pictures cannot be used: 32 bits a channel"):
        model.inputs([Image.new("F", (30, 30))])
    with pytest.raises(UserError, match=r"the inputs have shape \[2, 30, 30\]"):
        model.inputs(np.zeros((2, 30, 30), np.float32))


def test_any_number_of_classes_and_of_shots_in_any_order(runs):
    model = load(runs("protonet-layer"))
    x, labels = torch.rand(9, 16, 16), ["c", "a", "b", "d", "a", "c", "c", "e", "a"]
    query = torch.rand(5, 16, 16)
    fitted = model.adapt(x, labels)
    assert fitted.classes == ["a", "b", "c", "d", "e"]
    probabilities = fitted.probabilities(query)
    assert probabilities.shape == (5, 5)
    assert fitted.predict(query) == [fitted.classes[i] for i in probabilities.argmax(-1)]
    order = torch.tensor([8, 2, 5, 1, 0, 7, 3, 4, 6])
    again = model.adapt(x[order], np.array(labels)[order.numpy()])
    assert torch.allclose(again.probabilities(query), probabilities, atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([10, 9, 10, 9], [9, 10]),
        (torch.tensor([3, 1, 3, 1]), [1, 3]),
        ([*torch.tensor([3, 1, 3, 1])], [1, 3]),
        ([np.int64(3), 1, torch.tensor(3), np.float32(1)], [1, 3]),
        (np.array(["y", "x", "y", "x"]), ["x", "y"]),
        ([("q", 1), ("p", 2), ("q", 1), ("p", 2)], [("p", 2), ("q", 1)]),
        ([("a",), 7, "b", 12], [12, 7, "b", ("a",)]),  # not comparable: by type, then text
    ],
)
def test_labels_are_kept_as_class_names_in_sorted_order(runs, labels, classes):
    x = torch.rand(4, 16, 16)
    fitted = load(runs("protonet-layer")).adapt(x, labels)
    assert fitted.classes == classes
    assert set(fitted.predict(x)) <= set(classes)


def test_a_learner_classifies_its_own_support(runs):
    x = torch.rand(3, 16, 16)
    assert load(runs("protonet-support")).adapt(x, ["z", "x", "y"]).predict(x) == ["z", "x", "y"]


@pytest.mark.parametrize("name", ["protonet-layer", "protonet-support", "maml-layer"])
def test_inductive_answers_ignore_the_other_queries(runs, name, monkeypatch):
    fitted = load(runs(name)).adapt(torch.rand(6, 16, 16), list("aabbcc"))
    query = torch.rand(7, 16, 16)
    together = fitted.probabilities(query)
    assert torch.allclose(fitted.probabilities(query[:1]), together[:1], atol=1e-5)
    monkeypatch.setattr(module, "CHUNK", 3)
    assert torch.allclose(fitted.probabilities(query), together, atol=1e-5)


def test_transductive_queries_share_one_batch(runs, monkeypatch):
    fitted = load(runs("protonet")).adapt(torch.rand(6, 16, 16), list("aabbcc"))
    query = torch.rand(7, 16, 16)
    together = fitted.probabilities(query)
    assert not torch.allclose(fitted.probabilities(query[:3]), together[:3], atol=1e-3)
    monkeypatch.setattr(module, "CHUNK", 3)
    assert torch.equal(fitted.probabilities(query), together)


def test_steps(runs):
    model = load(runs("maml-layer"))
    x, labels, query = torch.rand(6, 16, 16), list("aabbcc"), torch.rand(4, 16, 16)
    assert model.algorithm.test_steps == 3
    answers = [model.adapt(x, labels, steps).probabilities(query) for steps in (None, 3, 0)]
    assert torch.equal(answers[0], answers[1])
    assert not torch.allclose(answers[0], answers[2], atol=1e-4)
    with pytest.raises(UserError, match="steps=-1 is out of range"):
        model.adapt(x, labels, -1)
    with pytest.raises(UserError, match="algo=protonet takes no inner steps"):
        load(runs("protonet")).adapt(x, labels, 2)


def test_adapting_again_is_adapting_anew(runs):
    model = load(runs("maml-layer"))
    x, labels, query = torch.rand(6, 16, 16), list("aabbcc"), torch.rand(4, 16, 16)
    first = model.adapt(x, labels)
    before = first.probabilities(query)
    model.adapt(1 - x, labels)
    assert torch.equal(model.adapt(x, labels).probabilities(query), before)
    assert torch.equal(first.probabilities(query), before)


ONES = torch.ones(4, 16, 16)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.ones(4, 3, 16, 16), "aabb", r"shape \[4, 3, 16, 16\], but this run \(data=glyphs\) takes \[n, 1, 16, 16\]"),
        (torch.ones(4, 17, 16), "aabb", r"shape \[4, 17, 16\].*resize them, or give files"),
        (torch.ones(0, 1, 16, 16), "", r"shape \[0, 1, 16, 16\]"),
        (torch.tensor(1.0), "a", r"shape \[\]"),
        (ONES * 255, "aabb", "values from 255 to 255: give floats in 0..1"),
        (ONES * -0.5, "aabb", "values from -0.5 to -0.5"),
        (ONES * float("nan"), "aabb", "values from nan"),
        (ONES.long(), "aabb", "images are int64: give uint8"),
        ([[1.0], [1.0, 2.0]], "ab", "not an array of numbers"),
        ("one.png", "a", "'one.png' is one file: give a list"),
        (["nowhere.png"], "a", r"nowhere\.png does not exist"),
        ([__file__], "a", r"test_predict\.py is not a readable picture"),
        (ONES, "aab", "4 examples but 3 labels"),
        (ONES, "aaaa", "all 4 examples are of the class 'a'"),
        (ONES, [["a"], ["a"], ["b"], ["b"]], "labels must be hashable"),
        (ONES, ["a", None, "b", "b"], r"label 1 of 4, counted from 0, is missing \(None\)"),
        (ONES, ["a", "b", np.float32("nan"), "b"], r"label 2 of 4, counted from 0, is missing \(nan\)"),
        (ONES, ["a", "b", np.datetime64("NaT"), "b"], r"label 2 of 4, counted from 0, is missing"),
        (None, "aabb", "this is one NoneType: give a list of files"),
        (3, "aabb", "this is one int: give a list of files"),
        ({"a": ONES}, "aabb", "this is one dict: give a list of files"),
    ],
)
def test_what_is_refused(runs, images, labels, message):
    with pytest.raises(UserError, match=message) as caught:
        load(runs("protonet-layer")).adapt(images, list(labels))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("labels", "what"), [(3, "int"), (None, "NoneType"), ("aabb", "str"), (dict(enumerate("aabb")), "dict")])
def test_labels_are_a_list(runs, labels, what):
    with pytest.raises(UserError, match=f"the labels are one {what}: give a list with one label per example"):
        load(runs("protonet-layer")).adapt(ONES, labels)


def test_numbers_that_are_none(runs):
    model, x = load(runs("maml")), torch.rand(6, 16, 16)
    with pytest.raises(UserError, match="steps='2' is no whole number: give 0 or more"):
        model.adapt(x, list("aabbcc"), steps="2")
    fitted = load(runs("protonet-layer")).adapt(x, ["a", "a", "unknown", "unknown", "c", "c"])
    with pytest.raises(UserError, match=r"one of the classes is 'unknown'.*do not reject"):
        fitted.predict(x, reject=0.3)
    fitted = load(runs("protonet-layer")).adapt(x, list("aabbcc"))
    with pytest.raises(UserError, match=r"reject='0\.3' is out of range"):
        fitted.predict(x, reject="0.3")
    with pytest.raises(UserError, match="None is no folder"):
        metarun.load(None)


def test_a_method_with_one_output_per_class_says_so(runs):
    with pytest.raises(UserError, match=r"trained for 3 ways, but the support has 2 classes; algo=maml .* train with way=2"):
        load(runs("maml")).adapt(ONES, list("aabb"))


def test_diverged_adaptation_is_no_answer(runs):
    model = load(runs("maml-layer"))
    model.algorithm.inner_lr = 1e30
    with pytest.raises(RunError, match="not finite: adaptation diverged"):
        model.adapt(torch.rand(6, 16, 16), list("aabbcc")).predict(torch.rand(2, 16, 16))


@pytest.mark.parametrize("name", ["protonet", "protonet-support", "protonet-running", "maml-layer", "pretrain", "waves"])
def test_the_export_answers_the_same_for_any_number_of_queries(runs, name, tmp_path):
    model = load(runs(name))
    if name == "waves":
        fitted, query = model.adapt(torch.linspace(-2, 2, 5), torch.linspace(0, 1, 5)), torch.linspace(-3, 3, 7)[:, None]
    else:
        fitted, query = model.adapt(torch.rand(6, 16, 16), list("ccaabb")), torch.rand(7, 1, 16, 16)
    fitted.export(tmp_path / "net.pt2")
    extra = {"metarun.json": ""}
    exported = torch.export.load(str(tmp_path / "net.pt2"), extra_files=extra)
    program = exported.module()
    for n in (1, 2, 7):
        wanted = fitted.predict(query[:n]) if name == "waves" else fitted.probabilities(query[:n])
        assert torch.allclose(program(query[:n]), wanted, atol=1e-5)
    assert json.loads(extra["metarun.json"]) == {
        "algo": model.algo,
        "classes": fitted.classes,
        "input_shape": list(model.algorithm.problem.input_shape),
        "transductive": name == "protonet",
        "norm": model.algorithm.net.norm,
    }
    weights = sum(p.nbytes for p in model.algorithm.parameters())
    kept = [value for value in [*exported.state_dict.values(), *exported.constants.values()] if isinstance(value, torch.Tensor)]
    assert 0.5 * weights < sum(value.nbytes for value in kept) < 1.5 * weights  # not those from before adaptation as well


def test_an_export_needs_its_suffix(runs, tmp_path):
    fitted = load(runs("protonet")).adapt(torch.rand(2, 16, 16), ["a", "b"])
    for path in (tmp_path / "net.onnx", tmp_path):
        with pytest.raises(UserError, match=r"give a file that ends in \.pt2"):
            fitted.export(path)


def test_loading_what_is_not_there(runs, tmp_path):
    folder = runs("protonet")
    with pytest.raises(UserError, match=r"there is no run folder .*protonett; did you mean '.*protonet'"):
        metarun.load(folder.with_name("protonett"))
    with pytest.raises(UserError, match=r"is not a run folder: it has no config\.yaml"):
        metarun.load(tmp_path)
    with pytest.raises(UserError, match="there is no checkpoint 'bets'; did you mean 'best'"):
        metarun.load(folder, checkpoint="bets")
    with pytest.raises(UserError, match="device=gpu is not a device"):
        metarun.load(folder, device="gpu")
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config\.yaml cannot be read"):
        metarun.load(tmp_path)
    (tmp_path / "config.yaml").write_text((folder / "config.yaml").read_text())
    with pytest.raises(UserError, match="no checkpoint at"):
        metarun.load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.pt").write_bytes(b"nothing")
    with pytest.raises(RunError, match="is damaged"):
        metarun.load(tmp_path)
    (tmp_path / "checkpoints" / "best.pt").write_bytes((runs("maml") / "checkpoints" / "best.pt").read_bytes())
    with pytest.raises(UserError, match="the checkpoint does not fit"):
        metarun.load(tmp_path)


def test_last_and_best_are_different_checkpoints(runs, tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text((runs("protonet") / "config.yaml").read_text())
    state = torch.load(runs("protonet") / "checkpoints" / "best.pt", weights_only=True)
    torch.save(state, folder / "checkpoints" / "best.pt")
    name = next(iter(state["algorithm"]))
    state["algorithm"][name] += 1
    torch.save(state, folder / "checkpoints" / "last.pt")
    best, last = (metarun.load(folder, checkpoint=which, device="cpu").algorithm.state_dict()[name] for which in ("best", "last"))
    assert torch.equal(best + 1, last)


def test_loading_leaves_the_random_numbers_alone(runs):
    folder = runs("protonet")  # trained first, if it is not yet
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    load(folder)
    assert torch.equal(torch.rand(3), wanted)


def test_importing_metarun_is_cheap():
    code = "import sys, metarun; assert metarun.__version__; print('torch' in sys.modules, callable(metarun.load), 'torch' in sys.modules)"
    source = str(Path(metarun.__file__).parents[1])
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": source})
    assert out.stdout.split() == ["False", "True", "True"]
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        metarun.lode  # noqa: B018


def test_a_run_is_measured_from_python_on_either_split(runs, tmp_path):
    folder = shutil.copytree(runs("protonet"), tmp_path / "run")  # runs of the fixture are everybody's
    looks = json.loads((folder / "summary.json").read_text())["test_looks"]
    development = metarun.evaluate(folder, split="val")
    assert development["test"] is None
    assert 0 <= development["val"]["accuracy"]["mean"] <= 1
    assert metarun.evaluate(folder)["test_looks"] == looks + 1, "a look at development tasks is none at the test"
    with pytest.raises(UserError, match="there is no split 'vall' to measure a run on: test or val"):
        metarun.evaluate(folder, split="vall")


def test_numbers_that_are_not_finite_are_named(tmp_path):
    words = ["data=tables", "algo=pfn", "algo.width=8", "algo.hidden=8", "net=mlp", "trainer.iterations=0", "trainer.test_episodes=2"]
    experiment.train(small(*words), tmp_path / "run")
    model, rows = metarun.load(tmp_path / "run", device="cpu"), torch.rand(4, 30)
    fitted = model.adapt(rows, [0, 1, 0, 1])
    rows[2, 1] = torch.nan
    for asked in (lambda: model.adapt(rows, [0, 1, 0, 1]), lambda: fitted.probabilities(rows)):
        with pytest.raises(UserError, match=r"input 2 of 4, counted from 0, has a number that is not finite"):
            asked()
    with pytest.raises(UserError, match=r"label 1 of 4, counted from 0, is missing \(nan\): leave out what has no label"):
        model.adapt(torch.rand(4, 30), [0.0, float("nan"), 0.0, 1.0])
