"""The Optuna study behind a search: kept in the sweep's folder, and going on where it was cut.
hydra-optuna-sweeper alone would forget the trials that were running, and run its full number of trials again."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

NAME = "metarun"


def storage(top: Path) -> str:
    """The database of a sweep's study, as a URL."""
    return f"sqlite:///{top.resolve()}/study.db"


def ended(top: Path) -> int:
    """The number of trials that have come to an end, with a result or without."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in ``continued``
        import optuna

        trials = optuna.load_study(study_name=NAME, storage=storage(top)).get_trials(deepcopy=False)
        return sum(trial.state.is_finished() for trial in trials)


def continued(top: Path, direction: str) -> int:
    """Open the study, or make it; a trial that was cut off is queued to come first, so that its run goes on.

    Args:
        direction: ``maximize`` or ``minimize``.

    Returns:
        The number of trials that have a result.
    """
    os.environ.setdefault("SQLALCHEMY_SILENCE_UBER_WARNING", "1")  # optuna 2 is made for SQLAlchemy 1.4, and this is 1.4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SQLAlchemy's and Optuna's remarks on their own future
        import optuna
        from optuna.trial import TrialState

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(study_name=NAME, storage=storage(top), direction=direction, load_if_exists=True)
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            if trial.params:
                study.enqueue_trial(trial.params)
            study.tell(trial.number, state=TrialState.FAIL)
        return len(study.get_trials(states=(TrialState.COMPLETE,)))
