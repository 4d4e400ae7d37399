"""Samplers by name: a conditional space, equal values for an equal seed, also where the sweep was killed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import RandomSampler

from ray_jobs.sweep.studies.samplers import SeededSampler, make_sampler
from tests.support.sweep_driver import choose, opened, run

TOTAL = {"tpe": 14, "random": 6, "cmaes": 14, "gp": 13, "nsga2": 24}
"""More than the trials that each begins with at random."""


def values_of(folder: Path, sampler: str, *, seed: int = 0, killed_after: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """The values that a sweep tries; the driver ends after these numbers of trials, each time with one begun."""
    folder.mkdir()
    where = str(folder / "study.log")
    for number, after in enumerate(killed_after):
        with opened(where, folder, sampler=sampler, seed=seed) as study:
            run(study, after)
            trial = study.ask(TOTAL[sampler])
            assert trial is not None
            if number % 2:
                trial.suggest_categorical("kind", ["flat", "deep"])  # killed while its values were chosen
            else:
                choose(trial)
    with opened(where, folder, sampler=sampler, seed=seed) as study:
        run(study, TOTAL[sampler])
        assert study.counts().interrupted == len(killed_after)
        return [trial.params for trial in study.trials() if trial.status == "ok"]


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes", "nsga2", pytest.param("gp", marks=pytest.mark.slow)])
def test_equal_seeds_try_equal_values_however_often_the_sweep_is_killed(sampler: str, tmp_path: Path) -> None:
    if sampler == "cmaes":
        pytest.importorskip("cmaes")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ExperimentalWarning)
        warnings.simplefilter("error", UserWarning)
        whole = values_of(tmp_path / "whole", sampler)
    total = TOTAL[sampler]
    assert len(whole) == total
    assert values_of(tmp_path / "killed", sampler, killed_after=(1, total // 2, total - 2, total - 1)) == whole
    assert len({str(values) for values in whole}) > 0.9 * total
    assert {"depth" in values for values in whole} == {True, False}
    assert all(("depth" in values) == (values["kind"] == "deep") for values in whole)
    assert values_of(tmp_path / "other", "random", seed=1)[:3] != whole[:3]


def test_each_trial_has_random_numbers_of_its_own_and_a_dimension_too(tmp_path: Path) -> None:
    with opened(str(tmp_path / "s.log"), tmp_path) as study:
        drawn = []
        for _ in range(3):
            trial = study.ask(3)
            assert trial is not None
            drawn.append([trial.suggest_float(name, 0, 1) for name in ("a", "b")])
    assert len({value for pair in drawn for value in pair}) == 6


def test_a_sampler_that_cannot_do_it_is_refused() -> None:
    unknown: Any = "bohb"
    with pytest.raises(ValueError, match="sampler=bohb: unknown; allowed: tpe, random, cmaes, gp, nsga2, grid"):
        make_sampler(unknown, 0)
    with pytest.raises(
        ValueError, match="sampler=cmaes searches one objective, not 2; allowed: tpe, random, gp, nsga2, grid"
    ):
        make_sampler("cmaes", 0, objectives=2)
    assert isinstance(SeededSampler(lambda seed: RandomSampler(seed), 0).make(1), RandomSampler)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "nsga2"])
def test_two_objectives_are_searched(sampler: str, tmp_path: Path) -> None:
    with opened(str(tmp_path / "s.log"), tmp_path, sampler=sampler, directions=["maximize", "minimize"]) as study:
        while (trial := study.ask(24)) is not None:
            score = choose(trial)
            study.complete(trial.number, [score, trial.params["rate"]], {})
        assert study.counts().ok == 24
        assert 1 <= len(study.front()) < 24
