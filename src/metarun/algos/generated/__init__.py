"""Learners whose examples are made: imagined, adversarial, or changed as was learned."""
