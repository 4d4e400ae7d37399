"""Checks that a face fills the picture, where no detector crops to it.

In: frames of a clip as the image tower takes them. Out: how large the face is in a few of them, and a sentence if it
does not fill them. Rendered clips are not checked: their faces fill the picture by construction.

The rule was chosen by measurement, with the built-in cascade. In 500 frames of 100 demo videos it finds the face every
time, with a box of at least 0.6 of the picture's side (median 0.81). In films cropped to the face with a margin of 0.2
on each side the box has 0.56 to 0.73; with a margin of half the face 0.43 to 0.54; with one as wide as the face 0.3 to
0.34.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from clipautt.clips import Clip
from clipautt.footage import is_rendered_clip
from clipautt.video.faces import CascadeDetector, FaceConfig
from clipautt.video.preprocessing import Frames

MIN_SIDE = 0.55
"""A face fills the picture if the side of its box is at least this share of the picture's side.

In `make bench-validity` (part `picture`) UAR falls by 3 points where rendered faces have 0.6, by 12 at 0.5.
"""
_LOOKED_AT = 5
"""Frames of a clip; the check takes about 5 ms for each."""
_BORDER = 0.3
"""Added around the picture, as a share of its side: the cascades overlook faces that touch the edge."""
_PIXELS = 160
"""Side to which the widened picture is resized."""
_NOT_CROPPED = "Faces are not cropped here (faces=none), so a face must fill the picture"
_CROP = "crop the video to the face, or train a checkpoint with faces=cascade"
_LOCAL = threading.local()
_DETECTOR = FaceConfig(detector="cascade", detect_pixels=_PIXELS, min_face=0.1)


@dataclass
class FrameSample:
    """A few frames spread evenly over a stream whose length is not known beforehand."""

    wanted: bool = True
    """Whether any are taken."""
    _kept: list[Frames] = field(default_factory=list, init=False)
    _step: int = field(default=1, init=False)
    _seen: int = field(default=0, init=False)

    def add(self, frames: Frames) -> None:
        """Take what is needed of the next frames, uint8 [n, size, size, 3]."""
        for frame in frames if self.wanted else ():
            if self._seen % self._step == 0:
                self._kept.append(frame.copy())
            self._seen += 1
            if len(self._kept) > 4 * _LOOKED_AT:
                self._kept, self._step = self._kept[::2], 2 * self._step

    @property
    def frames(self) -> list[Frames]:
        """At most five frames, from the first to about the last."""
        if not self._kept:
            return []
        return [self._kept[i] for i in np.unique(np.linspace(0, len(self._kept) - 1, _LOOKED_AT).round().astype(int))]

    def sides(self) -> tuple[float, ...]:
        """`face_sides` of the frames; a nan if OpenCV comes without cascades."""
        try:
            return tuple(face_sides(self.frames))
        except ValueError:
            return (math.nan,)


def sample_of(clip: Clip, faces: FaceConfig) -> FrameSample:
    """An empty sample for a clip; it takes frames only where a face must fill them and the clip is not rendered."""
    return FrameSample(wanted=faces.detector == "none" and not is_rendered_clip(clip))


def face_sides(frames: list[Frames]) -> list[float]:
    """Side of the most certain face in each frame as a share of the picture's side; 0 where no face is found.

    Raises:
        ValueError: if OpenCV comes without cascades.
    """
    detect = _detector()
    sides: list[float] = []
    for frame in frames:
        border = round(_BORDER * frame.shape[0])
        widened = cv2.copyMakeBorder(frame, border, border, border, border, cv2.BORDER_REPLICATE)
        scale = _PIXELS / widened.shape[0]
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        faces = detect(np.asarray(cv2.resize(widened, (_PIXELS, _PIXELS), interpolation=how), np.uint8))
        shares = [face.side / scale / frame.shape[0] for face in faces]
        sides.append(next((share for share in shares if share <= 1), 0.0))  # no face is larger than its picture
    return sides


def _detector() -> CascadeDetector:
    """This thread's detector: to make one takes as long as five frames."""
    if not hasattr(_LOCAL, "detector"):
        _LOCAL.detector = CascadeDetector(_DETECTOR, eyes=False)
    detector: CascadeDetector = _LOCAL.detector
    return detector


def fills(sides: Sequence[float]) -> bool:
    """Whether a face fills the picture in at least half of the frames looked at; True if there are none."""
    return 2 * sum(side >= MIN_SIDE for side in sides) >= len(sides)


def face_warning(sides: Sequence[float]) -> str | None:
    """A sentence if a face does not fill the picture in at least half of the frames looked at; None if it does.

    Args:
        sides: as `face_sides` gives them; empty if no frame was looked at.
    """
    if any(map(math.isnan, sides)):
        return "Whether a face fills the picture was not checked: OpenCV comes without its cascades on this machine."
    return None if fills(sides) else f"{_NOT_CROPPED}, but {_words(sides)}: {_CROP}."


def faces_warning(sides: Mapping[str, Sequence[float]]) -> str | None:
    """A sentence if in some clips no face fills the picture; None otherwise.

    Args:
        sides: clip id → as for `face_warning`.
    """
    small = [clip for clip, of_clip in sides.items() if not fills(of_clip)]
    if len(sides) < 2 or not small:
        return face_warning(next(iter(sides.values()), ()))
    example = f"{small[0]}: {_words(sides[small[0]])}"
    return f"{_NOT_CROPPED}, but in {len(small)} of {len(sides)} clips looked at it does not ({example}): {_CROP}."


def _words(sides: Sequence[float]) -> str:
    """What was found: `of 5 frames looked at, 3 show no face, and in the others …`."""
    found = [side for side in sides if side]
    looked_at = f"{len(sides)} frame{'' if len(sides) == 1 else 's'} looked at"
    if not found:
        return f"no face was found in {looked_at}"
    share = f"{100 * float(np.median(found)):.0f} % of the picture's side ({100 * MIN_SIDE:.0f} % or more is expected)"
    if len(found) == len(sides):
        return f"in {looked_at} it takes {share}"
    return f"of {looked_at}, {len(sides) - len(found)} show no face, and in the rest it takes {share}"
