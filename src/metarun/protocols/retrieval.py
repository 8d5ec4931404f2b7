"""``protocol=retrieval``: what comes first when all images of a split are ordered by their likeness to a class, and all classes by their
likeness to an image? For zero-shot methods a class is its attributes, which makes it retrieval across modalities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metarun import inner
from metarun.adaptation import asked
from metarun.algorithm import Algorithm, State
from metarun.data.base import Dataset, ImageDataset
from metarun.data.episodes import ClassEpisodes, Episodes
from metarun.errors import UserError
from metarun.problem import EpisodeSpec, Problem, best_guess
from metarun.protocols.base import Arrays, Protocol, Scores, statistics
from metarun.task import Task, rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIRST = (1, 5, 10)  # of the images that are retrieved: the share of them that is right
TOP, CLASSES = 10, 20  # images of a class, and classes, that the picture shows
METRIC = "map"
OF_IMAGES = (METRIC, *(f"precision_at_{k}" for k in FIRST), "map_chance")
OF_CLASSES = ("class_map", *(f"class_hit_at_{k}" for k in FIRST[1:]))
RIGHT, WRONG = "#3a7d5d", "#d1495b"


def average_precision(right: Tensor) -> Tensor:
    """The mean, over the right ones [n, classes] bool in the order in which they are retrieved, of the precision so far; [classes]."""
    hits = right.to(torch.float64)
    places = torch.arange(1, len(hits) + 1, dtype=torch.float64, device=hits.device)
    return (hits.cumsum(0) / places[:, None] * hits).sum(0) / hits.sum(0)


def chance(n: int, right: int) -> float:
    """The expected average precision of a random order of n, so many of which are right."""
    places = np.arange(1, n + 1)
    return float(((1 + (places - 1) * (right - 1) / max(1, n - 1)) / places).mean())


def retrieved(logits: Tensor, y: Tensor, key: Tensor) -> dict[str, Tensor]:
    """What is read of the likeness of n images and the classes of an episode, logits [n, way] and labels y [n].

    Returns:
        ``ap`` [way], of the images in the order of a class; ``first`` [way, |FIRST|], the precision among the first; ``rank`` [n], of an
        image's own class among all, 1 for the best, with half a place for each that is as likely; and ``top`` [way, TOP], places of the
        images that come first. Images that are as likely come in an order by chance, which the ``key`` decides.
    """
    scores = inner.upcast(logits)
    shuffled = inner.order(key, len(y))
    order = shuffled[scores[shuffled].sort(dim=0, descending=True, stable=True).indices]
    right = y[order] == torch.arange(logits.shape[1], device=y.device)
    own = scores.gather(1, y[:, None])
    above, equal = (scores > own).sum(1), (scores == own).sum(1)
    lost = ~scores.isfinite().all()
    first = torch.stack([right[:k].to(torch.float64).mean(0) for k in FIRST], -1)
    found = {"ap": average_precision(right), "first": first, "rank": above + (equal + 1) / 2}
    return {name: torch.where(lost, torch.nan, value) for name, value in found.items()} | {"top": order[:TOP].T}


@dataclass(frozen=True, kw_only=True)
class Retrieval(Protocol):
    """Mean average precision over the whole order of images (mAP@all), and over that of classes, where one is right.

    An episode has all classes of a split, and of each as many images as the smallest has beside its support.
    ± of a zero-shot method, for which there is only one episode, is over classes; of others over episodes, which differ in their support.
    """

    name = "retrieval"
    needs = "scores that mean the same for all images, as of protonet_zeroshot, protonet or siamese"

    def asks(self, algorithm: Algorithm) -> bool:
        return algorithm.pairwise

    def metric(self, problem: Problem) -> tuple[str, bool]:
        return METRIC, True

    def episodes(self, data: Dataset, split: str, spec: EpisodeSpec, seed: int, device: torch.device) -> Episodes:
        if not isinstance(data, ImageDataset) or spec.uneven or split not in data.splits:
            raise UserError("protocol=retrieval needs data with classes of examples, and as many of every class")
        part = data.splits[split]
        left = int(part.counts.min()) - spec.shot
        if left < 1:
            raise UserError(f"shot={spec.shot} leaves no image of some class to be retrieved; choose shot < {part.counts.min()}")
        shape = replace(spec, way=part.classes, query=left, unlabelled=0, distractors=0)
        whole = ClassEpisodes(part, split, shape, seed, device)
        whole.length = None if spec.shot else 1  # without a support, all episodes are the same but for the order of classes
        return whole

    def measure(self, algorithm: Algorithm, task: Task, *, scanned: bool) -> dict[str, Tensor]:
        """See ``retrieved``."""
        context, query = task.context, task.query

        def noted(state: State, prediction: Any) -> dict[str, Tensor]:
            return retrieved(best_guess(prediction), query.y, context.key)

        return rows(asked(algorithm, context, query.x, [algorithm.steps(context, False)], noted, scanned=scanned), -1)

    def summarise(self, problem: Problem, arrays: Arrays) -> tuple[Scores, list[dict[str, Any]]]:
        ap, first, rank = arrays["ap"], arrays["first"], arrays["rank"]
        way, n = ap.shape[1], rank.shape[1]
        by_class = (1 / rank).reshape(len(ap), way, -1), *((rank.reshape(len(ap), way, -1) <= k).astype(float) for k in FIRST[1:])
        # [episodes, way] each
        found = [ap, *np.moveaxis(first, -1, 0), np.full_like(ap, chance(n, n // way)), *(values.mean(-1) for values in by_class)]
        values = [each[0] if len(ap) == 1 else each.mean(1) for each in found]
        return dict(zip((*OF_IMAGES, *OF_CLASSES), map(statistics, values))), []

    def per_episode(self, arrays: Arrays) -> np.ndarray:
        """Of the only episode, where there is but one, a score for every class."""
        ap = arrays["ap"]
        return ap[0] if len(ap) == 1 else ap.mean(1)

    def pictures(self, arrays: Arrays, title: str, episodes: Episodes) -> Iterator[tuple[str, Figure]]:
        """The ``TOP`` images of every class of the first episode; none where examples are no images."""
        assert isinstance(episodes, ClassEpisodes)
        images = episodes.data.images
        if images.dim() == 4 and images.shape[1] in (1, 3):
            yield "retrieval.png", figure(arrays, title, episodes)


def figure(arrays: Arrays, title: str, episodes: ClassEpisodes) -> Figure:
    """A row for each of the first ``CLASSES`` classes by name: what comes first, framed as it is right or wrong."""
    from matplotlib.figure import Figure

    _, classes, places = episodes.indices([0])
    query = places[0, :, episodes.spec.shot :].reshape(-1)
    names, top = [episodes.data.names[c] for c in classes[0]], arrays["top"][0].astype(int)
    each = len(query) // len(names)
    shown = sorted(range(len(names)), key=names.__getitem__)[:CLASSES]
    columns = top.shape[1]
    figure = Figure(figsize=(0.62 * columns + 2.2, 0.62 * len(shown) + 0.6), layout="constrained")
    figure.suptitle(f"what comes first of {len(query):,} images  {title}", fontsize=10)
    panels = figure.subplots(len(shown), columns, squeeze=False)
    for row, label in zip(panels, shown):
        for axes, place in zip(row, top[label]):
            image = episodes.data.images[query[place]].permute(1, 2, 0).numpy()
            axes.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray")
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(color=RIGHT if place // each == label else WRONG, linewidth=2)
        row[0].set_ylabel(
            f"{names[label].rpartition('/')[2]}\nAP {arrays['ap'][0, label]:.2f}", fontsize=8, rotation=0, ha="right", va="center"
        )
    return figure
