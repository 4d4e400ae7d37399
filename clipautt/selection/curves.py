"""The value as a function of one dimension, with the others held fixed or averaged by a model.

In: the table of trials and the UAR per subject of each. Out: a `Curve` with intervals, which says what was averaged.

A mean over the trials at each value of a dimension says something about that dimension only if the other settings are
the same at every value. Where they are, the curve is these means. Elsewhere the trials at one value may all have had a
bad readout, so the curve is what a model of all trials says of the dimension alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from clipautt.selection.surrogate import Block, Design, Floats, Rows, fit, make_design, resample
from clipautt.selection.trials import Dimension, categories, coordinates, finished, text, varied

DRAWS = 300
FEWEST_TRIALS = 10
"""Below this number of finished trials a model says nothing of a dimension among others."""
_GRID = 12
"""Values of a number that varies alone up to which its trials are averaged at each; more are smoothed by the model."""
_POINTS = 25
"""Points of a curve over a number with many values."""
_CONFIDENCE = 0.95
SubjectValues = Mapping[int, npt.NDArray[np.floating]]
"""Trial number → UAR of every subject, [S]; NaN where the trial has none."""


@dataclass(frozen=True, eq=False)
class Curve:
    """The value over one dimension."""

    dimension: Dimension
    """The dimension."""
    at: tuple[Any, ...]
    """Its values in order, P of them."""
    mean: Floats
    """Value at each, 0..1, [P]."""
    low: Floats
    """Lower ends of the 95% intervals, [P]; NaN where there is none."""
    high: Floats
    """Upper ends, [P]."""
    behind_low: Floats
    """What each value lacks at least to the best one, [P], see `least_lacks`: above 0 if it is clearly worse."""
    trials: npt.NDArray[np.int64]
    """Finished trials at each value, [P]; all 0 for a number that is not on a grid."""
    kind: Literal["means", "model"]
    """Whether it is means of trials with the same other settings, or what a model says."""
    words: str
    """What was averaged, and what the intervals are, as a sentence or two."""

    @property
    def best(self) -> int:
        """Index of the best value."""
        return int(self.mean.argmax())

    @property
    def known(self) -> bool:
        """Whether it has intervals, without which no value can be called better than another."""
        return bool(np.isfinite(self.behind_low).all())

    @property
    def worse(self) -> npt.NDArray[np.bool_]:
        """Which values are clearly worse than the best one, [P]."""
        return np.asarray(self.behind_low > 0)


def curves(
    trials: pd.DataFrame,
    dimensions: Sequence[Dimension],
    *,
    subject_values: SubjectValues | None = None,
    value: str = "uar",
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Curve | str]:
    """The value over each dimension that varies, or why nothing can be said.

    Args:
        trials: the table; only finished trials count.
        dimensions: the search space.
        subject_values: for intervals over subjects; without them a grid of single trials has no intervals.
        value: column of the values.
        draws: number of resamples.
        seed: of the resamples.

    Returns:
        Dimension's key → its curve, or the reason why there is none, as a sentence. All share the model and its refits.
    """
    done = finished(trials, value=value)
    chosen, people = varied(done, dimensions), _subjects(done, subject_values)
    found: dict[str, Curve | str] = {}
    modelled = []
    for dimension in chosen:
        rows = np.flatnonzero(done[dimension.key].notna())
        own, others = done.iloc[rows], [one for one in chosen if one.key != dimension.key]
        others = varied(own, others)
        if _same_others(own, dimension, others):
            those = None if people is None else people[rows]
            found[dimension.key] = _means(own, dimension, others, those, value=value, draws=draws, seed=seed)
        elif len(own) < FEWEST_TRIALS:
            found[dimension.key] = (
                f"No curve of {dimension.label}: other settings vary with it, and the {len(own)} finished trials in "
                f"which it mattered are too few to tell their effects apart; {FEWEST_TRIALS} are needed."
            )
        else:
            modelled.append(dimension)
    if modelled:
        found |= _modelled(done, modelled, chosen, people, value=value, draws=draws, seed=seed)
    return {one.key: found[one.key] for one in chosen}


def _subjects(done: pd.DataFrame, given: SubjectValues | None) -> Floats | None:
    """UAR per trial and subject, [N, S], of the subjects that every trial has; None where that is nobody."""
    if not given or done.empty or any(number not in given for number in done["number"]):
        return None
    rows = np.stack([np.asarray(given[number], float) for number in done["number"]])
    rows = rows[:, np.isfinite(rows).all(axis=0)]
    return rows if rows.shape[1] > 1 else None


def _same_others(done: pd.DataFrame, dimension: Dimension, others: Sequence[Dimension]) -> bool:
    """Whether the trials at each value of the dimension have the same other settings, equally often."""
    if not others:
        few = done[dimension.key].nunique() <= _GRID or len(done) < FEWEST_TRIALS
        return dimension.kind == "category" or few
    settings = [tuple(map(text, row)) for row in done[[one.key for one in others]].itertuples(index=False)]
    counts: dict[Any, Counter[Any]] = {}
    for own, rest in zip(done[dimension.key], settings, strict=True):
        counts.setdefault(own, Counter())[rest] += 1
    return all(one == next(iter(counts.values())) for one in counts.values())


def _means(
    done: pd.DataFrame,
    dimension: Dimension,
    others: Sequence[Dimension],
    people: Floats | None,
    *,
    value: str,
    draws: int,
    seed: int,
) -> Curve:
    at = categories(done, dimension)
    rows = [np.flatnonzero((done[dimension.key] == one).to_numpy(bool)) for one in at]
    mean = np.array([done[value].to_numpy(float)[own].mean() for own in rows])
    counts = np.array([len(own) for own in rows])
    each = f"{counts.max()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    if others:
        words = f"Means of {each} trials at each value, with the same settings of {_listed(others)}."
    else:
        start = "A trial" if counts.max() == 1 else f"Means of {each} trials"
        words = f"{start} at each value; nothing else varies."
    low = high = behind = np.full(len(at), np.nan)
    if people is None:
        words += " No intervals, as the values of the subjects are not known."
    else:
        of_people = np.stack([people[own].mean(axis=0) for own in rows], axis=1)
        low, high, behind = _ends(of_people.mean(axis=0), resampled_means(of_people, draws, seed))
        words += f" Intervals: over {people.shape[1]} subjects."
    return Curve(dimension, tuple(at), mean, low, high, behind, counts, "means", words)


def resampled_means(values: Floats, draws: int, seed: int) -> Floats:
    """Means over subjects drawn with replacement: [S, P] → [draws, P]."""
    count = len(values)
    counts = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws)
    return np.asarray(counts @ values / count)


def least_lacks(means: Floats, drawn: Floats) -> Floats:
    """What each of several means lacks at least to the best one, with 95% confidence, [P].

    The best of several is picked by the same data, which a paired interval does not take into account: of 40 equal
    trials of 24 subjects it calls a third worse than the best. Here the difference is compared with how far resampling
    moves the best of all: of equal ones, each is called worse in 5% of cases, and the truly best is among those with a
    bound of 0 or less in 95% (Hsu, *Simultaneous Confidence Intervals for all Distances from the "Best"*, Annals of
    Statistics 9(5), 1981; with bootstrap quantiles).

    Args:
        means: the means, [P].
        drawn: resampled means, [draws, P].
    """
    errors = drawn - means
    reach = np.quantile(errors.max(axis=1, keepdims=True) - errors, _CONFIDENCE, axis=0)
    return np.asarray(means.max() - means - reach)


def _ends(means: Floats, drawn: Floats) -> tuple[Floats, Floats, Floats]:
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    return low, high, least_lacks(means, drawn)


def _modelled(
    done: pd.DataFrame,
    dimensions: Sequence[Dimension],
    chosen: Sequence[Dimension],
    people: Floats | None,
    *,
    value: str,
    draws: int,
    seed: int,
) -> dict[str, Curve]:
    """Curves of dimensions by one model of all that vary, `chosen`."""
    values = done[value].to_numpy(float)
    design = make_design(done, chosen, values)
    blocks = [design.block(one.key) for one in dimensions]
    grids = [_grid(done, one) for one in dimensions]
    bases = [block.rows(places) for block, (_, places) in zip(blocks, grids, strict=True)]
    means = _dependences(design, blocks, bases, values, np.arange(len(values)))
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(draws):
        rows, _ = resample(rng, len(values))
        of_some = values if people is None else people[:, rng.integers(0, people.shape[1], people.shape[1])].mean(1)
        drawn.append(_dependences(design, blocks, bases, of_some, rows))
    over = "trials" if people is None else f"trials and {people.shape[1]} subjects"
    made = {}
    for place, (dimension, (at, _), mean) in enumerate(zip(dimensions, grids, means, strict=True)):
        low, high, behind = _ends(mean, np.array([one[place] for one in drawn]))
        counts = np.array([int((done[dimension.key] == one).sum()) for one in at])
        own = int(done[dimension.key].notna().sum())
        counts = counts if counts.sum() == own else np.zeros(len(at), int)
        others = [one for one in chosen if one.key != dimension.key]
        mattered = "" if own == len(done) else f" over the {own} in which it mattered"
        averaged = f"; {_listed(others)} {'is' if len(others) == 1 else 'are'} averaged{mattered or ' over them'}"
        words = (
            f"A model of all settings and their pairs, fitted to {len(done)} trials{averaged if others else ''}. "
            f"Intervals: refits on resampled {over}."
        )
        made[dimension.key] = Curve(dimension, tuple(at), mean, low, high, behind, counts, "model", words)
    return made


def _dependences(
    design: Design, blocks: Sequence[Block], bases: Sequence[Floats], values: Floats, rows: Rows
) -> list[Floats]:
    """Partial dependence (Friedman, 2001, doi:10.1214/aos/1013203451) of each block at its basis, [P] each.

    It is averaged over those of the trials in which the dimension mattered.
    """
    expected = fit(design, values, rows).of(rows)
    found = []
    for block, basis in zip(blocks, bases, strict=True):
        used = block.active[rows]
        if not used.any():
            used = np.ones(len(rows), bool)
        found.append(expected.exchanged(block, used, basis).mean(axis=0))
    return found


def _grid(done: pd.DataFrame, dimension: Dimension) -> tuple[list[Any], Floats]:
    """The values at which a curve is computed, and their coordinates."""
    different = categories(done, dimension)
    if dimension.kind == "category":
        return different, np.arange(len(different), dtype=float)
    if len(different) <= _POINTS:
        places = np.asarray([float(one) for one in different])
        return different, np.log(places) if dimension.log else places
    own = coordinates(done, dimension)
    places = np.linspace(np.nanmin(own), np.nanmax(own), _POINTS)
    return list(np.exp(places) if dimension.log else places), places


def _listed(dimensions: Sequence[Dimension]) -> str:
    names = [one.label for one in dimensions]
    if len(names) > 4:
        return f"{', '.join(names[:3])} and {len(names) - 3} more settings"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
