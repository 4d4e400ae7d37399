"""The clips behind a stored personalization, which later ones of the same person are added to.

In: clips with features, and what was answered for them. Out: tensors and facts that stand in the personalization's own
file, so that both are written and erased together, and the clips again. To predict, they are not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import torch
from torch import Tensor

from clipautt.adaptation.method import SavedState
from clipautt.adaptation.predictions import Prediction
from clipautt.features.clip_features import ClipFeatures
from clipautt.features.packed import PackedClips
from clipautt.personalizing import same_frames
from clipautt.predictor import ClipAnswer

MOST_CLIPS = 64
"""Clips of a subject that are remembered."""
MOST_FRAMES = 8192
"""Frames of a subject that are remembered by `adapt=online`: 11 minutes at 12.5 a second, 16 MB with 512 numbers each,
which every further video reads and writes."""


@dataclass(frozen=True, eq=False, repr=False)
class Remembered:
    """A clip behind a personalization."""

    clip: ClipFeatures
    """Its features; its id is `clip 1`, `clip 2`, … of the subject, in the order in which they came."""
    video: str = ""
    """Name of the kept video; empty if it was not kept."""
    notes: tuple[str, ...] = ()
    """What speaks against it, in sentences."""
    answer: ClipAnswer | None = None
    """What `adapt=online` answered when it came; None for clips that were only personalized to."""

    def __repr__(self) -> str:
        return f"Remembered({self.clip!r})"


def now() -> str:
    """The time in ISO 8601, UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def next_number(clips: Sequence[Remembered]) -> int:
    """The number of the subject's next clip."""
    return max((int(one.clip.clip_id.removeprefix("clip ")) for one in clips), default=0) + 1


def find_same(clips: Sequence[Remembered], clip: ClipFeatures) -> Remembered | None:
    """The remembered clip of the same frames; None if there is none."""
    return next((one for one in clips if same_frames(one.clip, clip)), None)


def within_bounds(clips: Sequence[Remembered]) -> list[Remembered]:
    """The clips without the oldest beyond `MOST_CLIPS` and `MOST_FRAMES`; those with a kept video stay.

    An `online` run needs its clips for the resting face alone, the centre of all their frames, and not for its state:
    without the oldest, the resting face is that of the recent ones, and everything else goes on as it would.
    """
    left = list(clips)
    while len(left) > MOST_CLIPS or sum(one.clip.num_frames for one in left) > MOST_FRAMES:
        oldest = next((one for one in left[:-1] if not one.video), None)
        if oldest is None:
            break
        left.remove(oldest)
    return left


def packed(clips: Sequence[Remembered], *, since: str) -> SavedState:
    """The clips as tensors and facts.

    Args:
        clips: one or more.
        since: when the subject was first stored, see `now`.
    """
    together = PackedClips.of([one.clip for one in clips])
    answers = [one.answer for one in clips if one.answer is not None]
    tensors: dict[str, Tensor] = {
        "features": torch.from_numpy(together.features),
        "times": torch.from_numpy(together.times),
        "face_found": torch.from_numpy(together.face_found),
        "ends": torch.from_numpy(together.ends),
    }
    if answers:
        tensors["probabilities"] = torch.stack([one.prediction.probabilities for one in answers])
        tensors["au_embeddings"] = torch.stack([one.au_embeddings.cpu() for one in answers])
        tensors["centres"] = torch.stack([one.centre for one in answers])
    return SavedState(tensors, {"since": since, "clips": [_facts(one) for one in clips]})


def _facts(one: Remembered) -> dict[str, Any]:
    prediction = one.answer and one.answer.prediction
    answered = prediction and {
        "start": prediction.window_start_seconds,
        "end": prediction.window_end_seconds,
        "status": prediction.status,
    }
    clip = one.clip
    facts = {"clip_id": clip.clip_id, "subject_id": clip.subject_id, "min_share": clip.min_share}
    return facts | {"video": one.video, "notes": one.notes, "answer": answered}


def unpacked(saved: SavedState) -> list[Remembered]:
    """The inverse of `packed`; empty where nothing was remembered."""
    facts = saved.facts.get("clips", [])
    if not facts:
        return []
    tensors = saved.tensors
    clips = PackedClips(
        tuple(one["clip_id"] for one in facts),
        tuple(one["subject_id"] for one in facts),
        tensors["features"].numpy(),
        tensors["times"].numpy(),
        tensors["face_found"].numpy(),
        tensors["ends"].numpy(),
        tuple(one["min_share"] for one in facts),
    ).clips()
    rows = iter(range(len(facts)))
    return [
        Remembered(
            clips[one["clip_id"]],
            one["video"],
            tuple(one["notes"]),
            _answer(clips[one["clip_id"]], one["answer"], tensors, next(rows)) if one["answer"] else None,
        )
        for one in facts
    ]


def _answer(clip: ClipFeatures, facts: dict[str, Any], tensors: Any, row: int) -> ClipAnswer:
    prediction = Prediction(
        clip.clip_id,
        clip.subject_id,
        tensors["probabilities"][row],
        facts["start"],
        facts["end"],
        status=facts["status"],
        face_share=clip.face_share,
    )
    return ClipAnswer(prediction, tensors["au_embeddings"][row], tensors["centres"][row])
