"""What an extraction says about faces: how often the subject's face was found, and whose were left out.

In: an `ExtractSummary`. Out: printed lines.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from clipautt.features.clip_features import share_of
from clipautt.model.windows import WindowSpec, why_no_window
from clipautt.video.face_check import faces_warning
from clipautt.video.faces import FEW_FACES, hints
from ray_jobs.platform.extraction.extract import ExtractSummary
from ray_jobs.platform.footage import warn
from ray_jobs.platform.progress import table

_SHOWN_CLIPS = 20


def report_faces(summary: ExtractSummary) -> None:
    """Print the share of the frames with a face, the clips in which it is low or in which there are others, and without
    a detector whether faces fill the pictures."""
    for line in face_lines(summary):
        print(line)
    warn(faces_warning(summary.face_sides))
    low = sorted((share, clip_id) for clip_id, share in shares_of(summary).items() if share < FEW_FACES)
    if low:
        rows = [(clip_id, f"{100 * share:.0f} %") for share, clip_id in low[:_SHOWN_CLIPS]]
        table(rows, ["clip", "frames with a face"])
        _and_more(len(low))


def face_lines(summary: ExtractSummary) -> Iterator[str]:
    """One sentence each: the share of the frames with a face, clips with a low share, clips with other faces."""
    none = sum(failure.status == "no_face" for failure in summary.failures)
    shares = list(shares_of(summary).values())
    if not shares:
        if none:
            yield hints(summary.face_settings)
        return
    yield f"face found in {100 * face_share(summary):.1f} % of the frames of {len(shares)} clips"
    low = sum(share < FEW_FACES for share in shares)
    where = [f"{_clips(none)} no face"] * bool(none)
    where += [f"{_clips(low)} the face in fewer than {100 * FEW_FACES:.0f} % of the frames"] * bool(low)
    if where:
        yield f"{', '.join(where)}; {hints(summary.face_settings)}"
    crowded = sum(seen.other_faces > 0 for clip_id, seen in summary.faces.items() if clip_id not in summary.named)
    if crowded:
        yield (
            f"{_clips(crowded)} other faces beside the one that is followed; faces.which, or a column `face` of the "
            "manifest, says whose it is: largest, left, right, center or a number"
        )


def _clips(count: int) -> str:
    return "1 clip shows" if count == 1 else f"{count} clips show"


def shares_of(summary: ExtractSummary) -> dict[str, float]:
    """Clip id → share of its frames with the face, 0..1."""
    return {clip_id: share_of(seen.face_found) for clip_id, seen in summary.faces.items()}


def face_share(summary: ExtractSummary) -> float:
    """Share of all frames of all clips in which the face was found, 0..1; nan without a detector."""
    found = [seen.face_found for seen in summary.faces.values() if seen.face_found is not None]
    return float(np.concatenate(found).mean()) if found else float("nan")


def left_out(summary: ExtractSummary, window: WindowSpec) -> dict[str, str]:
    """Clip id → why no window of the clip counts."""
    reasons = {
        clip_id: why_no_window(seen.face_found, window, summary.face_settings.window_share)
        for clip_id, seen in summary.faces.items()
    }
    return {clip_id: why for clip_id, why in reasons.items() if why is not None}


def report_left_out(summary: ExtractSummary, window: WindowSpec) -> None:
    """Print the clips of which no window counts, and why."""
    reasons = left_out(summary, window)
    if reasons:
        table(list(reasons.items())[:_SHOWN_CLIPS], ["left out", "reason"])
        _and_more(len(reasons))


def _and_more(count: int) -> None:
    if count > _SHOWN_CLIPS:
        print(f"… and {count - _SHOWN_CLIPS} more")
