"""Learned optimizers on the command line: trained on one net, tested on others beside tuned rivals, exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli_support import assert_one_line
from torch import nn

import metarun as library

WORDS = [
    *("algo=mlp_optimizer", "net=mlp", "net.sizes=[6]", "episode=dataset", "way=3", "shot=4", "query=2", "episode.clean=0", "algo.batch=4"),
    *("data.size=16", "data.train_classes=6", "data.val_classes=4", "data.test_classes=6", "data.drawers=8"),
    *("algo.inner_steps=3", "algo.horizon=6", "algo.test_steps=6", "trainer.iterations=3", "trainer.meta_batch=2", "trainer.val_every=3"),
    *(
        "trainer.val_episodes=3",
        "trainer.test_episodes=4",
        "trainer.curve=all",
        "device=cpu",
        "logger=quiet",
        "logger.pictures=true",
        "hydra.run.dir=run",
    ),
]
RIVALS = ["protocol=rivals", "protocol.rivals.only=[adam]", "protocol.rivals.sparse=6"]


@pytest.mark.slow
def test_trained_on_one_net_tested_on_others_and_used_elsewhere(metarun) -> None:
    trained = metarun(*WORDS, *RIVALS, "--json")
    assert trained.status == 0, trained.err
    text = "\n".join(trained.out)
    assert "rivals, each with the best of its rates on development tasks" in text
    assert len(trained.json["test"]["curve"]) == 7
    found = set()
    for words in (
        ["net.sizes=[12]"],
        ["net.sizes=[5,5]"],
        ["net.activation=tanh"],
        ["net=conv4", "net.hidden=4", "net.norm=batch"],
        ["algo.test_steps=15"],
        ["way=4"],
    ):
        tested = metarun("eval", "run", *words, "--json")
        assert tested.status == 0, tested.err
        test = tested.json["test"]
        assert len(test["curve"]) == (16 if "test_steps" in words[0] else 7)
        assert {"mean", "ci95", "n", "rate", "difference"} <= set(test["rival_adam"])
        assert (Path("run/eval") / str(len(found)) / "rivals.png").exists()
        found.add(test["loss"]["mean"])
    assert len(found) == 6
    exported = metarun("export", "run", "optimizer", "--out", "rule.pt", "--json")
    assert exported.status == 0, exported.err
    assert exported.json["method"] == "mlp_optimizer"
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    model(torch.ones(1, 2)).sum().backward()
    library.optimizer("rule.pt", model.parameters()).step()
    assert not torch.equal(model.weight, before)
    # Mistakes, each of them one line.
    assert_one_line(metarun("export", "run", "optimizer", "--out", "rule.csv"), 2, r"give a file that ends in \.pt")
    assert_one_line(metarun("export", "run", "weights", "--out", "w.csv"), 2, "algo=mlp_optimizer has no weights to export, and optimizer")
    assert_one_line(metarun("export", "run", "optimizer", "--out", "a.pt", "--sheet", "a.png"), 2, "an optimizer has no picture")
    assert_one_line(metarun("eval", "run", "algo.hidden=5"), 2, r"the checkpoint does not fit this configuration: mlp\.0")
