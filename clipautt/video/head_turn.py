"""How far a head is turned to a side, judging by the places of eyes, nose and mouth in the picture.

In: five landmarks. Out: degrees.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

MOST_TURNED = 30.0
"""Degrees by which a head may be turned to a side before a frame counts as turned away; chosen,
not measured by `make bench-validity`."""
_HEAD = np.array([[-32.6, 0, 0], [32.6, 0, 0], [0, 29, 34], [-24.5, 72, 0], [24.5, 72, 0]])
"""Right and left eye, tip of the nose, right and left corner of the mouth as (right, down, to the front): millimetres
of a face as OpenFace fitted it."""
_FITTING = np.linalg.pinv(_HEAD - _HEAD.mean(axis=0)).T
"""Takes landmarks, less their mean, [2, 5], to the matrix of least squares, [2, 3]."""


def head_turn(landmarks: npt.NDArray[np.floating]) -> float:
    """By how many degrees a head is turned to either side, 0 to 90: how far the line through its eyes points at the
    camera.

    The head is taken for the rigid `_HEAD`, seen from afar: the 2 × 3 matrix that takes its points to the landmarks
    best is brought to the nearest scaled rotation. Tilting and nodding hardly change the answer; faces of other
    proportions do, by some degrees, and landmarks that were guessed, as those of a covered face, look like any turn.

    Args:
        landmarks: right and left eye, tip of the nose, right and left corner of the mouth as (x, y), [5, 2].

    Returns:
        nan for landmarks that are not finite.

    Source: pose by weak perspective, as in Gee and Cipolla, *Determining the gaze of faces in images* (1994),
    https://doi.org/10.1016/0262-8856(94)90039-6; the nearest rotation by singular values.
    """
    if not np.isfinite(landmarks).all():
        return math.nan
    centred = np.asarray(landmarks, np.float64) - np.mean(landmarks, axis=0)
    left, _, right = np.linalg.svd(centred.T @ _FITTING, full_matrices=False)
    across, down = left @ right
    return math.degrees(math.asin(min(1.0, abs(float(np.cross(across, down)[0])))))
