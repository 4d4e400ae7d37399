"""AU similarities of windows against human coding: ROC-AUC, rank correlation and ICC per AU, with their validity.

In: the windows of each clip with their similarities, and its `ClipCoding`. Out: a row per AU, similarity and subject,
and a row per AU and similarity with means over subjects and intervals.

Two similarities are compared, since training may take away what the backbone knows: those of the frozen backbone, the
cosine of a frame's feature and a prompt's text feature, and those of the trained model, which its classifier reads.

A window's coding is that of its frames: it shows an AU if at least half of its codable frames do, and its intensity is
their mean. Windows of which most frames could not be coded, or that do not show the face, are left out and counted.
Every figure is computed within a subject first, so that differences between people's resting faces play no part; the
mean over subjects and its interval follow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from clipautt.action_units import title_of
from clipautt.adaptation.source import Source
from clipautt.evaluation.facs_coding.coding import ClipCoding, Floats
from clipautt.features.clip_features import ClipFeatures
from clipautt.metrics import bootstrap, intraclass_correlation, rank_correlation, roc_auc, roc_aucs
from clipautt.model.windows import window_starts

FEWEST_SUBJECTS = 6
"""With fewer, not even the range of all subjects' figures holds the median with 95 %: 1 - 2^(1 - n)."""
_CHANCE = 0.5
"""ROC-AUC of a similarity that knows nothing."""
_CODABLE = 0.5
"""Share of a window's frames that must be codable."""
_PRESENT = 0.5
"""Share of a window's codable frames from which it shows an AU."""
_IDENTITY = ["au", "name", "similarity", "learned"]
_WINDOWS = [
    "num_clips",
    "num_windows",
    "num_windows_not_coded",
    "num_windows_without_face",
    "face_share",
    "share_present",
]
SUBJECT_COLUMNS = [
    *_IDENTITY,
    *("subject_id", "coded_as", *_WINDOWS),
    *("roc_auc", "roc_auc_others", "spearman", "icc"),
    *("status", "reason", "warnings"),
]
"""Of the table with a row per AU, similarity and subject."""
AU_COLUMNS = [
    *_IDENTITY,
    *("coded_as", "num_subjects_coded", "num_subjects", *_WINDOWS),
    *("roc_auc", "roc_auc_low", "roc_auc_high", "roc_auc_others", "roc_auc_pooled", "roc_auc_pooled_centred"),
    *("spearman", "spearman_low", "spearman_high", "num_subjects_spearman"),
    *("icc", "icc_low", "icc_high", "num_subjects_icc"),
    *("verdict", "status", "reason", "warnings"),
]
"""Of the table with a row per AU and similarity."""
Similarity = Literal["model", "backbone"]
SIMILARITIES: tuple[Similarity, ...] = ("model", "backbone")


@dataclass(frozen=True, eq=False)
class CodedClip:
    """The windows of one clip that count, and its coding."""

    clip_id: str
    """As in the manifest."""
    subject_id: str
    """As in the manifest."""
    coding: ClipCoding
    """What people coded."""
    times: Floats
    """Of the stored frames, seconds of the clip, [T]."""
    windows: npt.NDArray[np.int64]
    """Index of each frame of each window, [V, L]."""
    similarities: Mapping[Similarity, npt.NDArray[np.float32]]
    """AU similarities of the windows, [V, K] each."""
    num_without_face: int = 0
    """Windows that were left out because too few of their frames show the face."""
    face_share: float = math.nan
    """Share of the frames with the face, 0..1; NaN without a detector."""

    @classmethod
    def of(cls, source: Source, clip: ClipFeatures, centre: Tensor, coding: ClipCoding) -> CodedClip:
        """The windows of a clip.

        Args:
            source: the model.
            clip: features with the subject's centre removed.
            centre: that centre, [d].
            coding: of the clip.

        Raises:
            ValueError: if no window counts, see `Source.why_no_window`.
        """
        views, spec = source.views(clip), source.window
        with torch.no_grad():
            model = source.model.similarities(views.embeddings, source.au_embeddings).cpu().numpy()
            backbone = source.face_similarities(replace(clip, features=clip.features + centre))
        used = -(-len(clip.times) // spec.stride)
        members = views.starts[:, None] + spec.stride * np.arange(min(spec.length, used))
        return cls(
            clip.clip_id,
            clip.subject_id,
            coding,
            clip.times,
            members,
            {"model": model, "backbone": _means(backbone, members)},
            num_without_face=len(window_starts(used, spec)) - len(members),
            face_share=clip.face_share,
        )

    def coded(self, code: str, *, present_from: float) -> tuple[Floats, Floats]:
        """Share of the codable frames that show an AU, and mean intensity, of every window, [V] each; NaN in windows of
        which most frames could not be coded."""
        present, intensity = self.coding.at(code, self.times, present_from=present_from)
        return _window_means(present[self.windows]), _window_means(intensity[self.windows])


def _means(frames: npt.NDArray[np.float32], members: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Mean over the frames of each window: [T, K], [V, L] → [V, K]; all windows' frames never lie in memory at once."""
    total = np.zeros((len(members), frames.shape[1]), np.float32)
    for column in members.T:
        total += frames[column]
    return total / np.float32(members.shape[1])


def _window_means(values: Floats) -> Floats:
    known = ~np.isnan(values)
    counts = known.sum(axis=1)
    means = np.where(known, values, 0.0).sum(axis=1) / np.maximum(counts, 1)
    return np.where(counts >= _CODABLE * values.shape[1], np.where(counts > 0, means, np.nan), np.nan)


@dataclass(frozen=True, eq=False)
class _Windows:
    """Windows of one subject with the coding of one AU."""

    similarities: Mapping[Similarity, npt.NDArray[np.float32]]
    """[N, K] each, windows with coding only."""
    share: Floats
    """Of their frames that show the AU, [N]."""
    intensity: Floats
    """[N]; NaN where it is not known."""
    num_clips: int
    num_not_coded: int
    num_without_face: int
    face_share: float

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.share >= _PRESENT)

    @property
    def graded(self) -> npt.NDArray[np.bool_]:
        return ~np.isnan(self.intensity)


def compare(
    clips: Sequence[CodedClip],
    columns: Sequence[str],
    *,
    not_learned: Sequence[str] = (),
    learned_known: bool = True,
    present_from: float = 1.0,
    warnings: Sequence[str] = (),
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare similarities with coding.

    ICC(3,1) needs both sides on one scale, and a similarity has none of its own. It is multiplied by the ratio of the
    within-subject standard deviations of intensity and similarity over all *other* subjects: nothing of a subject's own
    coding is used for it, and all people share a scale, so that a subject whose similarities move too little or too
    much loses agreement. (Standardizing each subject would turn the ICC into a correlation.) Offsets do not count.

    Args:
        clips: of all subjects.
        columns: what each similarity is of: AU codes, or other prompts, [K].
        not_learned: columns that the backbone never learned.
        learned_known: whether it is known which it learned.
        present_from: intensity from which an AU counts as present.
        warnings: sentences on the footage, repeated in every row.

    Returns:
        A row per AU and similarity (`AU_COLUMNS`), and one per AU, similarity and subject (`SUBJECT_COLUMNS`).
        `roc_auc_others` is the mean of the ROC-AUC that the other learned prompts reach for the same coding: what is
        not above it measures expression in general. `roc_auc_pooled` ranks the windows of all subjects together, as one
        threshold for all people would; `roc_auc_pooled_centred` does so after subtracting the median of each subject's
        similarities. `verdict` is `above_chance`, `below_chance` or `not_above_chance` by the interval of the ROC-AUC,
        and empty unless `status` is `ok`.
    """
    codes = sorted({code for clip in clips for code in clip.coding.codes}, key=lambda code: int(code[2:]))
    rows, subject_rows = [], []
    for code in codes:
        place = columns.index(code) if code in columns else None
        others = [k for k, name in enumerate(columns) if k != place and name not in not_learned]
        windows = _by_subject(clips, code, present_from)
        for which in SIMILARITIES:
            compared = _Compared(which, place, others, windows, learned=code not in not_learned)
            facts = {
                "au": code,
                "name": title_of(code).removeprefix(code).strip(),
                "similarity": which,
                "learned": "unknown" if not learned_known else "no" if code in not_learned or place is None else "yes",
            }
            own = [facts | row | {"warnings": " ".join(warnings)} for row in _subject_rows(compared)]
            subject_rows += own
            rows.append(facts | _au_row(pd.DataFrame(own), compared) | {"warnings": " ".join(warnings)})
    return pd.DataFrame(rows, columns=AU_COLUMNS), pd.DataFrame(subject_rows, columns=SUBJECT_COLUMNS)


@dataclass(frozen=True, eq=False)
class _Compared:
    """One AU by one similarity."""

    which: Similarity
    place: int | None
    """Column of its similarity; None without a prompt."""
    others: Sequence[int]
    """Columns of the other learned prompts."""
    windows: Mapping[str, _Windows]
    """Subject → windows."""
    learned: bool
    """False if the backbone never learned the AU."""

    def of(self, subject: str) -> npt.NDArray[np.float32]:
        """The AU's similarities in a subject's windows, [N]."""
        assert self.place is not None
        return self.windows[subject].similarities[self.which][:, self.place]

    def scale(self, subject: str) -> float:
        """Intensity per similarity, from all subjects but this one; NaN where they do not tell."""
        graded = moved = 0.0
        for other, one in self.windows.items():
            if other != subject and one.graded.sum() > 1:
                graded += float(one.intensity[one.graded].var() * one.graded.sum())
                moved += float(self.of(other)[one.graded].var() * one.graded.sum())
        return math.sqrt(graded / moved) if graded > 0 and moved > 0 else math.nan


def _by_subject(clips: Sequence[CodedClip], code: str, present_from: float) -> dict[str, _Windows]:
    """Subject → windows, for subjects in whose coding an AU was looked for."""
    parts: dict[str, list[CodedClip]] = {}
    for clip in clips:
        if code in clip.coding.codes:
            parts.setdefault(clip.subject_id, []).append(clip)
    found = {}
    for subject, own in sorted(parts.items()):
        coded = [clip.coded(code, present_from=present_from) for clip in own]
        share, intensity = (np.concatenate([pair[side] for pair in coded]) for side in (0, 1))
        kept = ~np.isnan(share)
        found[subject] = _Windows(
            {which: np.concatenate([clip.similarities[which] for clip in own])[kept] for which in SIMILARITIES},
            share[kept],
            intensity[kept],
            num_clips=sum(bool((~np.isnan(one)).any()) for one, _ in coded),
            num_not_coded=int((~kept).sum()),
            num_without_face=sum(clip.num_without_face for clip in own),
            face_share=float(np.mean([clip.face_share for clip in own])),
        )
    return found


def _subject_rows(compared: _Compared) -> Iterator[dict[str, Any]]:
    for subject, one in compared.windows.items():
        row = {
            "subject_id": subject,
            "coded_as": "intensity" if one.graded.any() else "occurrence",
            "num_clips": one.num_clips,
            "num_windows": len(one.share),
            "num_windows_not_coded": one.num_not_coded,
            "num_windows_without_face": one.num_without_face,
            "face_share": one.face_share,
            "share_present": float(one.present.mean()) if len(one.share) else math.nan,
        }
        figures = dict.fromkeys(("roc_auc", "roc_auc_others", "spearman", "icc"), math.nan)
        if compared.place is not None and len(one.share):
            figures = _figures(compared, subject, compared.place)
        status, reason = _contrast([one], compared)
        yield row | figures | {"status": status, "reason": reason}


def _figures(compared: _Compared, subject: str, place: int) -> dict[str, float]:
    """The figures of one subject, whose coding covers at least one window."""
    one, values = compared.windows[subject], compared.of(subject)
    graded = one.graded
    every = roc_aucs(one.similarities[compared.which], one.present)
    ranked, levels = (values[graded], one.intensity[graded]) if graded.any() else (values, one.share)
    ratings = np.stack([values[graded] * compared.scale(subject), one.intensity[graded]], axis=1)
    varies = graded.sum() > 1 and np.ptp(ratings[:, 1]) > 0
    return {
        "roc_auc": float(every[place]),
        "roc_auc_others": float(every[list(compared.others)].mean()) if compared.others else math.nan,
        "spearman": rank_correlation(ranked, levels),
        "icc": intraclass_correlation(ratings) if varies else math.nan,
    }


def _contrast(windows: Sequence[_Windows], compared: _Compared) -> tuple[str, str]:
    """Whether there is anything to compare: `ok`, or why not."""
    if compared.place is None:
        return "no_prompt", "the checkpoint has no prompt for this action unit"
    shown = [one.present for one in windows if len(one.share)]
    if not shown:
        return "not_coded", "no window has enough codable frames"
    if not any(one.any() for one in shown):
        return "never_present", "no window shows it"
    if all(one.all() for one in shown):
        return "always_present", "every window shows it"
    if not any(one.any() and not one.all() for one in shown):
        return "no_contrast", "no subject has windows with and windows without it"
    if not compared.learned:
        return "not_learned", "the backbone never learned this action unit; its figures mean nothing"
    return "ok", ""


def _au_row(subjects: pd.DataFrame, compared: _Compared) -> dict[str, Any]:
    windows = list(compared.windows.values())
    coded = subjects[subjects["num_windows"] > 0]
    totals = ("num_clips", "num_windows", "num_windows_not_coded", "num_windows_without_face")
    row: dict[str, Any] = {name: int(subjects[name].sum()) for name in totals}
    row |= {
        "coded_as": "intensity" if (subjects["coded_as"] == "intensity").any() else "occurrence",
        "num_subjects_coded": len(coded),
        "num_subjects": int(subjects["roc_auc"].notna().sum()),
        "num_subjects_spearman": int(subjects["spearman"].notna().sum()),
        "num_subjects_icc": int(subjects["icc"].notna().sum()),
        "face_share": float(coded["face_share"].mean()),
        "share_present": float(coded["share_present"].mean()),
        "roc_auc_others": float(subjects["roc_auc_others"].mean()),
    }
    for name in ("roc_auc", "spearman", "icc"):
        row |= _over_subjects(subjects[name].dropna().to_numpy(float), name)
    row |= _pooled(compared)
    status, reason = _contrast(windows, compared)
    if status == "ok" and row["num_subjects"] < FEWEST_SUBJECTS:
        count = row["num_subjects"]
        status = "few_subjects"
        reason = f"{count} subject{'s' * (count != 1)} with and without it; an interval needs {FEWEST_SUBJECTS}"
    return row | {"verdict": _verdict(row) if status == "ok" else "", "status": status, "reason": reason}


def _verdict(row: Mapping[str, Any]) -> str:
    """What the interval of the ROC-AUC says."""
    if row["roc_auc_low"] > _CHANCE:
        return "above_chance"
    return "below_chance" if row["roc_auc_high"] < _CHANCE else "not_above_chance"


def _over_subjects(figures: Floats, name: str) -> dict[str, float]:
    """Mean over subjects and its interval; NaN where there are too few."""
    if len(figures) < FEWEST_SUBJECTS:
        mean = float(figures.mean()) if len(figures) else math.nan
        return {name: mean, f"{name}_low": math.nan, f"{name}_high": math.nan}
    interval = bootstrap(figures)
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _pooled(compared: _Compared) -> dict[str, float]:
    """ROC-AUC over the windows of all subjects, as they are and with each subject's median subtracted."""
    some = [subject for subject, one in compared.windows.items() if len(one.share)]
    if compared.place is None or not some:
        return {"roc_auc_pooled": math.nan, "roc_auc_pooled_centred": math.nan}
    present = np.concatenate([compared.windows[subject].present for subject in some])
    values = [compared.of(subject) for subject in some]
    centred = [one - np.median(one) for one in values]
    return {
        "roc_auc_pooled": roc_auc(np.concatenate(values), present),
        "roc_auc_pooled_centred": roc_auc(np.concatenate(centred), present),
    }
