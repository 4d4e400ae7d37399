"""Which clips of a subject cannot be predicted, and why: no window that shows the face, or fewer frames than a window.

In: one subject's clips with features. Out: a sentence for each clip that takes no part in adaptation or prediction.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from clipautt.adaptation.method import Session
from clipautt.features.clip_features import ClipFeatures, subject_centre

_STILL, _MOST = 0.045, 0.9
"""Distance from the centre, as a share of a frame's length, within which this share of the frames stays in a still
picture: 0.044 or less in pictures encoded as videos, 0.11 or more in films of faces, dark ones too."""
_TINY = 1e-12


def omitted_clips(
    session: Session, clips: Sequence[ClipFeatures], *, earlier: Sequence[ClipFeatures] = ()
) -> dict[str, str]:
    """Clip id → why the clip cannot be predicted, for those of one subject that cannot.

    A clip needs a window that counts. With a subject baseline, the frames behind the centre must make up a window, and
    not be a single picture: those of the clip itself under `per_video`, of all clips so far under `online`, of all
    clips under `per_subject`.

    Args:
        session: source model and settings.
        clips: the clips in visiting order.
        earlier: `online`: the clips of the run that is resumed, in visiting order; judged in the same way.
    """
    protocol, whole = session.config.protocol, session.config.readout == "whole_clip"
    omitted: dict[str, str] = {}
    shown = 0
    for clip in (*earlier, *clips):
        why, frames = session.source.why_no_window(clip, whole=whole), len(clip.shown)
        if why is None and protocol != "per_subject":
            why = why_too_short(session, frames + (shown if protocol == "online" else 0))
        if why is None and (protocol == "per_video" or (protocol == "online" and not shown)):
            why = why_still(session, [clip])
        if why is None:
            shown += frames
        else:
            omitted[clip.clip_id] = why
    taking_part = [clip for clip in clips if clip.clip_id not in omitted]
    if protocol == "per_subject" and taking_part:
        why = why_too_short(session, shown) or why_still(session, taking_part)
        omitted |= {clip.clip_id: why for clip in taking_part if why}
    return omitted


def why_too_short(session: Session, num_frames: int) -> str | None:
    """Why a subject's centre cannot be taken from this many frames, as a sentence; None if it can.

    The centre of fewer frames than a window has is the expression itself: what is left of it says nothing.
    """
    window = session.source.window
    if session.config.subject_baseline == "none" or num_frames > (window.length - 1) * window.stride:
        return None
    counted = "1 frame" if num_frames == 1 else f"{num_frames} frames"
    stride = f" with stride {window.stride}" if window.stride > 1 else ""
    return (
        f"too short: {counted}, fewer than a window of {window.length}{stride} has; the resting face, which is "
        "subtracted, cannot be told from so few: give a longer video, or the prompts of a subject (subject=, prompts=)"
    )


def why_still(session: Session, clips: Sequence[ClipFeatures]) -> str | None:
    """Why the common centre of clips leaves nothing to predict from, as a sentence: all frames are the same picture."""
    baseline = session.config.subject_baseline
    if baseline == "none":
        return None
    frames = torch.cat([clip.shown for clip in clips])
    away = (frames - subject_centre(frames, baseline)).norm(dim=-1) / frames.norm(dim=-1).clamp_min(_TINY)
    if away.quantile(_MOST) > _STILL:
        return None
    return (
        f"the picture does not move: its {len(frames)} frames are the same, and nothing is left where the resting face "
        "is subtracted; give a video, or the prompts of a subject (subject=, prompts=)"
    )
