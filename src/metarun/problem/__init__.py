"""What is to be solved: the shape of its episodes, the kind of answers, and how they are judged.
A problem knows nothing of data sets, methods or devices."""

from metarun.problem.acting import Past, Policy, Simulator
from metarun.problem.answers import Gaussian, JointGaussian, Prediction, Samples, Trajectories, best_guess, joint_log_density, spread
from metarun.problem.kinds import Bandit, Classification, Control, Density, Kind, NodeClassification, Regression, Search
from metarun.problem.problem import Problem
from metarun.problem.space import Space
from metarun.problem.spec import Corruption, EpisodeSpec

__all__ = [
    "Bandit",
    "Classification",
    "Control",
    "Corruption",
    "Density",
    "EpisodeSpec",
    "Gaussian",
    "JointGaussian",
    "Kind",
    "NodeClassification",
    "Past",
    "Policy",
    "Prediction",
    "Problem",
    "Regression",
    "Samples",
    "Search",
    "Simulator",
    "Space",
    "Trajectories",
    "best_guess",
    "joint_log_density",
    "spread",
]
