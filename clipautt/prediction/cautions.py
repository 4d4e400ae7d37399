"""What speaks against the numbers of a clip: a code for tables, and a sentence for people.

In: the features of a clip and the model. Out: code → sentence, in a fixed order; empty where nothing speaks against it.

The limits were measured, see `make bench-validity`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from clipautt.adaptation.basis import Basis
from clipautt.adaptation.source import Source
from clipautt.features.clip_features import ClipFeatures
from clipautt.footage import is_rendered, other_footage
from clipautt.video.face_check import face_warning
from clipautt.video.faces import FEW_FACES, few_faces

Code = Literal[
    "unseen_footage",
    "few_faces",
    "small_face",
    "other_faces",
    "decoding",
    "too_short",
    "too_dark",
    "few_personal_frames",
]
CODES: dict[Code, str] = {
    "unseen_footage": "Backbone or checkpoint were trained on another kind of faces, rendered or real, only",
    "few_faces": f"The face is found in fewer than {100 * FEW_FACES:.0f} % of the frames",
    "small_face": "Without a face detector, and no face fills the picture",
    "other_faces": "Other faces were followed and left out, and nothing says whose face is meant",
    "decoding": "The video could not be shown as it should be",
    "too_short": "The clip is hardly longer than one window, so that there is no resting face to compare with",
    "too_dark": "What the model sees is darker than footage on which it is reliable",
    "few_personal_frames": "The personalization that is used rests on few frames",
}
"""Code of a warning → what it means."""
MIN_WINDOWS = 2.0
"""Windows, laid end to end, that a clip without a personalization should have at least."""
MIN_BRIGHTNESS = 0.15
"""Mean luma below which footage is too dark."""


def cautions(
    source: Source,
    clip: ClipFeatures,
    *,
    video: str = "",
    face: str | None = None,
    centred: bool = False,
    basis: Basis | None = None,
) -> dict[Code, str]:
    """What speaks against the numbers of a clip.

    Args:
        source: the model.
        clip: features of the clip.
        video: its file, which tells whether its faces are rendered; empty if it is not at hand.
        face: whose face was asked for; None if nobody was named.
        centred: whether the resting face comes from elsewhere than from this clip.
        basis: what the personalization rests on that is used; None without one, or if that is not known.
    """
    found = dict(_cautions(source, clip, video, face, centred))
    few = basis and basis.too_few
    return found | {"few_personal_frames": few} if few else found


def _cautions(
    source: Source, clip: ClipFeatures, video: str, face: str | None, centred: bool
) -> Iterator[tuple[Code, str]]:
    unseen = other_footage(source.footage, [is_rendered(video)] if video else [])
    if unseen:
        yield "unseen_footage", unseen
    few = few_faces(clip.face_share, source.checkpoint.spec.features.frames.faces)
    if few:
        yield "few_faces", f"{few[0].upper()}{few[1:]}, when extracting and training."
    small = face_warning(clip.face_sides)
    if small:
        yield "small_face", small
    if clip.other_faces and face is None:
        were = "1 other face was" if clip.other_faces == 1 else f"{clip.other_faces} other faces were"
        yield (
            "other_faces",
            (f"{were} left out; `clipautt predict` follows another one with face=left, right, center or a number."),
        )
    if clip.notes:
        yield "decoding", "; ".join(clip.notes)
    yield from _too_little(source, clip, centred)


def _too_little(source: Source, clip: ClipFeatures, centred: bool) -> Iterator[tuple[Code, str]]:
    frames = len(clip.times[:: source.window.stride])
    least = round(MIN_WINDOWS * source.window.length)
    if source.checkpoint.spec.subject_baseline != "none" and not centred and frames < least:
        short = (
            f"The clip has {frames} frames, and its resting face is estimated from them; {least} or more are needed to "
            "tell it from the expression: use other clips of the person as well (`clipautt personalize`)."
        )
        yield "too_short", short
    light = brightness_of(clip)
    if light < MIN_BRIGHTNESS:
        dark = (
            f"The picture is dark: its brightness is {light:.2f} on a scale from 0 to 1, and below "
            f"{MIN_BRIGHTNESS:g} answers are unreliable; use brighter footage."
        )
        yield "too_dark", dark


def brightness_of(clip: ClipFeatures) -> float:
    """Mean luma of what the model sees of a clip, 0..1; nan where it was not recorded."""
    known = clip.brightness
    return float(np.nanmean(known)) if known is not None and np.isfinite(known).any() else float("nan")
