"""Draws a synthetic person with given action-unit intensities.

`render` is a pure function of its arguments (plus `rng` for the sensor noise). It draws one frame; intensities include
the resting face.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipautt.action_units import RENDERED
from clipautt.datasets.synthetic.canvas import Sketch, View, paint
from clipautt.datasets.synthetic.eyes import draw_eyes
from clipautt.datasets.synthetic.head import draw_head
from clipautt.datasets.synthetic.identity import Identity
from clipautt.datasets.synthetic.midface import draw_midface
from clipautt.datasets.synthetic.mouth import draw_mouth

_TURN, _NOD, _TILT = 0.62, 0.5, 0.42  # radians at intensity 1
_MAX_ANGLE = 0.85

MIN_SIZE = 32
"""Smallest frame height and width, pixels."""


def render(
    identity: Identity,
    intensities: ArrayLike,
    *,
    pose: tuple[float, float, float] | NDArray[np.float64] = (0.0, 0.0, 0.0),
    translation: tuple[float, float] | NDArray[np.float64] = (0.0, 0.0),
    size: int = 96,
    rng: np.random.Generator | None = None,
) -> NDArray[np.uint8]:
    """One frame.

    Left and right are the subject's, as in FACS: a head or gaze that turns left moves to the viewer's right.

    Args:
        identity: who is drawn.
        intensities: total intensity of every unit [28] in `RENDERED` order, 0..1, gain and resting face included.
        pose: head rotation (yaw, pitch, roll) in radians on top of AU51..56 and of the resting pose; positive is the
            subject's left, up, and towards the left shoulder.
        translation: movement of the head in face units, to the viewer's right and down.
        size: height and width in pixels.
        rng: source of the sensor noise; without it the frame is free of noise.

    Returns:
        uint8 [size, size, 3], RGB.

    Raises:
        ValueError: when `intensities` has another shape or leaves 0..1, or `size` is below 32.
    """
    values = np.asarray(intensities, np.float64)
    if values.shape != (len(RENDERED),):
        raise ValueError(f"intensities has shape {values.shape}; ({len(RENDERED)},) is needed, in RENDERED order")
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"intensities span {values.min():.3g}..{values.max():.3g}; 0..1 is allowed")
    if size < MIN_SIZE:
        raise ValueError(f"size={size} is too small; {MIN_SIZE} or more is allowed")
    au = dict(zip(RENDERED, values.tolist(), strict=True))
    sketch = Sketch()
    draw_head(sketch, identity, au)
    draw_midface(sketch, identity, au)
    draw_eyes(sketch, identity, au)
    draw_mouth(sketch, identity, au)
    return paint(sketch, _view(identity, au, pose, translation), identity.scene, size, rng)


def _view(
    identity: Identity,
    au: dict[str, float],
    pose: tuple[float, float, float] | NDArray[np.float64],
    translation: tuple[float, float] | NDArray[np.float64],
) -> View:
    scene = identity.scene
    yaw = scene.pose[0] + float(pose[0]) + _TURN * (au["AU51"] - au["AU52"])
    pitch = scene.pose[1] + float(pose[1]) + _NOD * (au["AU53"] - au["AU54"])
    roll = scene.pose[2] + float(pose[2]) + _TILT * (au["AU55"] - au["AU56"])
    yaw, pitch, roll = (float(np.clip(angle, -_MAX_ANGLE, _MAX_ANGLE)) for angle in (yaw, pitch, roll))
    # The head pivots on the neck, so it moves a little where it turns.
    offset_x = scene.offset[0] + float(translation[0]) + 0.1 * np.sin(yaw)
    offset_y = scene.offset[1] + float(translation[1]) - 0.1 * np.sin(pitch)
    return View(yaw, pitch, roll, (offset_x, offset_y), scene.scale)
