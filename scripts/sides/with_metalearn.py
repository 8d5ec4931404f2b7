"""parallel-metalearn's side of the benchmark: its MAML and prototypical network, vmap over all tasks, its own batch norm."""

from __future__ import annotations

from typing import Any

import torch
from metalearn.algorithms import MAML, PrototypicalNetwork
from metalearn.inner_optimizers import InnerSGD
from metalearn.loss import CategoricalAccuracy, CrossEntropy
from metalearn.model_wrappers import MAML_Model, ProtoNet_Model
from metalearn.nn_models.basic_layers.BatchNormalization import BatchNorm
from native import learner, names
from serve import Outcome, Side, serve
from torch import Tensor, nn


class Asked(nn.Module):
    """A module as the library calls it: with keywords, which torch's own modules do not take."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, **unused: Any) -> Tensor:
        return self.module(x)


def prepare(work: dict[str, Any], data: dict[str, Any]) -> Side:
    model = learner(work, data["weights"]).to(work["device"])
    for i, layer in enumerate(model.blocks):
        if isinstance(layer, nn.BatchNorm2d):  # torch's own gives wrong second derivatives under vmap
            model.blocks[i] = BatchNorm(layer.num_features, track_running_stats=False)
            model.blocks[i].weight, model.blocks[i].bias = layer.weight, layer.bias
    optimizer = torch.optim.Adam(model.parameters(), lr=work["outer_lr"])
    loss = CrossEntropy(metric_fn=CategoricalAccuracy())
    common = {"optimizer": optimizer, "device": torch.device(work["device"]), "chunk_size": work["tasks"]}
    learned: nn.Module
    if work["algo"] == "protonet":
        wrapped = ProtoNet_Model(backbone=Asked(model), max_classes=work["way"], latent_dim=64)
        learned = PrototypicalNetwork(model=wrapped, loss_fn=loss, **common)
    else:
        wrapped = MAML_Model(backbone=Asked(model), head=Asked(nn.Identity()))  # the net has its head
        inner = InnerSGD(wrapped.get_fast_weights(), first_order=work["first_order"], inner_lr=work["inner_lr"], learn_lr=False)
        learned = MAML(model=wrapped, inner_optimizer=inner, support_loss_fn=loss, inner_steps=work["inner_steps"], **common)
    episodes = (data["xs"], {"labels": data["ys"]}, data["xq"], {"labels": data["yq"]})

    def step() -> float:
        return learned.step(iter([episodes]), training=True)[0]

    def outcome() -> Outcome:
        found = torch.tensor(step())
        return {"loss": found, **{name: p.grad for name, p in zip(names(model), model.parameters())}}

    return Side(step, outcome)


if __name__ == "__main__":
    serve(prepare)
