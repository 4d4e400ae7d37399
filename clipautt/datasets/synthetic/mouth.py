"""Mouth and chin: AU10, 12, 14, 15, 17, 18, 20, 23, 25 and 26."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from clipautt.datasets.synthetic.canvas import Points, Sketch, darker, ellipse, joined, mixed, straight
from clipautt.datasets.synthetic.head import JAW_DROP
from clipautt.datasets.synthetic.identity import Colour, Identity

_ACROSS = np.linspace(-1, 1, 15)
_TEETH: Colour = (236, 232, 222)
_INSIDE: Colour = (48, 14, 16)


@dataclass(frozen=True)
class _Lips:
    """Four lines from the viewer's left to the right lip corner, each [15, 2]."""

    top: Points
    """Upper edge of the upper lip."""
    upper: Points
    """Lower edge of the upper lip."""
    lower: Points
    """Upper edge of the lower lip."""
    bottom: Points
    """Lower edge of the lower lip."""
    half_width: float
    """Half the distance of the corners."""
    corner_y: float
    """Height of the corners."""


def draw_mouth(sketch: Sketch, person: Identity, au: Mapping[str, float]) -> None:
    """Chin, moustache, lips, teeth and the creases around them."""
    lips = _lips(person, au)
    _draw_chin(sketch, person, au, lips)
    if person.look.moustache:
        _draw_moustache(sketch, person, lips)
    _draw_opening(sketch, lips)
    _draw_lips(sketch, person, au, lips)
    for side in (-1, 1):
        _draw_corner(sketch, person, au, lips, side)
    _draw_pucker(sketch, au, lips)
    _draw_press(sketch, au, lips)


def _lips(person: Identity, au: Mapping[str, float]) -> _Lips:
    shape, jaw = person.geometry, JAW_DROP * au["AU26"]
    half = shape.mouth_half_width * (1 - 0.48 * au["AU18"] - 0.13 * au["AU23"] - 0.1 * au["AU26"] - 0.08 * au["AU14"])
    half += 0.1 * au["AU12"] + 0.2 * au["AU20"] + 0.01 * au["AU15"]
    thin = (1 - 0.76 * au["AU23"]) * (1 - 0.35 * au["AU20"]) * (1 - 0.12 * au["AU12"])
    fuller = 1 + 0.9 * au["AU18"]
    gap = 0.12 * au["AU25"] + 0.85 * jaw
    centre = shape.mouth_y - 0.055 * au["AU17"] + 0.03 * au["AU12"]
    corner = (
        shape.mouth_y
        + shape.mouth_curve
        - 0.13 * au["AU12"]
        + 0.13 * au["AU15"]
        + 0.02 * au["AU20"]
        + 0.02 * au["AU17"]
        + 0.4 * jaw
    )
    upper = centre - 0.085 * au["AU10"] - 0.15 * gap
    top = upper - shape.upper_lip * thin * fuller * (1 - 0.15 * au["AU10"])
    lower = max(centre + 0.85 * gap - 0.02 * au["AU10"], upper)
    bottom = lower + shape.lower_lip * thin * fuller * (1 + 0.12 * au["AU17"])
    # Depressed corners droop at their ends; a raised upper lip is square rather than round.
    power = 2 + 1.2 * au["AU15"] + 1.2 * au["AU10"] + 1.5 * au["AU18"]
    bow = 0.016 * np.cos(np.pi * np.clip(np.abs(_ACROSS) * 3.2, 0, 2)) * thin * (1 - au["AU20"] * 0.6)
    lines = [_line(half, middle, corner, power) for middle in (top, upper, lower, bottom)]
    lines[0][:, 1] += bow * (1 - _ACROSS**2)
    return _Lips(lines[0], lines[1], lines[2], lines[3], half, corner)


def _line(half: float, middle: float, corner: float, power: float) -> Points:
    return np.stack([half * _ACROSS, middle + (corner - middle) * np.abs(_ACROSS) ** power], axis=1)


def _draw_opening(sketch: Sketch, lips: _Lips) -> None:
    opening = float(lips.lower[7, 1] - lips.upper[7, 1])
    if opening < 0.006:
        return
    sketch.fill(joined(lips.upper, lips.lower[::-1]), _INSIDE)
    if opening > 0.02:
        teeth = lips.upper[2:-2].copy()
        height = min(0.075, 0.5 * opening) * (1 - (_ACROSS[2:-2] * 1.15) ** 2)
        sketch.fill(joined(teeth, (teeth + np.stack([np.zeros(11), height], axis=1))[::-1]), _TEETH)
    if opening > 0.16:
        sketch.fill(ellipse((0, float(lips.lower[7, 1]) - 0.03), (lips.half_width * 0.5, 0.05)), (158, 74, 76))


def _draw_lips(sketch: Sketch, person: Identity, au: Mapping[str, float], lips: _Lips) -> None:
    colour = mixed(person.look.lip, person.look.skin, 0.3 * au["AU23"])
    sketch.fill(joined(lips.top, lips.upper[::-1]), darker(colour, 0.9))
    sketch.fill(joined(lips.lower, lips.bottom[::-1]), colour)
    seam = darker(person.look.lip, 0.36)
    sketch.stroke(lips.upper, seam, 0.022 + 0.012 * au["AU23"])
    if lips.lower[7, 1] - lips.upper[7, 1] > 0.02:
        sketch.stroke(lips.lower, darker(colour, 0.7), 0.014)
    shine = 0.2 + 0.5 * au["AU18"] + 0.3 * au["AU17"] - 0.2 * au["AU23"]
    sketch.bulge((0, float(lips.lower[7, 1] + lips.bottom[7, 1]) / 2), (lips.half_width * 0.45, 0.04), shine)


def _draw_corner(sketch: Sketch, person: Identity, au: Mapping[str, float], lips: _Lips, side: float) -> None:
    x, y, age = lips.half_width, lips.corner_y, person.look.age
    # AU14: a deep comma at the corner with a bulge outside of it.
    dimple = ((x + 0.055, y - 0.13), (x + 0.05, y + 0.12), (x + 0.115, y - 0.005))
    sketch.crease(dimple, au["AU14"], 0.06, side=side)
    sketch.bulge((side * (x + 0.02), y), (0.06, 0.06), -0.45 * au["AU14"])
    sketch.bulge((side * (x + 0.2), y), (0.08, 0.12), 0.5 * au["AU14"])
    smile = ((x + 0.06, y - 0.07), (x + 0.04, y + 0.07), (x + 0.09, y))
    sketch.crease(smile, 0.4 * au["AU12"], 0.035, side=side)
    # AU15: a furrow from the corner down, with a pouch beside it.
    furrow = ((x + 0.03, y - 0.01), (x + 0.06, y + 0.25), (x + 0.085, y + 0.1))
    sketch.crease(furrow, 0.06 * age + 0.95 * au["AU15"], 0.055, side=side)
    sketch.bulge((side * (x - 0.06), y + 0.15), (0.09, 0.07), 0.35 * au["AU15"])
    # AU20: two upright lines beside the stretched corner.
    for number in range(2):
        offset = 0.06 + 0.075 * number
        line = ((x + offset - 0.01, y - 0.12), (x + offset - 0.01, y + 0.14), (x + offset + 0.03, y + 0.01))
        sketch.crease(line, (0.7 - 0.15 * number) * au["AU20"], 0.036, side=side)


def _draw_pucker(sketch: Sketch, au: Mapping[str, float], lips: _Lips) -> None:
    """AU18: creases that radiate from the narrowed mouth."""
    if au["AU18"] < 0.03:
        return
    x = lips.half_width
    top, bottom = float(lips.top[7, 1]), float(lips.bottom[7, 1])
    for share in (-0.9, -0.35, 0.35, 0.9):
        up = straight((share * x, top - 0.01), (share * x * 1.7, top - 0.12))
        down = straight((share * x, bottom + 0.01), (share * x * 1.6, bottom + 0.1))
        sketch.crease(up, 0.6 * au["AU18"], 0.034)
        sketch.crease(down, 0.5 * au["AU18"], 0.034)
    for side in (-1, 1):
        sketch.bulge((side * (x + 0.13), (top + bottom) / 2), (0.09, 0.12), -0.45 * au["AU18"])


def _draw_press(sketch: Sketch, au: Mapping[str, float], lips: _Lips) -> None:
    """AU23: lips rolled in, with fine lines along their edges and a crease below."""
    strength, x = au["AU23"], lips.half_width
    top, bottom = float(lips.top[7, 1]), float(lips.bottom[7, 1])
    sketch.crease(((-x * 0.8, bottom + 0.04), (x * 0.8, bottom + 0.04), (0.0, bottom + 0.065)), 0.75 * strength, 0.04)
    for share in (-0.5, 0.0, 0.5):
        above = straight((share * x, top - 0.015), (share * x * 1.1, top - 0.085))
        sketch.crease(above, 0.5 * strength, 0.03)
    sketch.bulge((0, bottom + 0.11), (x * 0.8, 0.035), 0.3 * strength)


def _draw_chin(sketch: Sketch, person: Identity, au: Mapping[str, float], lips: _Lips) -> None:
    """The hollow below the lip; AU17 pushes the chin up, arches the hollow and pebbles the skin."""
    strength, bottom = au["AU17"], float(lips.bottom[7, 1])
    height = person.geometry.half_height + JAW_DROP * au["AU26"]
    middle = bottom + 0.5 * (height - bottom)
    hollow = ((-0.2, bottom + 0.1), (0.2, bottom + 0.1), (0, bottom + 0.07 - 0.02 * strength))
    sketch.crease(hollow, 0.2 + 0.75 * strength, 0.05)
    sketch.bulge((0, middle + 0.04), (0.2, 0.12), 0.12 + 0.25 * strength)
    if strength > 0.03:
        for dx, dy in (
            (-0.15, 0.0),
            (-0.05, 0.01),
            (0.05, -0.01),
            (0.15, 0.01),
            (-0.1, 0.08),
            (0.0, 0.09),
            (0.1, 0.08),
        ):
            dimple = straight((dx - 0.03, middle + dy), (dx + 0.03, middle + dy + 0.01))
            sketch.crease(dimple, 0.7 * strength, 0.042)


def _draw_moustache(sketch: Sketch, person: Identity, lips: _Lips) -> None:
    x, top = lips.half_width, float(lips.top[7, 1])
    end = lips.corner_y + 0.035
    upper = [(-1.18 * x, end), (-0.98 * x, end - 0.09), (-0.5 * x, top - 0.085), (-0.12 * x, top - 0.1)]
    upper += [(-x, y) for x, y in upper[::-1]]
    sketch.fill(joined(np.array(upper), lips.top[::-1]), mixed(person.look.skin, person.look.hair, 0.78))
