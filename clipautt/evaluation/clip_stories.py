"""Clip stories and AU agreement for a report, computed from features, frozen models and result rows.

Two models are compared on each clip: the reference (CLIP-AU without personalization) and the personalized model of the
subject. True intensities are passed in; only synthetic clips have them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from clipautt.action_units import action_unit_columns
from clipautt.adaptation.driver import prompts_after
from clipautt.adaptation.personalization import Personalization
from clipautt.adaptation.source import Source, Views
from clipautt.clips import Clip
from clipautt.evaluation.stories import AuAgreement, ClipStory, au_agreement, truth_of_windows
from clipautt.features.clip_features import ClipFeatures
from clipautt.manifest import by_subject
from clipautt.model.windows import entropy
from clipautt.video.reader_process import read_frames

Truth = Callable[[str], pd.DataFrame]
"""Path of a video → its true intensities, see `ClipStory.truth`."""

_STRIP_FRAMES = 8
_AGREEMENT_HOP = 4


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two models compared, with its personalization of each subject."""

    source: Source
    """Frozen model."""
    personalizations: Mapping[str, Personalization]
    """Subject → centre and prompts; empty for the reference."""

    def track(self, clip: ClipFeatures) -> tuple[Views, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Windows of a clip, their AU similarities [V, K] and entropies [V]."""
        known = self.personalizations.get(clip.subject_id)
        embeddings = self._prompts(known) if known else self.source.au_embeddings
        centred = replace(clip, features=clip.features - known.centre) if known else clip
        views = self.source.views(centred)
        with torch.no_grad():
            similarities = self.source.model.similarities(views.embeddings, embeddings)
            uncertain = entropy(self.source.logits(views.embeddings, embeddings))
        return views, similarities.numpy(), uncertain.numpy()

    def _prompts(self, known: Personalization) -> Tensor:
        session = known.session(self.source)
        return prompts_after(session, known.after(session).state)


def choose_clips(before: pd.DataFrame, after: pd.DataFrame, *, positive: str, count: int) -> list[str]:
    """Ids of clips to show, subjects in turn: first decisions corrected, then decisions made wrong, then right ones.

    Args:
        before: rows of the reference, one per clip.
        after: rows of the personalized method, the same clips.
        positive: class with the expression; of other classes, only clips whose decision was made wrong are chosen.
        count: the most ids to return.
    """
    later = after.set_index("clip_id")["prediction"].rename("prediction_after")
    joined = before.set_index("clip_id").join(later, how="inner")
    right, right_after = joined["prediction"] == joined["label"], joined["prediction_after"] == joined["label"]
    shown = joined["label"] == positive
    kinds = [joined[~right & right_after & shown], joined[right & ~right_after], joined[right & right_after & shown]]
    spread = [list(kind.groupby("subject_id", sort=True).head(1).index) for kind in kinds]
    share = max(1, count // 2), max(1, count // 4), count
    chosen = [clip_id for ids, number in zip(spread, share, strict=True) for clip_id in ids[:number]]
    return chosen[:count]


def tell_story(
    clip: Clip, features: ClipFeatures, side: Side, *, before: pd.Series, after: pd.Series, truth: Truth | None
) -> ClipStory:
    """The story of one clip, as the personalized model sees it; AUs that its backbone never learned are left out.

    Args:
        clip: the clip with its label.
        features: its features.
        side: the personalized model.
        before: result row of the reference.
        after: result row of the personalized method.
        truth: gives the true intensities; None for real videos.
    """
    views, similarities, uncertain = side.track(features)
    start, end = float(after["window_start_seconds"]), float(after["window_end_seconds"])
    shown = read_frames(clip, side.source.checkpoint.spec.features.frames, start_seconds=start, end_seconds=end)
    picked = np.unique(np.linspace(0, len(shown.times) - 1, _STRIP_FRAMES).round().astype(int))
    columns = action_unit_columns(side.source.checkpoint.spec.phrases)
    unknown = side.source.backbone.facts.not_learned(columns)
    learned = [number for number, column in enumerate(columns) if column not in unknown]
    return ClipStory(
        clip_id=clip.clip_id,
        subject_id=clip.subject_id,
        label=clip.label or "",
        prediction_before=str(before["prediction"]),
        prediction_after=str(after["prediction"]),
        probability_before=float(before["probability"]),
        probability_after=float(after["probability"]),
        frames=shown.frames[picked],
        window_start_seconds=start,
        window_end_seconds=end,
        window_times=(views.start_seconds + views.end_seconds) / 2,
        entropies=uncertain,
        similarities=similarities[:, learned],
        codes=tuple(columns[number] for number in learned),
        truth=truth(clip.source) if truth else None,
    )


def measure_agreement(
    clips: Sequence[Clip], features: Mapping[str, ClipFeatures], reference: Side, personalized: Side, *, truth: Truth
) -> list[AuAgreement]:
    """Rank correlation of AU similarities with true intensities, mean over subjects, before and after.

    Computed within each subject over every fourth window of all its clips, so that differences between people do not
    enter.
    """
    per_subject: list[pd.DataFrame] = []
    codes = tuple(action_unit_columns(reference.source.checkpoint.spec.phrases))
    usable = {name for name, clip in features.items() if personalized.source.why_no_window(clip) is None}
    for subject_clips in by_subject(clip for clip in clips if clip.clip_id in usable).values():
        before, after, true = [], [], []
        for clip in subject_clips:
            views, similarities, _ = reference.track(features[clip.clip_id])
            kept = slice(None, None, _AGREEMENT_HOP)
            before.append(similarities[kept])
            after.append(personalized.track(features[clip.clip_id])[1][kept])
            true.append(truth_of_windows(truth(clip.source), views.start_seconds[kept], views.end_seconds[kept]))
        agreement = au_agreement(np.concatenate(before), pd.concat(true), codes, adapted=np.concatenate(after))
        per_subject.append(pd.DataFrame([vars(one) for one in agreement]))
    every = pd.concat(per_subject)
    mean = every.groupby("code", sort=False).agg({"rho": "mean", "rho_adapted": "mean", "num_windows": "sum"})
    return [
        AuAgreement(str(code), float(row["rho"]), float(row["rho_adapted"]), int(row["num_windows"]))
        for code, row in mean.iterrows()
    ]
