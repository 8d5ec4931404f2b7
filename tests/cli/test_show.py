"""``metarun show``: pictures of episodes and classes have what they promise, and refuse what is not there."""

from pathlib import Path

import pytest
import torch
from cli_support import TINY, assert_one_line
from helpers import small
from PIL import Image

from metarun.drawing import figures
from metarun.errors import UserError
from metarun.protocols.episodes import LAST
from metarun.run import Run

CLASSES = ["--what", "classes", *TINY]


def test_classes_of_a_split(metarun):
    result = metarun("show", *CLASSES, "--split", "test", "--json")
    assert result.status == 0
    path = Path(result.json["picture"])
    assert path == Path("outputs/show/maml-glyphs-3w1s-test-classes-0.png")
    with Image.open(path) as picture:
        assert picture.width > 300
        assert len(picture.convert("L").getcolors()) > 10


def test_sheets_together_show_every_class_once():
    run = Run(small("data=glyphs", "data.train_classes=90", "data.drawers=4"))
    drawn = [figures.classes(run, "train", index) for index in range(3)]
    sheets = [[label.get_text() for label in figure.axes[0].get_yticklabels()] for figure in drawn]
    names = run.data.splits["train"].names
    assert sorted(name for sheet in sheets for name in sheet) == sorted(names)
    assert sheets[0] == names[::3]  # every sheet reaches from end to end
    assert drawn[0].texts[0].get_text() == "glyphs, train:  30 of 90 classes"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([*CLASSES, "--index", "1"], "--index 1 is not possible: the 6 train classes fill sheets 0 to 0"),
        (["--what", "class", *TINY], "--what takes one of episode, classes, augmentation, cell; did you mean 'classes'?"),
        (["--what", "cell", *TINY], "net=conv4 has no cells to show; choose net=cell, or leave --what out for an episode"),
        (["--what", "classes", "data=sinusoid", "net=mlp", "way=1"], "data=sinusoid has no classes of images to show; leave --what out"),
    ],
)
def test_what_is_not_there(metarun, words, line):
    result = metarun("show", *words)
    assert result.status == 2
    assert result.err[-1].startswith(f"metarun: {line}")
    assert not Path("outputs").exists()


def test_nothing_is_drawn_through_a_link(metarun, run_folder, tmp_path):
    (tmp_path / "victim").mkdir()
    (run_folder / "show").symlink_to(tmp_path / "victim")
    assert_one_line(metarun("show run"), 2, "run/show is a link, which metarun never makes")
    assert not list((tmp_path / "victim").iterdir())
    assert metarun("show", "run", "--out", "x.png").status == 0


@pytest.mark.parametrize("algo", ["maml", "protonet"])
def test_an_answered_episode_counts_as_the_engine_does(algo):
    run = Run(small(f"algo={algo}", "data=glyphs", "query=4"))
    score = float(run.engine.evaluate(run.algorithm, run.episodes("val").batch([2]), LAST)["score"][0, -1])
    figure = figures.episode(run, "val", 2, answered=True)
    assert figure.axes[1].get_title(loc="left") == f"query: {round(12 * score)} of 12 right; red: taken for the class of that number"
    frames = [patch.get_edgecolor() for axes in figure.axes for patch in axes.patches]
    assert len(frames) == 12
    assert len(set(frames)) == 2  # right and wrong ones
    assert figures.pixels(figure).dtype == "uint8"


@pytest.mark.parametrize("genotype", ["null", "conv3-skip-none-conv1-conv3-pool"])
def test_a_cell_is_drawn_with_the_operations_of_its_edges(genotype):
    figure = figures.cell(Run(small("net=cell", f"net.genotype={genotype}")), "train", 0)
    graph, *shares = figure.axes
    labels = [text.get_text() for text in graph.texts if text.get_text() and not text.get_text().isdecimal()]
    assert labels == (["skip"] * 6 if genotype == "null" else genotype.split("-"))  # of equal weights the first but none
    assert [len(axes.texts) for axes in shares] == ([18] if genotype == "null" else [])
    assert figures.pixels(figure).dtype == "uint8"


def test_two_channels_are_no_picture():
    with pytest.raises(UserError, match=r"only grey or colour images, texts .* shape \[2, 16, 16\]"):
        figures.episode(Run(small()), "val", 0)


def test_an_answered_curve_is_the_learners():
    run = Run(small("data=sinusoid", "net=mlp", "net.sizes=[8]", "way=1", "shot=5", "query=5", "algo.inner_lr=0.01"))
    for parameter in run.algorithm.parameters():
        torch.nn.init.zeros_(parameter)
    run.algorithm.test_steps = 0
    figure = figures.episode(run, "val", 0, answered=True)
    (line,) = [line for line in figure.axes[0].lines if line.get_label() == "answers"]
    assert len(line.get_xdata()) == figures.CURVE
    assert not line.get_ydata().any()


def test_a_learned_augmentation_is_told_and_drawn(metarun):
    trained = metarun("algo=learned_augment", *TINY, "algo.operations=[rotate,flip]", "hydra.run.dir=run", "--json")
    assert set(trained.json["found"]["augmentation"]) == {"rotate", "flip"}
    assert any("strongest" in line for line in trained.out)
    shown = metarun("show run --what augmentation --json")
    assert shown.json["picture"] == "run/show/train-augmentation-0.png"
    assert shown.json["found"] == trained.json["found"]
    assert any(line.split()[:1] == ["rotate"] for line in shown.out)


@pytest.mark.parametrize("tasks", ["rotations", "mixup"])
def test_task_augmentation_is_drawn(tasks):
    run = Run(small("data=glyphs", f"augment.tasks={tasks}"))
    image, augmented = (axes.images[0].get_array() for axes in figures.augmentation(run, "train", 0).axes)
    side, columns = image.shape[1], augmented.shape[1] // image.shape[1]
    first = [augmented[: image.shape[0] // 3, i * side : (i + 1) * side].filled(0) for i in range(columns)]  # of the first class
    different = {part.tobytes() for part in first}
    assert columns == figures.COLUMNS
    assert len(different) == (4 if tasks == "rotations" else figures.COLUMNS)
