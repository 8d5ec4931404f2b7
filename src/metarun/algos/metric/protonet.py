"""Prototypical networks: a class is the mean of its support embeddings, a query belongs to the nearest one.
Snell, Swersky, Zemel 2017, arXiv:1703.05175."""

from __future__ import annotations

from metarun import inner
from metarun.learners import PrototypeLearner, Prototypes
from metarun.task import Context


class ProtoNet(PrototypeLearner):
    """Prototypical networks.

        p_c = mean over class c of f(x)                        (equation 1)
        logit_c(x) = −‖f(x) − p_c‖²                            (equation 2)

    Deviation: (1) support and query pass the net one after the other, so with ``net.norm=batch`` each has statistics of its own;
    the authors embed both in one batch while training and use running statistics at test (``net.norm=running`` does the latter).
    """

    def begin(self, context: Context) -> Prototypes:
        x, y = context.support
        return Prototypes(inner.class_means(self.net(x, x), y, context.classes.shape[0]), x)
