"""MAML and first-order MAML: an initialisation from which a few gradient steps on the support set suffice.
Finn, Abbeel, Levine 2017, arXiv:1703.03400."""

from __future__ import annotations

from metarun.learners import InnerLoop


class MAML(InnerLoop):
    """Model-agnostic meta-learning.

        φ_0 = θ,   φ_{k+1} = φ_k − α ∇L_support(φ_k)          (inner loop, equation 1)
        min_θ  mean over tasks of L_query(φ_K(θ))              (outer loop, algorithm 2)

    Deviations: (1) The inner loss is the mean over the support; the authors' code sums over classes and averages over shots, so
    their α = 0.4 at 5-way is α = 2.0 here. (2) The norm's scale and shift are adapted like all other weights; the authors' net
    has no scale and keeps its shift fixed. (3) The head starts from torch's default, not from a truncated normal.

    Args:
        net, problem: the backbone and the data's shape.
        inner_lr: α, on the mean support loss.
        inner_steps, test_steps: K in meta-training, and in validation and test.
        first_order: drop the second derivatives (FOMAML, section 5.2).
        mode: how second derivatives are computed, ``unroll`` or ``mixed`` (see ``inner.gradient``).
    """
