"""Learners that answer with several members, or with a distribution."""
