"""Learners that train a net from random weights: by a rule of old, or by one that is learned."""
