"""Searching for what is usually set by hand: architectures, hyperparameters, update rules."""
