"""Curves over one dimension: means where nothing else differs, else a model that tells settings apart."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from clipautt.selection.curves import Curve, curves
from clipautt.selection.trials import Dimension

LENGTH, READOUT = (
    Dimension("train.window.length", "window length", "whole"),
    Dimension("adapt.readout", "readout", "category"),
)
RATE = Dimension("adapt.method.learning_rate", "learning rate", "real", log=True)
LENGTHS = (4, 8, 12, 16, 20, 24, 28, 32)


def rise(lengths: np.ndarray) -> np.ndarray:
    """The true effect of the length, points."""
    return 6 * np.minimum(lengths, 20) / 20


def unbalanced(noise: float, *, seed: int = 0) -> pd.DataFrame:
    """48 trials whose value is a sum; at 16 and 20 frames all but one happened to have the bad readout."""
    rng = np.random.default_rng(seed)
    lengths = np.repeat(LENGTHS, 6)
    bad = np.where(np.isin(lengths, (16, 20)), np.arange(48) % 6 != 0, np.arange(48) % 3 == 0)
    uar = (70 + rise(lengths) - 8 * bad + rng.normal(0, noise, 48)) / 100
    readouts = np.where(bad, "peak_window", "best_window")
    return pd.DataFrame({"number": range(48), "status": "ok", "uar": uar, LENGTH.key: lengths, READOUT.key: readouts})


def test_a_curve_does_not_dip_where_the_trials_had_a_bad_readout() -> None:
    trials = unbalanced(noise=1.0)
    found = curves(trials, [LENGTH, READOUT])[LENGTH.key]
    assert isinstance(found, Curve) and found.kind == "model" and found.at == LENGTHS
    true = rise(np.array(LENGTHS))
    errors = 100 * (found.mean - found.mean.mean()) - (true - true.mean())
    assert np.abs(errors).max() < 1.2, errors.round(2)
    plain = 100 * trials.groupby(LENGTH.key)["uar"].mean().to_numpy()
    wrong = plain - plain.mean() - (true - true.mean())
    assert np.abs(wrong).max() > 3.0, "the means at each length dip by as much as the readout costs"
    assert found.worse.tolist()[:2] == [True, True] and not found.worse[LENGTHS.index(20)]
    assert (found.low < found.mean).all() and (found.mean < found.high).all()
    assert found.words == (
        "A model of all settings and their pairs, fitted to 48 trials; readout is averaged over them. Intervals: "
        "refits on resampled trials."
    )


def test_on_a_grid_the_curve_is_the_means_with_intervals_over_subjects() -> None:
    """Window length alone, with repeats: two seeds at every length."""
    rng, seeds = np.random.default_rng(0), Dimension("train.seed", "training seed", "whole")
    level, people = rng.normal(0, 0.1, 20), {}
    rows = []
    for number, (length, seed) in enumerate((length, seed) for length in (4, 8, 16) for seed in (0, 1)):
        people[number] = 0.7 + level + 0.05 * (length > 4) + rng.normal(0, 0.02, 20)
        uar = people[number].mean()
        rows.append({"number": number, "status": "ok", "uar": uar, LENGTH.key: length, seeds.key: seed})
    found = curves(pd.DataFrame(rows), [LENGTH, seeds], subject_values=people)[LENGTH.key]
    assert isinstance(found, Curve) and found.kind == "means" and found.trials.tolist() == [2, 2, 2]
    means = [np.mean([rows[2 * place]["uar"], rows[2 * place + 1]["uar"]]) for place in range(3)]
    assert found.mean.tolist() == pytest.approx(means)
    assert found.high[0] > found.low[1], "people differ by more than lengths do, and the paired comparison tells them"
    assert found.worse.tolist() == [True, False, False]
    assert found.words == (
        "Means of 2 trials at each value, with the same settings of training seed. Intervals: over 20 subjects."
    )
    without = curves(pd.DataFrame(rows), [LENGTH, seeds])[LENGTH.key]
    assert isinstance(without, Curve) and not without.known and not without.worse.any()
    assert "No intervals" in without.words


def test_a_subject_that_a_trial_lacks_is_left_out_of_all_of_them() -> None:
    trials = pd.DataFrame({"number": [0, 1], "status": "ok", "uar": [0.6, 0.7], LENGTH.key: [4, 8]})
    people = {0: np.array([0.5, 0.6, 0.7, np.nan]), 1: np.array([0.6, 0.7, 0.8, 0.9])}
    found = curves(trials, [LENGTH], subject_values=people)[LENGTH.key]
    assert isinstance(found, Curve)
    assert found.words == "A trial at each value; nothing else varies. Intervals: over 3 subjects."
    assert found.worse.tolist() == [True, False], "all three gain the same"


def test_few_trials_give_a_reason_and_empty_cells_are_where_a_dimension_did_not_matter() -> None:
    trials, rng = unbalanced(noise=0.5), np.random.default_rng(0)
    tuned = rng.permutation(48) < 24
    rates = rng.permutation(np.geomspace(0.01, 1, 48))
    trials["uar"] += np.where(tuned, 0.03 * np.log10(rates), 0.1)
    objective = Dimension("adapt.method.objective", "objective", "category")
    added = {RATE.key: np.where(tuned, rates, np.nan), objective.key: np.where(tuned, "infomax", "none")}
    one = curves(trials.assign(**added), [LENGTH, READOUT, RATE, objective])[RATE.key]
    assert isinstance(one, Curve) and one.at[0] == pytest.approx(rates[tuned].min()) and one.best == len(one.at) - 1
    assert 100 * (one.mean[-1] - one.mean[0]) == pytest.approx(6, abs=1.5)
    tuned_level = trials.loc[tuned, "uar"].mean()
    assert one.mean.mean() == pytest.approx(tuned_level, abs=0.02) and trials["uar"].mean() > tuned_level + 0.05
    assert "averaged over the 24 in which it mattered" in one.words
    few = curves(trials.head(9), [LENGTH, READOUT])
    assert few[READOUT.key] == (
        "No curve of readout: other settings vary with it, and the 9 finished trials in which it mattered are too few "
        "to tell their effects apart; 10 are needed."
    )
    assert curves(trials.assign(status="pruned"), [LENGTH, READOUT]) == {}
