"""What became of a trial, and which trials count: pure functions over Optuna's trials.

In: the trials of a study. Out: their status, and the rank of a trial among those that count. A trial that was
interrupted does not count, as it is run again; neither does one that was withdrawn because another driver did the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from optuna.trial import FrozenTrial, TrialState

Status = Literal["ok", "pruned", "failed", "interrupted", "surplus", "running", "waiting"]

DRIVER = "driver"
"""Key of the trial's attribute with its driver's name."""
STATUS = "status"
"""Key of the attribute that says why a trial has ended that Optuna calls failed."""
REASON = "reason"
"""Key of the attribute with the reason in words."""
FACTS = "facts"
"""Key of the attribute with what the trial measured beside its values."""
RERUN = "rerun of"
"""Key of the attribute with the number of the interrupted trial that a trial repeats."""
LOST = "lost"
"""Key of the attribute of an interrupted trial whose process or node died while its driver went on."""
SLOT = "slot"
"""Key of the attribute that names a combination of a grid."""
_STATES: dict[TrialState, Status] = {
    TrialState.COMPLETE: "ok",
    TrialState.PRUNED: "pruned",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def status_of(trial: FrozenTrial) -> Status:
    """What became of a trial; its state decides first, as attributes are written before it changes."""
    if trial.state != TrialState.FAIL:
        return _STATES[trial.state]
    noted = trial.user_attrs.get(STATUS)
    return noted if noted in ("interrupted", "surplus") else "failed"


def queued_values(trial: FrozenTrial) -> dict[str, Any]:
    """The values that a trial has, or will have as it was queued with them."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def counted(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that count, by number: neither interrupted, nor withdrawn, nor queued twice."""
    taken: set[tuple[str, Any]] = set()
    result = []
    for trial in sorted(trials, key=lambda trial: trial.number):
        status = status_of(trial)
        key = _origin(trial)
        if status == "surplus" or (key is not None and key in taken):
            continue
        if key is not None:
            taken.add(key)
        if status != "interrupted":
            result.append(trial)
    return result


def ordinal_of(trials: Sequence[FrozenTrial], number: int) -> int:
    """How many trials that count have a lower number than this one."""
    return sum(trial.number < number for trial in counted(trials))


def unrepeated(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The interrupted trials that are not yet queued again."""
    repeated = {trial.user_attrs.get(RERUN) for trial in trials if status_of(trial) != "surplus"}
    return [trial for trial in trials if status_of(trial) == "interrupted" and trial.number not in repeated]


def slots(trials: Sequence[FrozenTrial]) -> set[str]:
    """The combinations of a grid that are queued, running or finished."""
    named = (trial.user_attrs.get(SLOT) for trial in counted(trials))
    return {str(slot) for slot in named if slot is not None}


def _origin(trial: FrozenTrial) -> tuple[str, Any] | None:
    """What a queued trial stands for; of two that stand for the same, the later one is superfluous."""
    for key in (RERUN, SLOT):
        if key in trial.user_attrs:
            return key, trial.user_attrs[key]
    return None
