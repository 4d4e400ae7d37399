"""Trials from best to worst, and which of them cannot be told apart from the best one.

In: the table of trials and the UAR per subject of each. Out: a table with the paired difference to the best trial.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from clipautt.evaluation.reports.sentences import MIN_SUBJECTS
from clipautt.selection.curves import SubjectValues, least_lacks, resampled_means
from clipautt.selection.trials import finished

_DRAWS = 2000


def ranking(
    trials: pd.DataFrame, subject_values: SubjectValues | None = None, *, value: str = "uar", best: int | None = None
) -> pd.DataFrame:
    """The finished trials from the highest value to the lowest; equal ones by number.

    Args:
        trials: the table.
        subject_values: for the differences.
        value: column to sort by.
        best: number of the trial to compare with, which then comes first; None: the one with the highest value.

    Returns:
        Columns `number`, `value`, `low`, `high` (the table's interval of UAR, NaN for another value), `behind` (how
        much UAR it lacks to the first one, mean over subjects, paired), `behind_low` (what it lacks at least, see
        `least_lacks`), `behind_high` (97.5% bootstrap quantile) and `apart`: True if 0 is
        outside of these two, None where there are no values of at least `MIN_SUBJECTS` subjects.
    """
    done = finished(trials, value=value)
    first = done["number"].eq(best) if best is not None else pd.Series(False, index=done.index)
    done = done.assign(first=~first).sort_values(["first", value, "number"], ascending=[True, False, True])
    made = pd.DataFrame({"number": done["number"].astype(int), "value": done[value].astype(float)})
    for end in ("low", "high"):
        made[end] = done[f"uar_{end}"].astype(float) if value == "uar" and f"uar_{end}" in done else math.nan
    made = made.reset_index(drop=True)
    return made.join(pd.DataFrame(_behind(made["number"].tolist(), subject_values or {}), index=made.index))


def _behind(numbers: list[int], values: SubjectValues) -> dict[str, list[object]]:
    """What every trial lacks to the first one; all trials with the same subjects share their resamples."""
    found: dict[int, tuple[float, float, float]] = {}
    groups: dict[bytes, list[int]] = {}
    for number in numbers if numbers and numbers[0] in values else []:
        if number in values:
            known = np.isfinite(np.asarray(values[numbers[0]], float) - np.asarray(values[number], float))
            if known.sum() >= MIN_SUBJECTS:
                groups.setdefault(known.tobytes(), []).append(number)
    for mask, members in groups.items():
        known = np.frombuffer(mask, bool)
        everyone = list(dict.fromkeys([numbers[0], *members]))
        people = np.stack([np.asarray(values[one], float)[known] for one in everyone], axis=1)
        means, drawn = people.mean(axis=0), resampled_means(people, _DRAWS, 0)
        least = least_lacks(means, drawn) - (means.max() - means[0])
        highest = np.quantile(drawn[:, :1] - drawn, 0.975, axis=0)
        for place, number in enumerate(everyone):
            found.setdefault(number, (float(means[0] - means[place]), float(least[place]), float(highest[place])))
    rows = [found.get(number) for number in numbers]
    nothing = (math.nan,) * 3
    columns: dict[str, list[object]] = {
        name: [(row or nothing)[place] for row in rows]
        for place, name in enumerate(("behind", "behind_low", "behind_high"))
    }
    return columns | {"apart": [None if row is None else bool(row[1] > 0 or row[2] < 0) for row in rows]}


def not_apart(ranked: pd.DataFrame) -> list[int]:
    """Numbers of the trials that cannot be told apart from the best one, without it."""
    return [
        int(number) for number, apart in zip(ranked["number"][1:], ranked["apart"][1:], strict=True) if apart is False
    ]
