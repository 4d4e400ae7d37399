"""What a personalization rests on: how many frames show the person's face, and whether they are enough.

In: the clips that were adapted to. Out: a `Basis`, and a sentence where its frames are few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipautt.features.clip_features import ClipFeatures

FEWEST_FRAMES = 100
"""With fewer frames of the face than this a warning says so. Measured on 90 synthetic people by `make
bench-personalize` (tests/benchmarks/README.md): 100 frames in a row, 8 s of a person's other clips, are the fewest
with which UAR is clearly higher than without a subject, where `predict` removes the median of the video itself: by 3.5
points (+1.2 to +5.8), as against -1.9 (-4.2 to +0.3) with 50 frames and +5.6 with all 384."""


@dataclass(frozen=True)
class Basis:
    """The footage that a personalization was made from."""

    num_clips: int
    """Clips that were adapted to; those that were omitted do not count."""
    num_frames: int
    """Sampled frames of these clips that show the face; all of them without a face detector."""
    seconds: float
    """Time that these frames stand for, seconds."""
    face_share: float | None = None
    """These frames as a share of all that were sampled, 0..1; None without a face detector."""

    @classmethod
    def of(cls, clips: Sequence[ClipFeatures]) -> Basis:
        """What these clips of one subject give."""
        counts = [len(clip.shown) for clip in clips]
        seconds = [count * _period(clip) for clip, count in zip(clips, counts, strict=True)]
        detected = any(clip.min_share for clip in clips)
        share = sum(counts) / sum(len(clip.features) for clip in clips) if detected else None
        return cls(len(clips), sum(counts), round(sum(seconds), 3), share)

    def __str__(self) -> str:
        clips, frames = _counted(self.num_clips, "clip"), _counted(self.num_frames, "frame")
        face = "" if self.face_share is None else f" that show the face ({100 * self.face_share:.0f} % of all)"
        return f"{clips}, {frames}{face}, {self.seconds:.1f} s"

    @property
    def too_few(self) -> str | None:
        """A sentence where the frames are fewer than `FEWEST_FRAMES`; None elsewhere."""
        if self.num_frames >= FEWEST_FRAMES:
            return None
        frames = f"{_counted(self.num_frames, 'frame')} ({self.seconds:.1f} s)"
        return (
            f"The personalization rests on {frames}; with fewer than {FEWEST_FRAMES} it is not clearly better than "
            "none: use more video of the person."
        )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _period(clip: ClipFeatures) -> float:
    """Seconds from one sampled frame to the next; 0 for a single frame."""
    return float(np.median(np.diff(clip.times))) if len(clip.times) > 1 else 0.0
