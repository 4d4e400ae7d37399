"""Which clips of a subject cannot be predicted, and why: no window that shows the face, or fewer frames than a window.

In: one subject's clips with features. Out: a sentence for each clip that takes no part in adaptation or prediction.
"""

from __future__ import annotations

from collections.abc import Sequence

from clipautt.adaptation.method import Session
from clipautt.features.clip_features import ClipFeatures, subject_centre

_STILL = 0.01
"""A frame's distance from the centre, as a share of its length: 0.003 in a still picture that was encoded as a video,
0.2 and more in videos of faces."""
_TINY = 1e-12


def omitted_clips(
    session: Session, clips: Sequence[ClipFeatures], *, earlier: Sequence[ClipFeatures] = ()
) -> dict[str, str]:
    """Clip id → why the clip cannot be predicted, for those of one subject that cannot.

    A clip needs a window that counts. With a subject baseline, the frames behind the centre must make up a window:
    those of the clip itself under `per_video`, of all clips so far under `online`, of all clips under `per_subject`.

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
        if why is None and protocol == "per_video":
            why = why_still(session, clip)
        if why is None:
            shown += frames
        else:
            omitted[clip.clip_id] = why
    if protocol == "per_subject" and shown and (why := why_too_short(session, shown)):
        omitted |= {clip.clip_id: omitted.get(clip.clip_id, why) for clip in clips}
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


def why_still(session: Session, clip: ClipFeatures) -> str | None:
    """Why the clip's own centre leaves nothing to predict from, as a sentence: all its frames are the same picture."""
    baseline = session.config.subject_baseline
    if baseline == "none":
        return None
    away = (clip.shown - subject_centre(clip.shown, baseline)).norm(dim=-1) / clip.shown.norm(dim=-1).clamp_min(_TINY)
    if away.median() > _STILL:
        return None
    return (
        f"the picture does not move: its {len(away)} frames are the same, and nothing is left where the resting face "
        "is subtracted; give a video, or the prompts of a subject (subject=, prompts=)"
    )
