"""Trials as plain records, and the trial that repeats an interrupted one.

In: Optuna's trials. Out: what the tables, figures and messages of a sweep show of them.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from ray_jobs.sweep.studies.states import FACTS, REASON, RERUN, SLOT, Status, queued_values, status_of

_AGAIN = ("relative_params", "completed_rung")
"""Parts of the keys of notes that a repeated trial writes itself."""
_SHOWN_LETTERS = 200


@dataclass(frozen=True)
class TrialRecord:
    """What is known of one trial."""

    number: int
    """Optuna's number of it, unique in the study."""
    ordinal: int | None
    """Its rank among the trials that count, from 0; None for an interrupted one."""
    status: Status
    """What became of it."""
    reason: str
    """Why it failed, was stopped or interrupted; empty for others."""
    params: dict[str, Any]
    """Dimension → value."""
    values: tuple[float, ...] | None
    """One per objective; None unless it is `ok`."""
    intermediate: dict[int, float]
    """Step → value so far, of one objective."""
    facts: dict[str, Any]
    """What it measured beside its values."""
    seconds: float | None
    """From its start to its end; None if it has not ended."""


@dataclass(frozen=True)
class Counts:
    """Numbers of trials by what became of them."""

    ok: int
    """Finished, with values."""
    pruned: int
    """Stopped early."""
    failed: int
    """Ended with an error."""
    running: int
    """Given out by this driver."""
    elsewhere: int
    """Given out by other drivers."""
    waiting: int
    """Queued."""
    interrupted: int
    """Left behind by a driver that ended."""

    @property
    def finished(self) -> int:
        """Trials that are done."""
        return self.ok + self.pruned + self.failed


def brief(reason: str) -> str:
    """A reason for the terminal; the table of trials has the whole of it."""
    return textwrap.shorten(reason, _SHOWN_LETTERS, placeholder=" …")


def repeated(trial: FrozenTrial) -> FrozenTrial:
    """The trial to queue for an interrupted one: with its values, its place in a grid, and what its sampler noted.

    CMA-ES and NSGA-II note the generation that a trial belongs to when they choose its values. TPE and the Gaussian
    process note values that others should avoid; those are chosen and noted again. ASHA notes what the trial reached
    so far, which its first folds have to reach again.
    """
    kept = {key: value for key, value in trial.system_attrs.items() if not any(one in key for one in _AGAIN)}
    return create_trial(
        state=TrialState.WAITING,
        system_attrs=kept | {"fixed_params": queued_values(trial)},
        user_attrs={RERUN: trial.number} | {k: v for k, v in trial.user_attrs.items() if k == SLOT},
    )


def record_of(trial: FrozenTrial, ordinal: int | None) -> TrialRecord:
    """What is known of a trial, given its rank among those that count."""
    status = status_of(trial)
    reason = trial.user_attrs.get(REASON) or ("unknown" if status == "failed" else "")
    return TrialRecord(
        number=trial.number,
        ordinal=ordinal,
        status=status,
        reason="" if status in ("ok", "running", "waiting") else reason,
        params=queued_values(trial),
        values=tuple(trial.values) if status == "ok" else None,
        intermediate=dict(trial.intermediate_values),
        facts=dict(trial.user_attrs.get(FACTS, {})),
        seconds=None if trial.duration is None else trial.duration.total_seconds(),
    )
