"""Figures over subjects: means with intervals, paired differences, and what many tests cost.

In: one value per subject and measure. Out: data frames with a row per measure. Subjects are the unit: clips of one
person are never taken for independent.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import false_discovery_control
from scipy.stats import t as student

from clipautt.metrics import bootstraps

FEWEST = 3
"""Subjects below which there is neither interval nor test."""
FEW = 10
"""Subjects below which a percentile interval is clearly too narrow: of normal values, 95 % intervals of 3, 5, 8 and 10
subjects contain the mean in about 73, 83, 88 and 90 % of samples."""
INTERVALS = {
    "ok": "95 % bootstrap interval over subjects",
    "few_subjects": f"95 % bootstrap interval over fewer than {FEW} subjects, which is narrower than it should be",
    "none": f"no interval: fewer than {FEWEST} subjects",
}
"""Codes of the column `interval_kind` → what they mean."""


def over_subjects(values: pd.DataFrame) -> pd.DataFrame:
    """Mean, spread and interval of every measure.

    Args:
        values: a row per subject, a column per measure; nan where a subject has no value.

    Returns:
        Index: the measures; columns `subjects` (those with a value), `mean`, `sd` (standard deviation over subjects,
        nan for fewer than two), `low`, `high` (95 % bootstrap interval) and `interval_kind`, a code of `INTERVALS`.
    """
    numbers = values.to_numpy(float)
    known = np.isfinite(numbers)
    counts = known.sum(axis=0)
    ends = np.full((2, numbers.shape[1]), math.nan)
    means = np.full(numbers.shape[1], math.nan)
    for pattern in np.unique(known, axis=1).T:  # columns with values of the same subjects share their resamples
        columns = np.flatnonzero((known == pattern[:, None]).all(axis=0))
        if pattern.sum() >= FEWEST:
            found = bootstraps(numbers[pattern][:, columns])
            ends[:, columns] = [[one.low for one in found], [one.high for one in found]]
        if pattern.any():
            means[columns] = numbers[pattern][:, columns].mean(axis=0)
    table = {
        "subjects": counts,
        "mean": means,
        "sd": values.std(ddof=1).to_numpy(float),
        "low": ends[0],
        "high": ends[1],
        "interval_kind": np.select([counts < FEWEST, counts < FEW], ["none", "few_subjects"], "ok"),
    }
    return pd.DataFrame(table, index=values.columns)


def paired_differences(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Second minus first, over the subjects that have a value in both.

    Args:
        first: a row per subject, a column per measure.
        second: the same columns.

    Returns:
        Index: the measures; columns `subjects`, `mean_first` and `mean_second` (over these subjects), `difference`,
        `sd` (of the differences), `low`, `high`, `interval_kind`, `dz` (difference divided by `sd`; Cohen, *Statistical
        Power Analysis*, 1988, section 2.3.5) and `p` (paired t test, two-sided; nan for fewer than three subjects or
        differences that are all equal).
    """
    both = sorted(set(first.index) & set(second.index))
    start, end = first.loc[both], second.loc[both]
    changes = end - start
    table = over_subjects(changes).rename(columns={"mean": "difference"})
    table.insert(1, "mean_first", start.where(changes.notna()).mean())
    table.insert(2, "mean_second", end.where(changes.notna()).mean())
    spread = table["sd"].where(table["sd"] > 1e-12 * changes.abs().max().fillna(0).clip(lower=1))
    table["dz"] = table["difference"] / spread
    table["p"] = _t_test(table["dz"], table["subjects"])
    return table


def _t_test(dz: pd.Series[Any], subjects: pd.Series[Any]) -> npt.NDArray[np.float64]:
    """Two-sided p value of t = dz √n with n - 1 degrees of freedom."""
    enough = subjects >= FEWEST
    values = 2 * student.sf(np.abs(dz) * np.sqrt(subjects), np.maximum(subjects - 1, 1))
    return np.where(enough, values, math.nan)


def false_discovery(p: pd.Series[Any], families: pd.Series[Any]) -> pd.DataFrame:
    """Adjusted p values of Benjamini and Hochberg (J. R. Stat. Soc. B 57, 1995, https://doi.org/10.1111/j.2517-6161.1995.tb02031.x).

    Args:
        p: p values; nan where there is no test.
        families: which tests belong together.

    Returns:
        Columns `q` and `tests`, the number of tests in the family.
    """
    table = pd.DataFrame({"q": math.nan, "tests": 0}, index=p.index)
    for _, members in p.groupby(families):
        known = members.dropna()
        if len(known):
            table.loc[known.index, "q"] = false_discovery_control(known.to_numpy(float))
        table.loc[members.index, "tests"] = len(known)
    return table
