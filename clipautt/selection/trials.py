"""The table of trials: one row per trial, a column per dimension of the search space.

In: the table as the job writes it. Out: its checked, finished rows, and the values of a dimension as numbers and text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

Kind = Literal["category", "whole", "real"]
Status = Literal["ok", "pruned", "failed", "interrupted"]
STATUSES: tuple[Status, ...] = ("ok", "pruned", "failed", "interrupted")
"""What became of a trial: finished, stopped early as a bad one, ended by an error, or cut off with the sweep."""


@dataclass(frozen=True)
class Dimension:
    """A setting that the trials vary."""

    key: str
    """The setting's dotted name, which is also its column in the table of trials."""
    label: str
    """A short name for figures."""
    kind: Kind
    """`category`, `whole` numbers or `real` numbers."""
    log: bool = False
    """Whether it was searched on a logarithmic scale."""


def check_trials(trials: pd.DataFrame, dimensions: Sequence[Dimension], *, value: str = "uar") -> None:
    """Refuse a table from which nothing can be concluded safely.

    Raises:
        ValueError: for missing columns, a trial number that occurs twice, an unknown status, and a value of a
            logarithmic dimension that is not above 0.
    """
    columns = ["number", "status", value, *(dimension.key for dimension in dimensions)]
    missing = [name for name in columns if name not in trials]
    if missing:
        raise ValueError(f"the table of trials lacks {', '.join(missing)}; it has {', '.join(map(str, trials))}")
    twice = trials.loc[trials["number"].duplicated(), "number"]
    if len(twice):
        raise ValueError(f"trial {twice.iloc[0]} occurs twice in the table of trials")
    unknown = [status for status in trials["status"] if status not in STATUSES]
    if unknown:
        raise ValueError(f"status {unknown[0]!r} in the table of trials; allowed: {', '.join(STATUSES)}")
    for dimension in dimensions:
        if dimension.log and (trials[dimension.key].dropna().astype(float) <= 0).any():
            raise ValueError(f"{dimension.key} is logarithmic, but the table of trials has values that are not above 0")


def finished(trials: pd.DataFrame, *, value: str = "uar") -> pd.DataFrame:
    """The trials that ran to their end and have a finite value, by number."""
    values = pd.to_numeric(trials[value], errors="coerce").to_numpy(float, na_value=math.nan)
    kept: pd.DataFrame = trials[(trials["status"] == "ok").to_numpy() & np.isfinite(values)]
    return kept.sort_values("number", ignore_index=True)


def varied(trials: pd.DataFrame, dimensions: Sequence[Dimension]) -> list[Dimension]:
    """The dimensions of which the trials have at least two values."""
    return [one for one in dimensions if trials[one.key].nunique() > 1]


def categories(trials: pd.DataFrame, dimension: Dimension) -> list[Any]:
    """The different values of a dimension, without empty ones: numbers and their likes in order, text by letters."""
    values = list(trials[dimension.key].dropna().unique())
    numeric = all(isinstance(value, int | float | np.number | np.bool_) for value in values)
    return sorted(values, key=float if numeric else text)


def coordinates(trials: pd.DataFrame, dimension: Dimension) -> npt.NDArray[np.float64]:
    """Where the trials lie along a dimension, [N]; NaN where it did not matter.

    Args:
        trials: the table.
        dimension: a category is placed by `categories`, 0, 1, …; a logarithmic number by its logarithm.
    """
    column = trials[dimension.key]
    if dimension.kind == "category":
        places = {value: place for place, value in enumerate(categories(trials, dimension))}
        return np.array([math.nan if pd.isna(value) else places[value] for value in column], float)
    numbers = pd.to_numeric(column).to_numpy(float, na_value=math.nan)
    return np.log(numbers) if dimension.log else numbers


def text(value: Any) -> str:
    """A value of a dimension as it is written: 0.300000001 → `0.3`, True → `true`, empty → `–`."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return "\N{EN DASH}"
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    if isinstance(value, int | float | np.number):
        return f"{float(value):.3g}" if abs(float(value)) < 1000 else f"{float(value):g}"
    return str(value)
