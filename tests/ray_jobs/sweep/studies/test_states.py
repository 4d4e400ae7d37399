"""Which trials count, from their states alone."""

from __future__ import annotations

import itertools
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from ray_jobs.sweep.studies.states import counted, ordinal_of, slots, status_of, unrepeated


def trials_of(*given: tuple[TrialState, dict[str, Any]]) -> list[FrozenTrial]:
    """Trials numbered from 0."""
    result = []
    for number, (state, attributes) in enumerate(given):
        trial = create_trial(state=state, value=1.0 if state == TrialState.COMPLETE else None, user_attrs=attributes)
        trial.number = number
        result.append(trial)
    return result


def test_interrupted_withdrawn_and_doubled_trials_do_not_count() -> None:
    fail, waiting = TrialState.FAIL, TrialState.WAITING
    trials = trials_of(
        (TrialState.COMPLETE, {}),
        (fail, {"status": "interrupted", "slot": "a"}),
        (fail, {"status": "surplus", "rerun of": 1}),
        (fail, {"status": "failed", "rerun of": 1, "slot": "a"}),
        (waiting, {"rerun of": 1, "slot": "a"}),
        (waiting, {"slot": "a"}),
        (fail, {}),
        (TrialState.RUNNING, {"status": "interrupted"}),
        (fail, {"status": "interrupted"}),
        (TrialState.COMPLETE, {"status": "interrupted"}),
        (waiting, {"slot": "b"}),
    )
    assert [status_of(trial) for trial in trials] == [
        "ok", "interrupted", "surplus", "failed", "waiting", "waiting", "failed", "running", "interrupted", "ok",
        "waiting",
    ]  # fmt: skip
    assert [trial.number for trial in counted(trials)] == [0, 3, 6, 7, 9, 10]
    assert [ordinal_of(trials, number) for number in (0, 3, 6, 10)] == [0, 1, 2, 5]
    assert [trial.number for trial in unrepeated(trials)] == [8]
    assert slots(trials) == {"a", "b"}


def test_the_order_in_which_a_storage_gives_trials_changes_nothing() -> None:
    trials = trials_of(
        (TrialState.WAITING, {"slot": "a"}), (TrialState.WAITING, {"slot": "a"}), (TrialState.COMPLETE, {})
    )
    for order in itertools.permutations(trials):
        assert [trial.number for trial in counted(order)] == [0, 2]
