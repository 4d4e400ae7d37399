"""WAR, UAR, macro F1, intervals, detectable effects, and agreement: rank correlation, ROC-AUC, ICC. Pure functions.

WAR (weighted average recall) is the accuracy; UAR is the unweighted mean of the recalls of the classes that occur. In
the evaluation the unit is the video, figures are computed per target subject, and the headline is their mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

_CELLS = 10_000_000
"""Resamples times subjects that are in memory at once."""

Labels = Sequence[int] | npt.NDArray[np.integer]


@dataclass(frozen=True)
class Scores:
    """Figures of one set of predictions, each in 0..1."""

    war: float
    """Accuracy."""
    uar: float
    """Mean recall over the classes that occur."""
    f1: float
    """Macro F1 over all classes; a class that neither occurs nor is predicted counts 0."""


def score(predictions: Labels, labels: Labels, *, num_classes: int) -> Scores:
    """WAR, UAR and macro F1.

    Args:
        predictions: class indices [N].
        labels: true class indices [N].
        num_classes: C.

    Raises:
        ValueError: if the inputs are empty or differ in length.
    """
    predicted, true = np.asarray(predictions), np.asarray(labels)
    if len(predicted) != len(true) or not len(true):
        raise ValueError(f"{len(predicted)} predictions for {len(true)} labels; both must be equal and at least 1")
    figures = figures_of(confusion(predicted, true, num_classes=num_classes))
    return Scores(**{name: float(value) for name, value in figures.items()})


def figures_of(counts: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.float64]]:
    """`war`, `uar` and `f1`, [...], of confusion matrices [..., C, C] that each hold at least one prediction."""
    hits, actual, called = counts.diagonal(axis1=-2, axis2=-1), counts.sum(-1), counts.sum(-2)
    recalls = hits / np.maximum(actual, 1)  # 0 for a class that does not occur
    return {
        "war": hits.sum(-1) / actual.sum(-1),
        "uar": recalls.sum(-1) / (actual > 0).sum(-1),
        "f1": (2 * hits / np.maximum(actual + called, 1)).mean(-1),
    }


def rank_correlation(values: npt.NDArray[np.floating], others: npt.NDArray[np.floating], *, fewest: int = 2) -> float:
    """Spearman's rho; NaN if a side is constant, for which it is not defined, or there are too few pairs.

    Args:
        values: [N].
        others: [N].
        fewest: minimum number of pairs.
    """
    from scipy.stats import spearmanr

    if len(others) < fewest or np.ptp(values) == 0 or np.ptp(others) == 0:
        return math.nan
    return float(spearmanr(values, others).statistic)


def roc_auc(values: npt.NDArray[np.floating], positive: npt.NDArray[np.bool_]) -> float:
    """Probability that a positive has a higher value than a negative, inputs [N]; NaN unless there are both."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, values)) if 0 < positive.sum() < len(positive) else math.nan


def roc_aucs(values: npt.NDArray[np.floating], positive: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """`roc_auc` of each column of `values`, [N, K] → [K], by the sums of ranks (Mann and Whitney, 1947)."""
    from scipy.stats import rankdata

    count = int(positive.sum())
    if not 0 < count < len(positive):
        return np.full(values.shape[1], math.nan)
    sums = rankdata(values, axis=0)[positive].sum(axis=0)
    return np.asarray((sums - count * (count + 1) / 2) / (count * (len(positive) - count)))


def intraclass_correlation(ratings: npt.NDArray[np.floating]) -> float:
    """ICC(3,1), the consistency of single ratings by fixed raters.

    Shrout and Fleiss, *Intraclass Correlations*, Psychological Bulletin 86(2), 1979, doi:10.1037/0033-2909.86.2.420:
    (BMS - EMS) / (BMS + (k - 1) EMS), with the mean squares between targets and of the error. A constant difference
    between raters does not count; a difference in scale does.

    Args:
        ratings: a row per target, a column per rater, [N, k].

    Returns:
        At most 1; NaN for fewer than two targets or raters, and where all ratings are the same.
    """
    count, raters = ratings.shape
    if count < 2 or raters < 2:
        return math.nan
    centred = ratings - ratings.mean(axis=0)
    between = raters * float((centred.mean(axis=1) ** 2).sum()) / (count - 1)
    error = float(((centred - centred.mean(axis=1, keepdims=True)) ** 2).sum()) / ((count - 1) * (raters - 1))
    total = between + (raters - 1) * error
    return (between - error) / total if total > 0 else math.nan


def confusion(predictions: Labels, labels: Labels, *, num_classes: int) -> npt.NDArray[np.int64]:
    """Counts [C, C]; rows are true classes, columns predicted ones."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (np.asarray(labels), np.asarray(predictions)), 1)
    return counts


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap interval."""

    mean: float
    """Mean of the values."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""


def bootstrap(
    values: Sequence[float] | npt.NDArray[np.floating], *, confidence: float = 0.95, draws: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap of a mean (Efron and Tibshirani, 1993).

    For a paired comparison the values are the differences of the two methods, one per subject.

    Args:
        values: one figure per subject, [S]; NaN is an error.
        confidence: mass of the interval.
        draws: number of resamples.
        seed: random seed of the resamples.

    Raises:
        ValueError: for no values, or values that are not finite.
    """
    array = np.asarray(values, float)
    if not len(array) or not np.isfinite(array).all():
        raise ValueError(f"bootstrap needs finite values, got {array.tolist()}")
    index = np.random.default_rng(seed).integers(0, len(array), (draws, len(array)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(array[index].mean(1), [tail, 1 - tail])
    return Interval(float(array.mean()), float(low), float(high))


def bootstraps(
    values: npt.NDArray[np.floating], *, confidence: float = 0.95, draws: int = 10_000, seed: int = 0
) -> list[Interval]:
    """`bootstrap` of every column; all of them share their resamples, so that many columns take little time.

    Args:
        values: one figure per subject and column, [S, K].
        confidence: mass of the intervals.
        draws: number of resamples.
        seed: random seed of the resamples.

    Raises:
        ValueError: as `bootstrap`.
    """
    array = np.asarray(values, float)
    if not len(array) or not np.isfinite(array).all():
        raise ValueError(f"bootstraps needs finite values, got {array.tolist()}")
    count, rng = len(array), np.random.default_rng(seed)
    step = max(1, _CELLS // count)
    sizes = [min(step, draws - start) for start in range(0, draws, step)]
    means = np.concatenate([_shares(rng.integers(0, count, (size, count))) @ array for size in sizes])
    tail = (1 - confidence) / 2
    lows, highs = np.quantile(means, [tail, 1 - tail], axis=0)
    return [Interval(*map(float, one)) for one in zip(array.mean(0), lows, highs, strict=True)]


def _shares(index: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Share of every subject in each resample: indices [R, S] → [R, S]."""
    rows, count = index.shape
    places = index + count * np.arange(rows)[:, None]
    shares: npt.NDArray[np.float64] = np.bincount(places.ravel(), minlength=rows * count).reshape(rows, count) / count
    return shares


def detectable_effect(
    changes: Sequence[float] | npt.NDArray[np.floating], *, confidence: float = 0.95, power: float = 0.8
) -> float:
    """The smallest true mean change that a paired comparison of this size and spread would find.

    (t(1 - α/2) + t(power)) · s / √n, with quantiles of Student's t at n - 1 degrees of freedom (Bloom, *Minimum
    Detectable Effects*, Evaluation Review 19(5), 1995). It depends on the spread of the changes, not on their mean: it
    is what the comparison could have found, whatever it did find.

    Args:
        changes: the differences of the two methods, one per subject, [n].
        confidence: 1 - α of the two-sided comparison.
        power: probability of finding an effect of this size.

    Returns:
        The effect in the unit of `changes`; 0 if all of them are equal.

    Raises:
        ValueError: for fewer than two values, or values that are not finite.
    """
    array = np.asarray(changes, float)
    if len(array) < 2 or not np.isfinite(array).all():
        raise ValueError(f"detectable_effect needs at least two finite values, got {array.tolist()}")
    freedom = len(array) - 1
    quantiles = student.ppf(1 - (1 - confidence) / 2, freedom) + student.ppf(power, freedom)
    return float(quantiles * array.std(ddof=1) / np.sqrt(len(array)))
