"""Nose, cheeks and the folds between nose and mouth: AU9, and what AU6, 10 and 12 do to the middle of the face."""

from __future__ import annotations

from collections.abc import Mapping

from clipautt.datasets.synthetic.canvas import Sketch, curve, darker, ellipse, mirrored
from clipautt.datasets.synthetic.identity import Identity


def draw_midface(sketch: Sketch, person: Identity, au: Mapping[str, float]) -> None:
    """Cheeks, folds and nose."""
    for side in (-1, 1):
        _draw_cheek(sketch, person, au, side)
        _draw_fold(sketch, person, au, side)
    _draw_nose_wrinkles(sketch, person, au)
    _draw_nose(sketch, person, au)


def _draw_cheek(sketch: Sketch, person: Identity, au: Mapping[str, float], side: float) -> None:
    raised = au["AU6"]
    height = person.geometry.eye_y + 0.46 - 0.1 * raised - 0.02 * au["AU12"]
    sketch.bulge((side * 0.52, height), (0.22, 0.15), 0.18 + 0.55 * raised + 0.25 * au["AU12"])
    sketch.bulge((side * 0.56, height + 0.26), (0.2, 0.09), -0.1 - 0.3 * raised - 0.15 * au["AU12"])


def _draw_fold(sketch: Sketch, person: Identity, au: Mapping[str, float], side: float) -> None:
    """The nasolabial fold: curved outwards by a smile, steep and angled by a raised upper lip or a wrinkled nose."""
    shape = person.geometry
    depth = 0.14 + 0.2 * person.look.age + 0.65 * au["AU10"] + 0.35 * au["AU9"] + 0.5 * au["AU12"] + 0.1 * au["AU6"]
    start = (shape.nose_half_width + 0.04, shape.nose_y - 0.06 - 0.07 * au["AU9"] - 0.05 * au["AU10"])
    end = (
        shape.mouth_half_width + 0.1 + 0.04 * au["AU10"] + 0.12 * au["AU12"] + 0.05 * au["AU20"],
        shape.mouth_y - 0.04 - 0.06 * au["AU12"],
    )
    bend = (
        (start[0] + end[0]) / 2 + 0.03 + 0.06 * au["AU10"] + 0.05 * au["AU12"],
        (start[1] + end[1]) / 2 - 0.03 - 0.06 * au["AU10"],
    )
    sketch.crease((start, end, bend), depth, 0.046, side=side)


def _draw_nose_wrinkles(sketch: Sketch, person: Identity, au: Mapping[str, float]) -> None:
    """AU9: lines across the bridge and down its sides."""
    strength, root = au["AU9"], person.geometry.eye_y
    if strength < 0.03:
        return
    for row in range(3):
        y = root - 0.05 + 0.085 * row
        across = ((-0.13, y + 0.03), (0.13, y + 0.03), (0, y - 0.015))
        sketch.crease(across, (0.95 - 0.1 * row) * strength, 0.04)
    for side in (-1, 1):
        for row in range(2):
            y = root + 0.1 + 0.1 * row
            flank = ((0.1, y + 0.04), (0.27, y + 0.1), (0.19, y + 0.035))
            sketch.crease(flank, 0.85 * strength, 0.04, side=side)
    sketch.bulge((0, root + 0.02), (0.15, 0.14), -0.35 * strength)


def _draw_nose(sketch: Sketch, person: Identity, au: Mapping[str, float]) -> None:
    shape, skin = person.geometry, person.look.skin
    base = shape.nose_y - 0.1 * au["AU9"] - 0.025 * au["AU10"]
    half = shape.nose_half_width * (1 + 0.2 * au["AU9"] + 0.05 * au["AU12"])
    sketch.bulge((0, (shape.eye_y + base) / 2 - 0.03), (0.06, (base - shape.eye_y) / 2), 0.3)
    sketch.bulge((0, base - 0.05), (0.085, 0.08), 0.35)
    sketch.bulge((0, base + 0.1), (half, 0.05), -0.25)
    for side in (-1, 1):
        bridge = ((0.085, shape.eye_y - 0.02), (half * 0.85, base - 0.06), (0.085, (shape.eye_y + base) / 2 + 0.05))
        sketch.crease(bridge, 0.3, 0.035, side=side)
        wing = curve((half * 0.93, base - 0.09), (half * 0.55, base + 0.035), (half * 1.12, base - 0.005), 7)
        sketch.stroke(mirrored(wing, side), darker(skin, 0.66), 0.024)
        nostril = ellipse((side * half * 0.48, base + 0.018), (0.045, 0.024 + 0.006 * au["AU9"]), 12)
        sketch.fill(nostril, darker(skin, 0.32))
