"""What chooses the values of trials: Optuna's samplers by name, with random numbers that a killed sweep repeats.

In: a sampler's name and the sweep's seed. Out: a `SeededSampler`. Its random numbers follow from the seed and a trial's
rank among the trials that count: with one trial at a time, equal seeds choose equal values, however often the sweep was
killed and started again.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import logging
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from ray_jobs.sweep.studies.states import DRIVER, ordinal_of

SamplerName = Literal["tpe", "random", "cmaes", "gp", "nsga2", "grid"]
"""Tree-structured Parzen estimator; random; CMA-ES; Gaussian process; NSGA-II; every combination of a grid."""

_ONE_OBJECTIVE = ("cmaes",)
_STREAM = 31  # Keeps the sampler's random numbers apart from those of training and cohorts.
_POPULATION = 20
"""Trials per generation of NSGA-II; Optuna's 50 would leave a usual sweep at random values."""

_MAKERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed, multivariate=True, group=True),  # `group` allows conditional dimensions.
    "random": lambda seed: RandomSampler(seed=seed),
    "cmaes": lambda seed: CmaEsSampler(seed=seed, with_margin=True, warn_independent_sampling=False),
    "gp": lambda seed: GPSampler(seed=seed, warn_independent_sampling=False),
    "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=_POPULATION),
    "grid": lambda seed: _OnlyQueued(),
}


def make_sampler(name: SamplerName, seed: int, *, objectives: int = 1) -> SeededSampler:
    """The sampler of a sweep.

    Args:
        name: its name.
        seed: seed of the sweep.
        objectives: number of objectives.

    Raises:
        ValueError: There is no such sampler, it cannot search several objectives, or its package is missing.
    """
    if name not in _MAKERS:
        raise ValueError(f"sampler={name}: unknown; allowed: {', '.join(get_args(SamplerName))}")
    if objectives > 1 and name in _ONE_OBJECTIVE:
        able = [other for other in _MAKERS if other not in _ONE_OBJECTIVE]
        raise ValueError(f"sampler={name} searches one objective, not {objectives}; allowed: {', '.join(able)}")
    if name == "cmaes" and importlib.util.find_spec("cmaes") is None:
        raise ValueError("sampler=cmaes needs the package cmaes; install it with pip install cmaes")
    logging.getLogger("optuna._gp.batched_lbfgsb").setLevel(logging.ERROR)  # It advises another package at every start.
    return SeededSampler(_MAKERS[name], seed, only_queued=name == "grid")


class SeededSampler(BaseSampler):
    """One of Optuna's samplers, made anew for every trial with random numbers of its own.

    A sampler that is seeded once would choose the first trials again in a sweep that goes on. A dimension that is
    sampled alone has random numbers of its own too, so that a trial which was killed while its values were chosen gets
    the same ones again.

    Args:
        make: seed → sampler.
        seed: seed of the sweep.
        only_queued: whether it invents no values, so that trials have to be queued with them.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int, *, only_queued: bool = False) -> None:
        self.make, self.seed, self.only_queued = make, seed, only_queued
        self.owner: str | None = None
        """Name of the driver, noted with each trial as it begins."""
        self.seen: list[FrozenTrial] = []
        """The trials of the study when the latest one began, itself among them."""
        self._current: tuple[int, int, BaseSampler] | None = None

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Note whose trial it is, and seed its sampler."""
        if self.owner is not None:
            study._storage.set_trial_user_attr(trial._trial_id, DRIVER, self.owner)
        self._begin(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The dimensions that are sampled jointly."""
        _, sampler = self._of(study, trial)
        return sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Values of the dimensions that are sampled jointly."""
        ordinal, sampler = self._of(study, trial)
        if isinstance(sampler, CmaEsSampler):  # It adds the number to its seed; TPE tells trials apart by it.
            trial = copy.copy(trial)
            trial.number = ordinal
        with quiet():
            return sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The value of a dimension that is sampled alone."""
        ordinal, _ = self._of(study, trial)
        sampler = self._seeded(ordinal, zlib.crc32(param_name.encode()))
        with quiet():
            return sampler.sample_independent(study, trial, param_name, param_distribution)

    def _of(self, study: Study, trial: FrozenTrial) -> tuple[int, BaseSampler]:
        if self._current is None or self._current[0] != trial.number:
            return self._begin(study, trial)
        return self._current[1:]

    def _begin(self, study: Study, trial: FrozenTrial) -> tuple[int, BaseSampler]:
        self.seen = study.get_trials(deepcopy=False)
        ordinal = ordinal_of(self.seen, trial.number)
        sampler = self._seeded(ordinal)
        self._current = trial.number, ordinal, sampler
        return ordinal, sampler

    def _seeded(self, *parts: int) -> BaseSampler:
        numbers = np.random.SeedSequence([self.seed, _STREAM, *parts]).generate_state(1)
        with quiet():
            return self.make(int(numbers[0]))


class _OnlyQueued(BaseSampler):
    """Has no values of its own."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        raise ValueError(f"sampler=grid: the queued combination has no value for {param_name}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide Optuna's notes on experimental parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
