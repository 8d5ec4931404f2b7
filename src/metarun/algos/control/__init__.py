"""Learners that act: policies that adapt to an environment by what they did in it."""
