"""How a trained learner is asked: one file for each way."""
