"""CIFAR-FS: CIFAR-100's classes divided at random into 64, 16 and 20 (Bertinetto, Henriques, Torr, Vedaldi 2019, arXiv:1805.08136)."""

from __future__ import annotations

from metarun.data.benchmark import words
from metarun.data.cifar100 import Cifar100

LISTS = {
    "train": words("""
        apple aquarium_fish bear bee bottle bowl boy bridge bus can castle caterpillar chair clock cloud cockroach couch cup dinosaur
        dolphin elephant forest girl hamster house kangaroo keyboard lawn_mower lion lizard lobster mountain mouse mushroom oak_tree
        orange orchid palm_tree pear pine_tree plate porcupine possum rabbit raccoon ray road seal shrew skunk skyscraper snake spider
        squirrel streetcar sunflower tank tiger train trout tulip turtle willow_tree wolf
    """),
    "val": words("""
        beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree motorcycle otter sea shark television tractor
    """),
    "test": words("""
        baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail sweet_pepper table telephone wardrobe
        whale woman worm
    """),
}  # fmt: skip


class CifarFS(Cifar100):
    """The split of Bertinetto et al.

    Args:
        seed: unused; the split is given.
        root, size, download, attributes, held_out: see ``Benchmark``.
    """

    name = "cifar_fs"
    lists = LISTS
