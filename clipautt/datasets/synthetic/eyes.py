"""Eyes and brows: AU1, 2, 4, 5, 7, 43, gaze 61..64, and what AU6 does around the eye."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from clipautt.datasets.synthetic.canvas import Points, Sketch, curve, darker, ellipse, joined, mirrored, mixed
from clipautt.datasets.synthetic.identity import Colour, Identity

_WHITE: Colour = (240, 238, 234)
_GAZE_X, _GAZE_Y = 0.105, 0.062
_FRAME: Colour = (26, 26, 32)


@dataclass(frozen=True)
class _Lids:
    """One eye's opening."""

    upper: Points
    """Edge of the upper lid from inner to outer corner [11, 2]."""
    lower: Points
    """Edge of the lower lid from inner to outer corner [11, 2]."""
    rise: float
    """Height of the upper lid's middle above the corners."""
    fall: float
    """Depth of the lower lid's middle below the corners."""


def draw_eyes(sketch: Sketch, person: Identity, au: Mapping[str, float]) -> None:
    """Both eyes, the skin around them, the brows and glasses."""
    for side in (-1, 1):
        lids = _lids(person, au, side)
        _draw_socket(sketch, person, au, side, lids)
        _draw_eyeball(sketch, person, au, side, lids)
        _draw_lids(sketch, person, au, side, lids)
    for side in (-1, 1):
        _draw_brow(sketch, person, au, side)
    _draw_glabella(sketch, person, au)
    if person.look.glasses:
        _draw_glasses(sketch, person)


def _lids(person: Identity, au: Mapping[str, float], side: float) -> _Lids:
    shape, closed = person.geometry, au["AU43"]
    lift = au["AU63"] - 0.7 * au["AU64"]  # the upper lid follows the gaze
    rise = shape.eye_height + 0.075 * au["AU5"] - 0.025 * au["AU7"] - 0.012 * au["AU4"] + 0.028 * lift
    fall = shape.eye_height * 0.72 - 0.062 * au["AU7"] - 0.018 * au["AU6"] + 0.012 * au["AU5"] + 0.012 * au["AU64"]
    meeting = -shape.eye_height * 0.5
    rise += (meeting - rise) * closed
    fall = max(fall + (-meeting - fall) * closed, -rise + 0.002)
    inner = (shape.eye_x - shape.eye_half_width, shape.eye_y + 0.012)
    outer = (shape.eye_x + shape.eye_half_width, shape.eye_y - 0.008 + shape.eye_tilt)
    upper = curve(inner, outer, (shape.eye_x - 0.01, shape.eye_y - rise), 11)
    lower = curve(inner, outer, (shape.eye_x + 0.01, shape.eye_y + fall), 11)
    if au["AU7"] > 0:  # a tense lower lid is straight, so its flanks rise with its middle
        lower[:, 1] -= 0.012 * au["AU7"] * np.sin(np.pi * np.linspace(0, 1, 11))
        lower[:, 1] = np.maximum(lower[:, 1], upper[:, 1] + 0.001)
    return _Lids(mirrored(upper, side), mirrored(lower, side), rise, fall)


def _draw_socket(sketch: Sketch, person: Identity, au: Mapping[str, float], side: float, lids: _Lids) -> None:
    shape, age = person.geometry, person.look.age
    x, y, half = shape.eye_x, shape.eye_y, shape.eye_half_width
    sketch.bulge((side * x, y - 0.03), (half * 1.25, 0.2), -0.22 - 0.12 * au["AU4"])
    # AU7: the lower lid bulges, with a line close below it. AU6: a deep furrow further down, and crow's feet.
    tense = (
        (x - half * 0.85, y + lids.fall * 0.6 + 0.05),
        (x + half * 0.85, y + lids.fall * 0.6 + 0.045),
        (x, y + lids.fall + 0.055),
    )
    sketch.crease(tense, 0.8 * au["AU7"], 0.034, side=side)
    furrow_y = y + 0.24 - 0.05 * au["AU6"]
    furrow = ((x - 0.2, furrow_y - 0.06), (x + 0.25, furrow_y - 0.07), (x + 0.02, furrow_y + 0.045))
    sketch.crease(furrow, 0.14 * age + 0.8 * au["AU6"], 0.045, side=side)
    for end_y in (-0.1, 0.01, 0.12):
        foot = (
            (x + half + 0.035, y + 0.01 + 0.25 * end_y),
            (x + half + 0.19, y + end_y),
            (x + half + 0.11, y + 0.02 + 0.45 * end_y),
        )
        sketch.crease(foot, 0.06 * age + (0.8 + 0.2 * age) * au["AU6"], 0.04, side=side)


def _draw_eyeball(sketch: Sketch, person: Identity, au: Mapping[str, float], side: float, lids: _Lids) -> None:
    if lids.rise + lids.fall < 0.012:
        return
    sketch.fill(joined(lids.upper, lids.lower[::-1]), _WHITE)
    shape = person.geometry
    x = side * shape.eye_x + _GAZE_X * (au["AU61"] - au["AU62"])
    y = shape.eye_y - 0.012 + _GAZE_Y * (1.4 * au["AU64"] - au["AU63"])
    radius = shape.iris_radius
    sketch.fill(_inside(ellipse((x, y), (radius, radius), 20), lids), person.look.iris)
    sketch.fill(_inside(ellipse((x, y), (radius * 0.5, radius * 0.5), 12), lids), (12, 10, 10))
    sketch.fill(_inside(ellipse((x - 0.03, y - 0.032), (0.018, 0.018), 8), lids), (250, 250, 250))


def _inside(points: Points, lids: _Lids) -> Points:
    """The points, moved onto the edge of the opening where they lie outside it."""
    order = 1 if lids.upper[0, 0] < lids.upper[-1, 0] else -1
    across = lids.upper[::order, 0]
    x = np.clip(points[:, 0], across[0], across[-1])
    top = np.interp(x, across, lids.upper[::order, 1])
    bottom = np.interp(x, lids.lower[::order, 0], lids.lower[::order, 1])
    return np.stack([x, np.clip(points[:, 1], top, np.maximum(top, bottom))], axis=1)


def _draw_lids(sketch: Sketch, person: Identity, au: Mapping[str, float], side: float, lids: _Lids) -> None:
    shape, skin = person.geometry, person.look.skin
    fold_rise = shape.eye_height + 0.075 + 0.03 * au["AU5"] - 0.03 * au["AU4"] - 0.015 * au["AU43"]
    inner, outer = shape.eye_x - shape.eye_half_width, shape.eye_x + shape.eye_half_width
    arc = ((inner + 0.01, shape.eye_y - 0.05), (outer, shape.eye_y - 0.06), (shape.eye_x, shape.eye_y - fold_rise))
    fold = mirrored(curve(*arc, 11), side)
    sketch.fill(joined(fold, lids.upper[::-1]), darker(skin, 0.9))
    sketch.crease(arc, 0.5 - 0.2 * au["AU43"], 0.03, side=side)
    sketch.stroke(lids.upper, mixed(darker(skin, 0.25), (15, 12, 12), 0.4), 0.034 + 0.012 * au["AU43"])
    sketch.stroke(lids.lower, darker(skin, 0.66), 0.016)


def _draw_brow(sketch: Sketch, person: Identity, au: Mapping[str, float], side: float) -> None:
    shape = person.geometry
    inner_up = 0.15 * au["AU1"] - 0.135 * au["AU4"] - 0.035 * au["AU9"]
    outer_up = 0.16 * au["AU2"] - 0.045 * au["AU4"]
    middle_up = (
        shape.brow_arch + 0.055 * au["AU1"] + 0.125 * au["AU2"] - 0.1 * au["AU4"] - 0.015 * au["AU9"] + 0.01 * au["AU5"]
    )
    inner = (shape.brow_inner - 0.08 * au["AU4"], shape.brow_y + 0.02 - inner_up)
    middle = (shape.brow_inner + 0.45 * shape.brow_length - 0.02 * au["AU4"], shape.brow_y - middle_up)
    outer = (shape.brow_inner + shape.brow_length, shape.brow_y + 0.035 - outer_up)
    spine = curve(inner, outer, middle, 9)
    half = np.stack([np.zeros(9), shape.brow_thickness * np.linspace(1.0, 0.4, 9) / 2], axis=1)
    sketch.fill(mirrored(joined(spine - half, (spine + half)[::-1]), side), person.look.brow)


def _draw_glabella(sketch: Sketch, person: Identity, au: Mapping[str, float]) -> None:
    """The skin between the brows: two vertical furrows for AU4."""
    shape, age, strength = person.geometry, person.look.age, au["AU4"]
    for side in (-1, 1):
        bottom, top = (0.085, shape.brow_y + 0.19), (0.1, shape.brow_y - 0.14)
        furrow = (bottom, top, (0.062, shape.brow_y + 0.03))
        sketch.crease(furrow, 0.08 * age + (0.85 + 0.15 * age) * strength, 0.05, side=side)
        sketch.bulge((side * 0.2, shape.brow_y - 0.1), (0.11, 0.07), 0.35 * strength)
    sketch.bulge((0, shape.brow_y + 0.1), (0.1, 0.12), -0.4 * strength)


def _draw_glasses(sketch: Sketch, person: Identity) -> None:
    shape = person.geometry
    for side in (-1, 1):
        rim = ellipse((side * shape.eye_x, shape.eye_y + 0.03), (0.31, 0.24))
        sketch.stroke(np.concatenate([rim, rim[:1]]), _FRAME, 0.03)
    bridge = [(-shape.eye_x + 0.31, shape.eye_y), (0.0, shape.eye_y - 0.03), (shape.eye_x - 0.31, shape.eye_y)]
    sketch.stroke(np.array(bridge), _FRAME, 0.035)
