"""Learners that weigh their training data: examples that are wrong, rare or useless count for less, or for more, than others."""
