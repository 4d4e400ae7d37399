"""The photograph that ships with scikit-image, moved, scaled and turned: a face whose place is known."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt
from skimage import data

from clipautt.video.preprocessing import Frames

PHOTO_FACE, PHOTO_EYES = (224.0, 115.0), ((200.0, 97.0), (245.0, 100.0))
"""Middle of the face and the subject's right and left eye in `skimage.data.astronaut()`, read off by eye."""


def photograph(
    x: float = 240, y: float = 180, scale: float = 1.0, turned: float = 0.0, *, size: tuple[int, int] = (360, 480)
) -> Frames:
    """A frame with the middle of the face at (x, y), turned clockwise by radians; RGB, uint8 [*size, 3]."""
    matrix = photo_to_frame(x, y, scale, turned)
    frame = cv2.warpAffine(data.astronaut(), matrix, size[::-1], borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(frame, np.uint8)


def photo_to_frame(x: float, y: float, scale: float, turned: float) -> npt.NDArray[np.float64]:
    """The matrix [2, 3] that takes points of the photograph to points of the frame."""
    matrix = np.asarray(cv2.getRotationMatrix2D(PHOTO_FACE, -math.degrees(turned), scale), np.float64)
    matrix[:, 2] += np.array([x, y]) - PHOTO_FACE
    return matrix
