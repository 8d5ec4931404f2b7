"""The table of the prior-fitted net in docs/black-box.md: real tables, which come with scikit-learn, beside logistic regression.

python scripts/reproduce_tables.py [--runs outputs/tables] [--write]        needs scikit-learn (pip install scikit-learn)

Trains `metarun experiment=tables_pfn` where it is not yet trained, then answers 10 random halves of each table from the other half. Area
under the ROC curve, of more than two classes each against the others; ± is the standard deviation over the ten.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from pages import put
from reproduce import table, trained

import metarun

PAGE = Path(__file__).resolve().parents[1] / "docs" / "black-box.md"
RUN = "experiment=tables_pfn"
SPLITS, ROWS = 10, 1000  # of each table; queries whose time is taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("outputs/tables"), help="folder of the run")
    parser.add_argument("--write", action="store_true", help="put the table into docs/black-box.md")
    options = parser.parse_args()
    try:
        from sklearn import datasets
    except ImportError:
        sys.exit("scikit-learn is missing: pip install scikit-learn")
    folder = options.runs / "pfn"
    summary = trained(folder, [RUN, "device=cpu", "engine.threads=1"])
    model = metarun.load(folder, device="cpu")
    rows, behind = [], []
    for name, load in {"breast cancer": datasets.load_breast_cancer, "wine": datasets.load_wine, "iris": datasets.load_iris}.items():
        x, y = load(return_X_y=True)
        ours, theirs = np.array([split(model, x, y, seed) for seed in range(SPLITS)]).T
        rows.append(
            [name, f"{len(x)} x {x.shape[1]}", f"{len(set(y))}", *(f"{auc.mean():.4f} ± {auc.std():.4f}" for auc in (ours, theirs))]
        )
        behind += [name] * bool(ours.mean() < theirs.mean())
        if name == "breast cancer":
            fitted = model.adapt(padded(model, x), y)
            begun = time.perf_counter()
            fitted.probabilities(np.resize(padded(model, x), (ROWS, x.shape[1])))
            seconds = time.perf_counter() - begun
    text = "\n".join(table(["table", "rows x columns", "classes", "AUC, pfn", "AUC, logistic regression"], rows))
    trivial = summary["bounds"]["trivial"]["mean"]
    right, seconds_of_training = summary["test"]["accuracy"]["mean"], summary["wall_s"]
    text += (
        f"\n\nTrained in {seconds_of_training:.0f} s, one thread, on tables of the prior alone. Of 600 unseen ones it tells "
        f"{right:.4f} of the rows, the most frequent class {trivial:.4f}. {ROWS} rows take it {seconds:.2f} s.\n"
    )
    print(text)
    if options.write:
        put(PAGE, "tables", text)
    if behind:
        sys.exit(f"below logistic regression: {', '.join(behind)}")


def padded(model: Any, x: np.ndarray) -> np.ndarray:
    """As many columns as the net knows: zeros beyond the table's own."""
    return np.pad(x, ((0, 0), (0, model.algorithm.problem.input_shape[0] - x.shape[1])))


def split(model: Any, x: np.ndarray, y: np.ndarray, seed: int) -> tuple[float, float]:
    """Areas of the net and of logistic regression on half of the rows, from the other half."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known, asked, labels, truth = train_test_split(x, y, test_size=0.5, stratify=y, random_state=seed)
    ours = model.adapt(padded(model, known), labels).probabilities(padded(model, asked), raw=True).numpy()
    theirs = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(known, labels).predict_proba(asked)

    def auc(p: np.ndarray) -> float:
        return float(roc_auc_score(truth, p[:, 1] if p.shape[1] == 2 else p / p.sum(1, keepdims=True), multi_class="ovr"))

    return auc(ours), auc(theirs)


if __name__ == "__main__":
    main()
