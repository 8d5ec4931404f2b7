"""FC100: CIFAR-100's classes divided by superclass into 60, 20 and 20, so that test classes are unlike those of training
(Oreshkin, Rodriguez, Lacoste 2018, TADAM, arXiv:1805.10123)."""

from __future__ import annotations

from metarun.data.benchmark import words
from metarun.data.cifar100 import Cifar100

LISTS = {
    "train": words("""
        apple aquarium_fish bed bicycle bottle bowl bridge bus can castle chair clock cloud couch crocodile cup dinosaur flatfish forest
        house keyboard lamp lawn_mower lizard maple_tree motorcycle mountain mushroom oak_tree orange orchid palm_tree pear pickup_truck
        pine_tree plain plate poppy ray road rocket rose sea shark skyscraper snake streetcar sunflower sweet_pepper table tank
        telephone television tractor train trout tulip turtle wardrobe willow_tree
    """),
    "val": words("""
        bear camel cattle chimpanzee crab elephant hamster kangaroo leopard lion lobster mouse rabbit shrew snail spider squirrel tiger
        wolf worm
    """),
    "test": words("""
        baby beaver bee beetle boy butterfly caterpillar cockroach dolphin fox girl man otter porcupine possum raccoon seal skunk whale
        woman
    """),
}  # fmt: skip


class FC100(Cifar100):
    """The split of Oreshkin et al.: 12, 4 and 4 of the 20 superclasses.

    Args:
        seed: unused; the split is given.
        root, size, download, attributes, held_out: see ``Benchmark``.
    """

    name = "fc100"
    lists = LISTS
