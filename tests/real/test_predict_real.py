"""``metarun predict`` on real handwriting: PNG files of Omniglot test characters, as anybody would have them in folders.
What it answers is what the engine answers on the same episode made of tensors."""

import csv
import re
import zipfile

import pytest
import torch

from metarun import experiment
from metarun.cli import predict
from metarun.config.compose import compose, resolve
from metarun.config.stored import read_config
from metarun.protocols.episodes import LAST
from metarun.run import Run
from metarun.task import select

pytestmark = pytest.mark.real

WORDS = ["algo=protonet", "data=omniglot", "data.split=small", "data.size=20", "data.rotate_train=false", "data.rotate_val=false"]
WORDS += [
    "data.rotate_test=false",
    "data.download=false",
    "net.hidden=8",
    "way=5",
    "shot=2",
    "query=6",
    "device=cpu",
    "logger=quiet",
    "optim.lr=0.005",
]
WORDS += ["trainer.iterations=40", "trainer.meta_batch=2", "trainer.val_every=40", "trainer.val_episodes=10", "trainer.test_episodes=5"]
MEMBER = re.compile(r"images_background_small\d/((?:Latin|Tagalog)/character\d+)/[^/.]+\.png")


@pytest.fixture(scope="module")
def trained(omniglot_root, tmp_path_factory):
    """Folders of two runs, by norm; they are trained for a second or two."""
    folder = tmp_path_factory.mktemp("runs")
    for norm in ("batch", "support"):
        experiment.train(resolve(compose([*WORDS, f"net.norm={norm}", f"data.root={omniglot_root}"])), folder / norm)
    return folder


@pytest.fixture(scope="module")
def files(omniglot_root):
    """The drawings of every test character in the order of their archive, as the bytes of PNG files."""
    found = {}
    for archive in sorted(omniglot_root.glob("images_background_small?.zip")):
        with zipfile.ZipFile(archive) as packed:
            members = {}
            for name in sorted(packed.namelist()):
                if match := MEMBER.fullmatch(name):
                    members.setdefault(match[1], []).append(packed.read(name))
            found = members | found  # both archives have Latin: the first one wins
    return found


@pytest.mark.parametrize("norm", ["batch", "support"])
@pytest.mark.slow
def test_folders_of_png_files_are_answered_like_the_episode_they_come_from(trained, files, tmp_path, norm):
    folder = trained / norm
    built = Run(read_config(folder), torch.load(folder / "checkpoints" / "best.pt", weights_only=True))
    built.algorithm.eval()
    episodes, data = built.episodes("test"), built.data.splits["test"]
    correct, engine_scores = 0, []
    for index in range(3):
        task = episodes.batch([index])
        engine_scores.append(built.engine.evaluate(built.algorithm, task, LAST)["score"][0, -1])
        state = built.algorithm.begin(select(task, 0).context)
        wanted = built.algorithm.predict(state, task.query.x[0]).argmax(-1)

        _, classes, rows = episodes.indices([index])
        base = tmp_path / str(index)
        for label, (c, samples) in enumerate(zip(classes[0], rows[0])):
            for i, row in enumerate(samples):
                part = "support" if i < 2 else "query"
                path = base / part / f"{label}-{data.names[c].replace('/', '-')}" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(files[data.names[c]][row - data.starts[c]])
        words = [str(folder), f"--support={base}/support", f"--query={base}/query", f"--out={base}/out"]
        result = predict.run(predict.parser().read(words))
        with open(base / "out" / "predictions.csv", newline="") as handle:
            answers = list(csv.DictReader(handle))
        assert [int(answer["class"].partition("-")[0]) for answer in answers] == wanted.tolist()
        assert result["accuracy"] == pytest.approx(float(engine_scores[-1]), abs=1e-6)
        correct += sum(answer["class"] == answer["truth"] for answer in answers)
    assert correct / 90 == pytest.approx(float(sum(engine_scores)) / 3, abs=1e-6)
    assert correct / 90 > 0.4  # chance is 0.2
