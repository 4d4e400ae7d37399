"""What is known of a sweep, and what is concluded from it; the page and the summary say the same.

In: trials, values of the subjects, and what the job knows. Out: a `SweepReport` with its `Conclusions`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from clipautt.evaluation.reports.tables import cohort_title
from clipautt.metrics import Interval
from clipautt.selection.curves import Curve, curves
from clipautt.selection.importances import Importances, importances
from clipautt.selection.ranking import ranking
from clipautt.selection.trials import Dimension, check_trials, finished, varied

SECONDS = "seconds_per_video"
"""The objective that is minimized; all others are maximized."""
_NAMES = {
    "uar": "UAR",
    "war": "WAR",
    "f1": "macro F1",
    "gain": "gain in UAR",
    "unpredicted": "clips without a prediction",
    SECONDS: "seconds per video",
}


@dataclass(frozen=True)
class HeldOut:
    """The chosen trial on source subjects that no trial saw."""

    subjects: int
    """Number of these subjects."""
    trial: int
    """Number of the trial."""
    uar: Interval
    """Its mean UAR over these subjects with its 95% interval, 0..1; NaN ends where there is none."""
    gain: Interval
    """The same minus that of CLIP-AU, paired over subjects."""
    value: float
    """The UAR it had in the trials, 0..1."""
    looks: int
    """How many times these subjects have been used to judge a choice, this time included."""


@dataclass(frozen=True, eq=False)
class Conclusions:
    """What the trials hold."""

    ranked: pd.DataFrame
    """From `ranking`, the chosen trial first."""
    importances: Importances | str
    """Or why there are none."""
    dimensions: tuple[Dimension, ...]
    """Those that vary in the finished trials."""
    curves: Mapping[str, Curve]
    """Dimension's key → its curve."""
    reasons: Mapping[str, str]
    """Key of a dimension without a curve → why."""

    @property
    def main(self) -> Dimension | None:
        """The dimension that is shown first: the window length if it varies, else the most important one."""
        lengths = [one for one in self.dimensions if one.key.endswith("window.length")]
        ordered = [] if isinstance(self.importances, str) else [row.dimension for row in self.importances.rows]
        return next(iter([*lengths, *ordered, *self.dimensions]), None)


@dataclass(frozen=True, eq=False)
class SweepReport:
    """A sweep and what its page needs to know."""

    name: str
    """Name of the run."""
    trials: pd.DataFrame
    """One row per trial, see the README of the job."""
    subject_values: Mapping[int, npt.NDArray[np.floating]]
    """Trial number → UAR of every subject, mean over the cohorts, 0..1, [S]; NaN where it was stopped before."""
    reference_values: npt.NDArray[np.floating]
    """UAR of every subject by CLIP-AU on the same folds, [S]; NaN or empty where there is none."""
    dimensions: Sequence[Dimension]
    """What was searched."""
    objectives: Sequence[str]
    """Columns of `trials`; all are maximized but `SECONDS`."""
    cohorts: Sequence[str]
    """Names of the cohorts over which a value is averaged."""
    folds: int
    """Number of folds."""
    num_subjects: int
    """Subjects in the folds together."""
    num_clips: int
    """Their clips."""
    clip_points: tuple[float, float]
    """Points by which one clip decided otherwise moves the value: median over clips, and largest; NaN: unknown."""
    held_out: HeldOut | None
    """None if no subjects were held out."""
    commands: Sequence[str]
    """What trains and adapts with the chosen settings."""
    facts: Sequence[tuple[str, str]]
    """What was held out, storage, sampler, seed, versions: name and value."""
    front: Sequence[int] = ()
    """Numbers of the trials on the Pareto front, for several objectives."""
    chosen: int | None = None
    """Number of the trial that was chosen; None: the one with the highest value."""
    synthetic: bool = False
    """Whether all faces are rendered."""

    def __post_init__(self) -> None:
        check_trials(self.trials, self.dimensions, value=self.value)
        missing = [name for name in self.objectives if name not in self.trials]
        if missing:
            raise ValueError(f"the table of trials lacks the objective {missing[0]}")
        if self.chosen is not None and self.chosen not in set(self.done["number"]):
            raise ValueError(f"trial {self.chosen} was chosen, but it is not among the finished trials")
        if self.held_out is not None and self.held_out.trial != self.best:
            raise ValueError(f"trial {self.held_out.trial} was judged on held-out subjects, but {self.best} was chosen")

    @property
    def value(self) -> str:
        """The column that curves and importances explain: a single objective that is a score, else UAR."""
        single = self.objectives[0] if len(self.objectives) == 1 else "uar"
        return "uar" if single == SECONDS else single

    @cached_property
    def conclusions(self) -> Conclusions:
        """Computed once, in about a second."""
        value, done = self.value, self.done
        people = self.subject_values if value == "uar" else None
        found = curves(done, self.dimensions, subject_values=people, value=value)
        return Conclusions(
            ranking(done, self.subject_values, value=value, best=self.best),
            importances(done, self.dimensions, value=value),
            tuple(varied(done, self.dimensions)),
            {key: one for key, one in found.items() if not isinstance(one, str)},
            {key: one for key, one in found.items() if isinstance(one, str)},
        )

    @cached_property
    def done(self) -> pd.DataFrame:
        """The finished trials."""
        return finished(self.trials, value=self.value)

    @property
    def compared(self) -> int:
        """Number of trials that the chosen one was compared with, itself and the pruned ones included."""
        return len(self.done) + int((self.trials["status"] == "pruned").sum())

    @property
    def best(self) -> int | None:
        """Number of the chosen trial; None if no trial was finished."""
        if self.chosen is not None or self.done.empty:
            return self.chosen
        fastest = tuple(self.objectives) == (SECONDS,)
        scores = -self.done[SECONDS].to_numpy(float) if fastest else self.done[self.value].to_numpy(float)
        return int(self.done["number"].to_numpy()[scores.argmax()])


def name_of(column: str) -> str:
    """How a column of the table of trials is called: `uar_20%` → `UAR at 20% positives`."""
    if column.startswith("uar_"):
        cohort = column.removeprefix("uar_")
        return f"UAR, {cohort}" if cohort == "balanced" else f"UAR at {cohort_title(cohort)}"
    return _NAMES.get(column, column.replace("_", " "))
