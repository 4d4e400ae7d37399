"""Scores settings on subjects that the source model never saw, at given shares of positives.

In: a source model, the subjects' unlabelled clips, an `AdaptConfig`, and the cohorts with their labels. Out: the
figures of every subject. Labels are used after the last prediction and for nothing else.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from clipautt.adaptation.agreement import Agreement, Decision, compare_decisions, pooled
from clipautt.adaptation.driver import SubjectResult, Unit, adapt_units
from clipautt.adaptation.method import AdaptConfig, Session
from clipautt.adaptation.predictions import NO_PREDICTION, OK, Prediction
from clipautt.adaptation.source import Source
from clipautt.clips import Clip
from clipautt.evaluation.results import Cohort
from clipautt.features.clip_features import ClipFeatures
from clipautt.metrics import bootstrap, score

METRICS = ("uar", "war", "f1")
"""Figures per subject, 0..1."""


@dataclass(frozen=True)
class Draw:
    """The clips of one subject that are evaluated together."""

    subject_id: str
    """As in the manifest."""
    cohort: int
    """Index of the cohort."""
    labels: Mapping[str, int]
    """Clip → class index."""


@dataclass(frozen=True, eq=False, repr=False)
class FoldScore:
    """The figures of the subjects of one fold."""

    figures: npt.NDArray[np.float64]
    """UAR, WAR and macro F1 of every subject at every cohort, means over the draws, [S, cohorts, 3]; a clip without a
    prediction counts as a wrong one, so that settings gain nothing by leaving out clips."""
    videos: int
    """Predictions made."""
    fallbacks: int
    """Predictions made without adaptation, because it went wrong."""
    unpredicted: int
    """Clips without a prediction, such as those that are shorter than a window."""
    seconds: float
    """Time of adaptation and prediction."""
    why_not: str = ""
    """The most frequent reason why a clip has no prediction, as a sentence; empty if all have one."""
    agreement: Agreement | None = None
    """How closely an approximation matches the exact method; None if the method is exact."""

    def __repr__(self) -> str:
        return f"FoldScore({len(self.figures)} subjects, {self.videos} videos)"


def draws_of(
    clips: Mapping[str, Sequence[Clip]], cohorts: Sequence[Cohort], *, classes: Sequence[str], seed: int
) -> list[Draw]:
    """The draws of every subject, as the adapt job makes them.

    Args:
        clips: subject → labelled clips with features, of both classes.
        cohorts: shares of the last class, and how often each is drawn.
        classes: names in label order.
        seed: seed of the draws.
    """
    return [
        Draw(subject, index, {clip.clip_id: classes.index(str(clip.label)) for clip in members})
        for subject, labelled in clips.items()
        for index, cohort in enumerate(cohorts)
        for draw in range(cohort.draws)
        if (members := cohort.members(labelled, positive=classes[-1], draw=draw, seed=seed))
    ]


def positive_shares(draws: Sequence[Draw], *, positive: int) -> tuple[float, ...]:
    """Share of the positive class in the draws of each cohort, mean over draws, [cohorts].

    Small shares need many clips: of 8 neutral clips and one positive one, 11% are positive, whatever was asked for.

    Args:
        draws: what is evaluated.
        positive: index of the positive class.
    """
    found: dict[int, list[float]] = {}
    for draw in draws:
        found.setdefault(draw.cohort, []).append(float(np.mean([one == positive for one in draw.labels.values()])))
    return tuple(float(np.mean(found[cohort])) for cohort in sorted(found))


def clip_worth(draws: Sequence[Draw]) -> tuple[float, float]:
    """By how much the mean UAR over subjects and cohorts changes if one clip is decided otherwise.

    The median over clips, and the largest.

    A clip of a class with n clips in a draw with C classes counts 1 / (C n) of the draw's UAR, which is one of the
    draws of its subject and cohort. A clip that is in several draws counts in all of them.

    Returns:
        Two shares in 0..1.
    """
    subjects, cohorts = {draw.subject_id for draw in draws}, {draw.cohort for draw in draws}
    repeats: dict[tuple[str, int], int] = {}
    for draw in draws:
        repeats[draw.subject_id, draw.cohort] = repeats.get((draw.subject_id, draw.cohort), 0) + 1
    worth: dict[tuple[str, str], float] = {}
    for draw in draws:
        counts = np.bincount([*draw.labels.values()])
        for clip, label in draw.labels.items():
            own = 1 / ((counts > 0).sum() * counts[label] * repeats[draw.subject_id, draw.cohort])
            worth[draw.subject_id, clip] = worth.get((draw.subject_id, clip), 0.0) + own
    found, scale = [*worth.values()], len(subjects) * len(cohorts)
    return float(np.median(found)) / scale, float(np.max(found)) / scale


def score_fold(
    source: Source,
    clips: Mapping[str, ClipFeatures],
    draws: Sequence[Draw],
    config: AdaptConfig,
    *,
    compare: int = 0,
) -> FoldScore:
    """Personalize to the subjects of a fold as if they were unseen, then score.

    Args:
        source: trained without any of these subjects.
        clips: clip id → features; only those that a draw names are used.
        draws: what is evaluated, sorted by subject; each is adapted to on its own.
        config: how to personalize.
        compare: number of draws to repeat with the exact method if `config` is an approximation.
    """
    began = time.perf_counter()
    session = Session.open(source, config)
    units = [
        Unit(draw.subject_id, tuple(replace(clips[one]) for one in draw.labels)) for draw in _distinct(draws, config)
    ]
    results = adapt_units(session, units)
    seconds = time.perf_counter() - began
    made = {(r.subject_id, p.clip_id): p for r in results for p in r.predictions} if not config.transductive else None
    subjects = list(dict.fromkeys(draw.subject_id for draw in draws))
    sums = np.zeros((len(subjects), 1 + max(draw.cohort for draw in draws), len(METRICS)))
    counts, videos, fallbacks, reasons = np.zeros(sums.shape[:2]), 0, 0, Counter[str]()
    for number, draw in enumerate(draws):
        if made is None:
            predictions = list(results[number].predictions)
        else:
            predictions = [made[draw.subject_id, clip_id] for clip_id in draw.labels]
        reasons.update(one.status.removeprefix(NO_PREDICTION) for one in predictions if not one.made)
        videos += sum(one.made for one in predictions)
        fallbacks += sum(one.made and one.status != OK for one in predictions)
        true = [draw.labels[one.clip_id] for one in predictions]
        found = score(_decided(predictions, true, len(source.classes)), true, num_classes=len(source.classes))
        place = subjects.index(draw.subject_id), draw.cohort
        sums[place] += [getattr(found, name) for name in METRICS]
        counts[place] += 1
    agreement = _agreement(source, units, results, config, compare) if compare else None
    figures, why_not = sums / counts[..., None], next((reason for reason, _ in reasons.most_common(1)), "")
    return FoldScore(figures, videos, fallbacks, reasons.total(), seconds, why_not, agreement)


def _decided(predictions: Sequence[Prediction], true: Sequence[int], num_classes: int) -> list[int]:
    """The predicted classes; one that is wrong where there is no prediction."""
    return [
        one.label_index if one.made else (label + 1) % num_classes for one, label in zip(predictions, true, strict=True)
    ]


def _distinct(draws: Sequence[Draw], config: AdaptConfig) -> list[Draw]:
    """What has to be computed: all draws, or every clip once where predictions do not depend on the other clips."""
    if config.transductive:
        return list(draws)
    labels: dict[str, dict[str, int]] = {}
    for draw in draws:
        labels.setdefault(draw.subject_id, {}).update(draw.labels)
    return [Draw(subject, 0, known) for subject, known in labels.items()]


def _agreement(
    source: Source, units: Sequence[Unit], results: Sequence[SubjectResult], config: AdaptConfig, most: int
) -> Agreement | None:
    """How closely an approximation matches the exact method on some units; None if the method is exact."""
    if config.exact is None:
        return None
    exact = adapt_units(Session.open(source, config.exact), units[:most])
    parts: list[Agreement] = []
    for ours, other in zip(results, exact, strict=False):
        compared = compare_decisions(_decisions(ours, source), _decisions(other, source))
        parts += [] if compared is None else [compared]
    return pooled(parts) if parts else None


def _decisions(result: SubjectResult, source: Source) -> dict[str, Decision]:
    return {
        one.clip_id: Decision(source.classes[one.label_index], float(one.probabilities[-1]))
        for one in result.predictions
        if one.made
    }


def spread(values: npt.NDArray[np.float64], reference: npt.NDArray[np.float64] | None = None) -> dict[str, float]:
    """What the subjects say about a trial's mean UAR.

    Args:
        values: UAR of every subject, mean over the cohorts, [S]; NaN for subjects of folds that were not done.
        reference: that of CLIP-AU for the same subjects, [S].

    Returns:
        `uar_low` and `uar_high`, the 95 % bootstrap interval over subjects, `uar_sd`, their standard deviation, and
        with a reference `gain`, `gain_low` and `gain_high`, the paired difference; NaN where there are no values.
    """
    known = np.isfinite(values)
    found = {"uar_low": math.nan, "uar_high": math.nan, "uar_sd": math.nan}
    found |= {"gain": math.nan, "gain_low": math.nan, "gain_high": math.nan}
    if known.any():
        interval = bootstrap(values[known])
        found |= {"uar_low": interval.low, "uar_high": interval.high}
    if known.sum() > 1:
        found["uar_sd"] = float(values[known].std(ddof=1))
    if reference is not None and (known & np.isfinite(reference)).any():
        both = known & np.isfinite(reference)
        gain = bootstrap(values[both] - reference[both])
        found |= {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
    return found
