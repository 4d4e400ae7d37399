"""Stops bad trials on partial folds: asynchronous successive halving (ASHA, Li et al., arXiv 1810.05934).

In: a study and the number of a trial that has reported a fold. Out: whether it is to be stopped. Trials are compared
with all trials of the study that have done as many folds, those of earlier runs and of other drivers included. A trial
that was interrupted does not count, as it is run again.
"""

from __future__ import annotations

from typing import Annotated, cast

from optuna.pruners import SuccessiveHalvingPruner
from optuna.study import Study
from optuna.trial import FrozenTrial
from pydantic import Field, PositiveInt

from clipautt.settings import settings
from ray_jobs.sweep.studies.states import counted


@settings
class Stopping:
    """After `grace_folds`, `grace_folds` × `reduction`, … folds, the best 1 / `reduction` of the trials go on."""

    grace_folds: PositiveInt
    """Folds that every trial does."""
    reduction: Annotated[int, Field(ge=2)]
    """Of how many trials one goes on."""

    def __call__(self, study: Study, number: int) -> bool:
        """Whether this trial is to be stopped, given the values that it has reported."""
        pruner = SuccessiveHalvingPruner(min_resource=self.grace_folds, reduction_factor=self.reduction)
        counting = _Counting(study)
        trial = next(trial for trial in counting.get_trials() if trial.number == number)
        return pruner.prune(cast(Study, counting), trial)


class _Counting:
    """A study as far as Optuna's pruner reads it, with the trials that count alone."""

    def __init__(self, study: Study) -> None:
        self._study, self._storage, self.direction = study, study._storage, study.direction

    def get_trials(self, deepcopy: bool = False) -> list[FrozenTrial]:
        """The trials that count, by number."""
        return counted(self._study.get_trials(deepcopy=deepcopy))
