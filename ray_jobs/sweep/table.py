"""The trials of a study as a table, and as text.

In: the records of a study. Out: one row per trial with its figures, intervals and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from clipautt.selection.report import SECONDS, name_of
from clipautt.selection.scoring import METRICS, spread
from clipautt.selection.trials import STATUSES
from ray_jobs.sweep.dimensions import Dimension
from ray_jobs.sweep.space import SearchSpace
from ray_jobs.sweep.studies.records import TrialRecord

MINIMIZED = (SECONDS,)
"""Figures of which less is better."""
_SPREAD = ("uar_low", "uar_high", "uar_sd", "gain", "gain_low", "gain_high")
_TIMES = ("seconds_per_video", "seconds", "training_seconds", "adaptation_seconds")
_COUNTS = ("folds", "trained", "fallbacks", "unpredicted")


def figures_known(cohorts: Sequence[str]) -> tuple[str, ...]:
    """Names of the figures that can be objectives."""
    return (*METRICS, *(f"uar_{name}" for name in cohorts), *MINIMIZED)


def subject_values(record: TrialRecord, num_subjects: int) -> npt.NDArray[np.float64]:
    """UAR of every subject in a trial, mean over the cohorts, [S]; NaN for those of folds that were not done."""
    values = np.full(num_subjects, np.nan)
    told = record.facts.get("subjects") or []
    values[: len(told)] = told
    return values


def trial_table(
    records: Sequence[TrialRecord],
    space: SearchSpace,
    *,
    cohorts: Sequence[str],
    num_subjects: int,
    reference: npt.NDArray[np.float64] | None,
) -> pd.DataFrame:
    """All trials of a study.

    Args:
        records: from `SweepStudy.trials`; those that run or wait are left out.
        space: its dimensions become columns, empty where they did not matter in a trial.
        cohorts: names of the shares of positives at which trials are scored.
        num_subjects: S, the subjects of all folds.
        reference: UAR of CLIP-AU for every subject, [S].

    Returns:
        One row per trial, by number: `number, status, reason`, the figures as means over subjects, `uar_low` to
        `gain_high` from `spread`, times in seconds, counts, `agreement`, and the dimensions.
    """
    named = tuple(f"uar_{name}" for name in cohorts)
    rows = []
    for record in records:
        if record.status not in STATUSES:
            continue
        facts = record.facts
        row: dict[str, Any] = {"number": record.number, "status": record.status, "reason": record.reason}
        row |= {name: facts.get(name) for name in (*METRICS, *named, *_TIMES, *_COUNTS, "agreement")}
        row |= spread(subject_values(record, num_subjects), reference)
        row["seconds"] = facts.get("seconds", record.seconds)
        rows.append(row | {dimension.name: cell(dimension, record) for dimension in space.dimensions})
    figures = (METRICS[0], *_SPREAD[:3], *named, *METRICS[1:], *_SPREAD[3:])
    columns = ["number", "status", "reason", *figures, "folds", *_TIMES, *_COUNTS[1:], "agreement"]
    types = {name: "float64" for name in (*figures, *_TIMES, "agreement")} | dict.fromkeys(_COUNTS, "Int64")
    types |= {dimension.name: dimension.dtype for dimension in space.dimensions}
    return pd.DataFrame(rows, columns=[*columns, *(dimension.name for dimension in space.dimensions)]).astype(types)


def cell(dimension: Dimension, record: TrialRecord) -> Any:
    """The value of a dimension in a trial as the table holds it; None where it did not matter."""
    return dimension.cell(record.params[dimension.name]) if dimension.name in record.params else None


def best_record(records: Sequence[TrialRecord], objective: str) -> TrialRecord | None:
    """The finished trial that is best by one figure, the first of equal ones; None if none is finished."""
    sign = -1 if objective in MINIMIZED else 1
    good = [record for record in records if record.status == "ok"]
    return max(good, key=lambda record: (sign * record.facts[objective], -record.number), default=None)


def figure_text(record: TrialRecord, objective: str) -> str:
    """`UAR 81.2 % (75.9 to 86.0)`, or the figure alone where subjects give no interval."""
    value = record.facts[objective]
    if objective in MINIMIZED:
        return f"{value:.3g} s per video"
    shown = f"{name_of(objective)} {100 * value:.1f} %"
    if objective != METRICS[0]:
        return shown
    interval = spread(subject_values(record, len(record.facts["subjects"])))
    return f"{shown} ({100 * interval['uar_low']:.1f} to {100 * interval['uar_high']:.1f})"
