"""A trained learner put to use: from Python, and by ``metarun predict``."""
