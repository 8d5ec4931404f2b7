"""Shapes of episodes that a data set has classes and examples for, and how much episodes of a split tell of other classes."""

from __future__ import annotations

import math
from collections.abc import Mapping

from metarun.data.episodes import Split
from metarun.problem import EpisodeSpec

FEW = 20  # sets of classes, below which episodes over them say little of others


def proposal(splits: Mapping[str, Split], spec: EpisodeSpec, leaves_out: str | None = None) -> str:
    """A ``way``, ``shot`` and ``query`` that run on all splits, in words that end a message; nothing where there are none.

    As near to what was asked as can be, but one way less than there are classes where that leaves two, since episodes over all classes of a
    split are all the same; and of the examples of the smallest class at most half for the support.

    Args:
        spec: what was asked.
        leaves_out: the key that leaves small classes out, if the data have one: where that is enough, the message says so.
    """
    if any(split.groups is not None for split in splits.values()):
        return ""
    further, beside = spec.distractors + spec.unknown, spec.clean + spec.unlabelled
    fewest = min(split.classes for split in splits.values()) - further
    least = min(int(split.counts.min()) for split in splits.values()) - beside
    if fewest < 2 or least < 2:
        return "; no shape of episodes runs: every split needs two classes of two examples at least"
    way, shot = min(spec.way, max(2, fewest - 1)), min(spec.shot, max(1, least // 2))
    said = f"; this would run: way={way} shot={shot} query={min(spec.query, least - shot)}"
    need = spec.shot + spec.query + beside
    kept = {name: int((split.counts >= need).sum()) for name, split in splits.items()}
    if leaves_out and least < need - beside and all(count >= spec.way + further for count in kept.values()):
        out = sum(split.classes for split in splits.values()) - sum(kept.values())
        said += f", or {leaves_out}={need}, which leaves out {out} of {out + sum(kept.values())} classes"
    return said


def few_classes(name: str, split: Split, spec: EpisodeSpec) -> str:
    """A warning where a split has hardly more classes than its episodes; nothing where it has enough."""
    if split.groups is not None or (sets := math.comb(split.classes, spec.way)) >= FEW:
        return ""
    all_same = f"all episodes hold the same {spec.way}" if sets == 1 else f"episodes are over {sets} sets of classes"
    return (
        f"{name} has {split.classes} classes for way={spec.way}, so {all_same}, and scores say little of other classes: compare several "
        "divisions (-m sweep=folds), or choose a smaller way"
    )
