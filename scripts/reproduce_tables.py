"""The table of the prior-fitted net in docs/black-box.md: real tables, which come with scikit-learn, beside logistic regression.

python scripts/reproduce_tables.py [--runs outputs/tables] [--write]        needs scikit-learn (pip install scikit-learn)

Trains `metarun experiment=tables_pfn`, and with `algo.linear=false`, where that is not done yet, then answers 10 random halves of each
table from the other half. Area under the ROC curve, of more than two classes each against the others; ± is the standard deviation over
the ten, of differences 1.96 standard errors.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pages import finished, put, table

import metarun
from metarun.config.stored import read_config
from metarun.run import Run
from metarun.task import count, select

PAGE = Path(__file__).resolve().parents[1] / "docs" / "black-box.md"
RUNS = {"pfn": "experiment=tables_pfn", "alone": "experiment=tables_pfn algo.linear=false"}
SPLITS, ROWS = 10, 1000  # of each table; queries whose time is taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("outputs/tables"), help="folder of the runs")
    parser.add_argument("--write", action="store_true", help="put the table into docs/black-box.md")
    options = parser.parse_args()
    try:
        from sklearn import datasets
    except ImportError:
        sys.exit("scikit-learn is missing: pip install scikit-learn")
    summaries = {
        name: finished([*words.split(), "device=cpu", "engine.threads=1", "logger=quiet"], options.runs / name)
        for name, words in RUNS.items()
    }
    models = {name: metarun.load(options.runs / name, device="cpu") for name in RUNS} | {"linear": without(options.runs / "pfn")}
    rows, behind = [], []
    for name, load in {"breast cancer": datasets.load_breast_cancer, "wine": datasets.load_wine, "iris": datasets.load_iris}.items():
        x, y = load(return_X_y=True)
        ours, alone, linear, theirs = np.array([split(models.values(), x, y, seed) for seed in range(SPLITS)]).T
        cells = (f"{auc.mean():.4f} ± {auc.std():.4f}" for auc in (ours, alone, linear, theirs))
        apart = f"{(ours - theirs).mean():+.5f} ± {1.96 * (ours - theirs).std(ddof=1) / SPLITS**0.5:.5f}".replace("-", "−")
        rows.append([name, f"{len(x)} x {x.shape[1]}", f"{len(set(y))}", *cells, apart])
        behind += [name] * bool(ours.mean() < theirs.mean())
        if name == "breast cancer":
            fitted = models["pfn"].adapt(padded(models["pfn"], x), y)
            begun = time.perf_counter()
            fitted.probabilities(np.resize(padded(models["pfn"], x), (ROWS, x.shape[1])))
            seconds = time.perf_counter() - begun
    columns = ["AUC, pfn", "algo.linear=false", "its linear classifiers", "logistic regression", "pfn − logistic regression"]
    text = "\n".join(table(["table", "rows x columns", "classes", *columns], rows))
    right = {name: summary["test"]["accuracy"]["mean"] for name, summary in summaries.items()}
    run, frequent = Run(read_config(options.runs / "pfn")), summaries["pfn"]["bounds"]["trivial"]["mean"]
    text += (
        f"\n\nTrained in {summaries['pfn']['wall_s']:.0f} s, one thread, on tables of the prior alone. Of {tables(run)} others it tells "
        f"{right['pfn']:.4f} of the rows, `algo.linear=false` {right['alone']:.4f}, {others(run)}, "
        f"the most frequent class {frequent:.4f}. {ROWS} rows take it {seconds:.2f} s.\n"
    )
    print(text)
    if options.write:
        put(PAGE, "tables", text)
    if behind:
        sys.exit(f"below logistic regression: {', '.join(behind)}")


def tables(run: Run) -> int:
    """How many a run is tested on."""
    number: int = run.values["trainer"]["test_episodes"]
    return number


def others(run: Run) -> str:
    """What scikit-learn's classifiers tell of the rows of a run's test episodes."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.svm import SVC

    tasks = run.episodes("test").batch(range(tables(run)))
    found = []
    for name, classifier in {
        "logistic regression": rival(),
        "an SVM": scaled(SVC()),
        "a random forest": RandomForestClassifier(random_state=0),
    }.items():
        right = []
        for (x, y), query in ((select(tasks, i).context.support, select(tasks, i).query) for i in range(count(tasks))):
            right.append((classifier.fit(x.numpy(), y.numpy()).predict(query.x.numpy()) == query.y.numpy()).mean())
        found.append(f"{name} {np.mean(right):.4f}")
    return ", ".join(found)


def rival() -> Any:
    """Logistic regression as its users run it."""
    from sklearn.linear_model import LogisticRegression

    return scaled(LogisticRegression(max_iter=1000))


def scaled(classifier: Any) -> Any:
    """One of scikit-learn's, on columns of mean 0 and variance 1."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), classifier)


def without(folder: Path) -> Any:
    """A run's net without its Transformer: the linear classifiers that come with a query."""
    model = metarun.load(folder, device="cpu")
    model.algorithm.share.data.zero_()
    return model


def padded(model: Any, x: np.ndarray) -> np.ndarray:
    """As many columns as the net knows: zeros beyond the table's own."""
    return np.pad(x, ((0, 0), (0, model.algorithm.problem.input_shape[0] - x.shape[1])))


def split(models: Iterable[Any], x: np.ndarray, y: np.ndarray, seed: int) -> tuple[float, ...]:
    """Areas of nets and, last, of logistic regression on half of the rows, from the other half."""
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import train_test_split

    known, asked, labels, truth = train_test_split(x, y, test_size=0.5, stratify=y, random_state=seed)

    def auc(p: np.ndarray) -> float:
        return float(roc_auc_score(truth, p[:, 1] if p.shape[1] == 2 else p / p.sum(1, keepdims=True), multi_class="ovr"))

    ours = [model.adapt(padded(model, known), labels).probabilities(padded(model, asked), raw=True).numpy() for model in models]
    return *map(auc, ours), auc(rival().fit(known, labels).predict_proba(asked))


if __name__ == "__main__":
    main()
