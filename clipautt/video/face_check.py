"""Checks that a face fills the picture, where no detector crops to it.

In: frames of a clip as the image tower takes them. Out: a sentence if a face does not fill them.

The rule was chosen by measurement, with the built-in cascade. In 500 frames of 100 demo videos it finds the face every
time, with a box of at least 0.6 of the picture's side (median 0.81). In films cropped to the face with a margin of 0.2
on each side the box has 0.56 to 0.73; with a margin of half the face 0.43 to 0.54; with one as wide as the face 0.3 to
0.34.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from clipautt.video.faces import FaceConfig, make_detector
from clipautt.video.preprocessing import Frames

MIN_SIDE = 0.5
"""A face fills the picture if the side of its box is at least this share of the picture's side."""
_LOOKED_AT = 5
"""Frames of a clip; the check takes less than 20 ms for each."""
_BORDER = 0.3
"""Added around the picture, as a share of its side: the cascades overlook faces that touch the edge."""
_PIXELS = 160
"""Side to which the widened picture is resized."""
_DETECTOR = FaceConfig(detector="cascade", detect_pixels=_PIXELS, min_face=0.1)


@dataclass
class FrameSample:
    """A few frames spread evenly over a stream whose length is not known beforehand."""

    _kept: list[Frames] = field(default_factory=list, init=False)
    _step: int = field(default=1, init=False)
    _seen: int = field(default=0, init=False)

    def add(self, frames: Frames) -> None:
        """Take what is needed of the next frames, uint8 [n, size, size, 3]."""
        for frame in frames:
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


def face_sides(frames: list[Frames]) -> list[float]:
    """Side of the most certain face in each frame as a share of the picture's side; 0 where no face is found.

    Raises:
        ValueError: if OpenCV comes without cascades.
    """
    detect = make_detector(_DETECTOR)
    sides = []
    for frame in frames:
        border = round(_BORDER * frame.shape[0])
        widened = cv2.copyMakeBorder(frame, border, border, border, border, cv2.BORDER_REPLICATE)
        scale = _PIXELS / widened.shape[0]
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        faces = detect(np.asarray(cv2.resize(widened, (_PIXELS, _PIXELS), interpolation=how), np.uint8))
        shares = [face.side / scale / frame.shape[0] for face in faces]
        sides.append(next((share for share in shares if share <= 1), 0.0))  # no face is larger than its picture
    return sides


def face_warning(frames: list[Frames]) -> str | None:
    """A sentence if a face does not fill the picture in at least half of these frames; None if it does.

    Args:
        frames: RGB, uint8 [size, size, 3] each.
    """
    if not frames:
        return None
    try:
        sides = face_sides(frames)
    except ValueError as error:
        return f"Whether a face fills the picture was not checked: {error}."
    if 2 * sum(side >= MIN_SIDE for side in sides) >= len(sides):
        return None
    return (
        f"Faces are not cropped here (faces=none), so a face must fill the picture, but {_words(sides)}: crop the "
        "video to the face, or train a checkpoint with faces=cascade."
    )


def _words(sides: list[float]) -> str:
    """What was found: `of 5 frames looked at, 3 show no face, and in the others …`."""
    found = [side for side in sides if side]
    looked_at = f"{len(sides)} frame{'' if len(sides) == 1 else 's'} looked at"
    if not found:
        return f"no face was found in {looked_at}"
    share = f"{100 * float(np.median(found)):.0f} % of the picture's side ({100 * MIN_SIDE:.0f} % or more is expected)"
    if len(found) == len(sides):
        return f"in {looked_at} it takes {share}"
    return f"of {looked_at}, {len(sides) - len(found)} show no face, and in the rest it takes {share}"
