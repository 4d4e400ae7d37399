"""Importances of trials whose truth is known: what matters is told, what does nothing is not, too few trials say so."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from clipautt.selection.importances import FEWEST_TRIALS, Importances, importances
from clipautt.selection.trials import Dimension, check_trials
from tests.support.made_up_trials import CHOICES, DIMENSIONS, Truth, made_up_trials, random_truth

STRONG = {"train.window.length": 5.0, "adapt.readout": 3.0, "adapt.method.learning_rate": 3.0}


def known() -> Truth:
    """Three dimensions matter, one of them only where prompts are tuned."""
    shapes = random_truth(np.random.default_rng(1)).shapes
    return Truth(dict.fromkeys(CHOICES, 0.0) | STRONG, shapes, None)


def test_what_matters_is_told_with_its_interval() -> None:
    truth = known()
    trials, _ = made_up_trials(truth, 120, noise=2.0)
    found = importances(trials, DIMENSIONS, draws=150)
    assert isinstance(found, Importances) and found.trials == 120 and 0.6 < found.explained < 1
    assert {row.dimension.key for row in found.rows if row.told} == set(STRONG)
    first = found.rows[0]
    assert first.dimension.key == "train.window.length" and [one.key for one in found.level] == [first.dimension.key]
    true = truth.shares(np.random.default_rng(0))
    for row in found.rows:
        assert row.low <= row.share <= row.high
        assert row.share == pytest.approx(true[row.dimension.key], abs=0.15)
    rate = next(row for row in found.rows if row.dimension.key == "adapt.method.learning_rate")
    assert rate.trials == trials["adapt.method.learning_rate"].notna().sum() < 120


def test_settings_that_act_only_together_are_told() -> None:
    """Which of two baselines is better depends on the protocol, so that neither matters on average."""
    rng = np.random.default_rng(0)
    names = ("adapt.protocol", "adapt.subject_baseline", "adapt.readout")
    dimensions = [Dimension(name, name, "category") for name in names]
    cells = rng.integers(0, 2, (80, 3))
    uar = 0.7 + 0.05 * np.where(cells[:, 0] == cells[:, 1], 1, -1) + rng.normal(0, 0.02, 80)
    trials = pd.DataFrame(np.where(cells == 1, "one", "other"), columns=list(names)).assign(status="ok", uar=uar)
    found = importances(trials.assign(number=range(80)), dimensions)
    assert isinstance(found, Importances)
    assert {row.dimension.key for row in found.rows if row.told} == set(names[:2])


def test_too_few_trials_have_no_importances_and_say_why() -> None:
    trials, _ = made_up_trials(known(), FEWEST_TRIALS, noise=2.0)
    trials.loc[3, "status"] = "pruned"
    assert importances(trials, DIMENSIONS) == (
        f"No importances: {FEWEST_TRIALS - 1} trials finished, and with fewer than {FEWEST_TRIALS} the most important "
        "setting changes from one sweep to the next."
    )
    assert importances(trials, DIMENSIONS[:1]) == (
        "No importances: they compare settings, and the finished trials vary fewer than two."
    )
    same = made_up_trials(known(), FEWEST_TRIALS)[0].assign(uar=0.5)
    assert importances(same, DIMENSIONS) == "No importances: all finished trials have the same value."


def test_noise_alone_is_not_told() -> None:
    told = 0
    for seed in range(5):
        trials, _ = made_up_trials(Truth(dict.fromkeys(CHOICES, 0.0), known().shapes, None), 60, seed=seed)
        found = importances(trials, DIMENSIONS, draws=80)
        assert isinstance(found, Importances)
        told += sum(row.told for row in found.rows)
    assert told <= 5, f"{told} of 60 dimensions that do nothing"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "done"}, "status 'done' in the table of trials; allowed: ok, pruned, failed, interrupted"),
        ({"number": 1}, "trial 1 occurs twice in the table of trials"),
        ({"rate": 0.0}, "rate is logarithmic, but the table of trials has values that are not above 0"),
        ({"rate": None}, "the table of trials lacks rate; it has number, status, uar"),
    ],
)
def test_a_table_from_which_nothing_follows_is_refused(change: dict[str, object], message: str) -> None:
    trials = pd.DataFrame({"number": [0, 1], "status": "ok", "uar": 0.5, "rate": [0.1, 1.0]}).assign(**change)
    kept = trials.drop(columns="rate") if change == {"rate": None} else trials
    with pytest.raises(ValueError, match=message):
        check_trials(kept, [Dimension("rate", "rate", "real", log=True)])
