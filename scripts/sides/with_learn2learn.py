"""learn2learn's side of the benchmark: its own wrapper, sampler and classifier, used as in its examples."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from native import learner, names
from serve import Outcome, Side, serve
from torch import Tensor

from metarun.runtime.learn2learn import library

l2l = library()


def prepare(work: dict[str, Any], data: dict[str, Any]) -> Side:
    if work["kind"] == "sample":
        return sampler(work)
    model = learner(work, data["weights"]).to(work["device"])
    tasks = list(zip(data["xs"], data["ys"], data["xq"], data["yq"]))
    if work["algo"] == "protonet":
        return train(work, model, lambda: (prototypes(model, *task) for task in tasks))
    maml = l2l.algorithms.MAML(model, lr=work["inner_lr"], first_order=work["first_order"])

    def adapted(task: tuple[Tensor, ...], steps: int) -> Tensor:
        """Logits of the queries after adaptation."""
        xs, ys, xq, _ = task
        fast = maml.clone()
        for _ in range(steps):
            fast.adapt(F.cross_entropy(fast(xs), ys))
        return fast(xq)

    if work["kind"] == "test":

        def test() -> Outcome:
            logits = [adapted(task, work["test_steps"]).detach() for task in tasks]
            losses = [F.cross_entropy(answer, task[3]) for answer, task in zip(logits, tasks)]
            scores = [(answer.argmax(1) == task[3]).float().mean() for answer, task in zip(logits, tasks)]
            return {"loss": torch.stack(losses)[:, None], "score": torch.stack(scores)[:, None]}

        return Side(test, test)
    return train(work, model, lambda: (F.cross_entropy(adapted(task, work["inner_steps"]), task[3]) for task in tasks), maml)


def prototypes(model: torch.nn.Module, xs: Tensor, ys: Tensor, xq: Tensor, yq: Tensor) -> Tensor:
    """A prototypical network's loss on one task."""
    classifier = l2l.nn.PrototypicalClassifier()
    classifier.fit_(model(xs), ys)
    return F.cross_entropy(classifier(model(xq)), yq)


def train(work: dict[str, Any], model: torch.nn.Module, losses: Any, wrapped: Any = None) -> Side:
    """A training step as in the library's examples: every task's loss is sent back at once, which frees its graph."""
    optimizer = torch.optim.Adam((wrapped or model).parameters(), lr=work["outer_lr"])

    def gradient() -> Tensor:
        mean = torch.zeros((), device=work["device"])
        for loss in losses():
            (loss / work["tasks"]).backward()
            mean += loss.detach() / work["tasks"]
        return mean

    def step() -> None:
        optimizer.zero_grad()
        gradient()
        optimizer.step()

    def outcome() -> Outcome:
        optimizer.zero_grad()
        return {"loss": gradient(), **{name: p.grad for name, p in zip(names(model), model.parameters())}}

    return Side(step, outcome)


def sampler(work: dict[str, Any]) -> Side:
    """Its sampler over images in memory."""
    images = torch.zeros(work["classes"] * 20, 1, 28, 28)
    labels = torch.arange(work["classes"]).repeat_interleave(20)
    data = l2l.data.MetaDataset(torch.utils.data.TensorDataset(images, labels))
    transforms = [
        l2l.data.transforms.NWays(data, work["way"]),
        l2l.data.transforms.KShots(data, work["shot"] + work["query"]),
        l2l.data.transforms.LoadData(data),
        l2l.data.transforms.RemapLabels(data),
    ]
    tasks = l2l.data.TaskDataset(data, transforms, num_tasks=-1)
    return Side(lambda: [tasks.sample() for _ in range(work["tasks"])], dict)


if __name__ == "__main__":
    serve(prepare)
