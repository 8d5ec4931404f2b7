"""Makes the small learner that `metarun classify` falls back on where no pretrained backbone is at hand: a prototypical network on Omniglot
(Lake, Salakhutdinov, Tenenbaum 2015; MIT licence), as the folder of a run that is shipped with the package.

python scripts/ship_learner.py --omniglot FOLDER [--iterations N]

Prints the run's summary. Tested on the characters of the test split, which it has not seen.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import torch
import yaml

from metarun.config.compose import compose, resolve
from metarun.experiment import train
from metarun.predict.backbones import SHIPPED
from metarun.storage import checkpoint

LARGEST = 10**6  # bytes
WORDS = [
    "algo=protonet", "net=conv4", "net.norm=running", "data=omniglot", "data.split=vinyals", "way=20", "shot=1", "query=5", "seed=0",
    "trainer.meta_batch=2", "trainer.val_every=400", "trainer.val_episodes=100", "trainer.test_episodes=200", "optim.lr=0.002",
    "optim.schedule=cosine", "augment=characters", "device=cpu", "logger=quiet", "name=shipped",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--omniglot", required=True, help="the folder with images_background.zip and images_evaluation.zip")
    parser.add_argument("--iterations", type=int, default=800)
    given = parser.parse_args()
    values = resolve(compose([*WORDS, f"data.root={given.omniglot}", f"trainer.iterations={given.iterations}"]))
    with tempfile.TemporaryDirectory() as place:
        summary = train(values, Path(place))
        state = checkpoint.load(Path(place) / "checkpoints" / "best.pt")
    shutil.rmtree(SHIPPED, ignore_errors=True)
    values["data"]["root"], values["data"]["download"] = None, False
    SHIPPED.mkdir()
    (SHIPPED / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    checkpoint.save(SHIPPED / "checkpoints" / "best.pt", {**state, "outer": {}})
    size = sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file())
    assert size <= LARGEST, f"{size} bytes are more than may be shipped"
    test = summary["test"]["accuracy"]
    print(f"{SHIPPED.name}: {size:,} bytes; 20-way 1-shot test accuracy {test['mean']:.4f} ± {test['ci95']:.4f} on {test['n']} episodes, "
          f"norm {summary['bn_mode']}, {summary['wall_s']:.0f} s, torch {torch.__version__}")  # fmt: skip


if __name__ == "__main__":
    main()
