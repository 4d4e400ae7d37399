"""The head: clothes, neck, hair, ears, outline of the face, beard and the forehead's wrinkles."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from clipautt.datasets.synthetic.canvas import BODY, OUTLINE, Points, Sketch, curve, darker, ellipse, joined, mixed
from clipautt.datasets.synthetic.identity import Geometry, Identity

JAW_DROP = 0.27
"""How far AU26 at intensity 1 lowers the chin, in face units."""


def draw_head(sketch: Sketch, person: Identity, au: Mapping[str, float]) -> None:
    """Everything behind the features, back to front."""
    outline = face_outline(person.geometry, au)
    _draw_body(sketch, person)
    _draw_back_hair(sketch, person)
    for side in (-1, 1):
        ear = ellipse((side * person.geometry.half_width * 1.0, 0.02), (0.1, 0.2))
        sketch.fill(ear, darker(person.look.skin, 0.85), front=OUTLINE)
    sketch.fill(outline, person.look.skin, front=OUTLINE)
    sketch.rim = outline * 0.95
    if person.look.beard:
        _draw_beard(sketch, person, outline)
    _draw_front_hair(sketch, person, outline)
    _draw_forehead(sketch, person, au)


def face_outline(shape: Geometry, au: Mapping[str, float]) -> Points:
    """The silhouette of the face; jaw drop lengthens it, chin raiser shortens it."""
    width, height = shape.half_width, shape.half_height
    drop = JAW_DROP * au["AU26"] - 0.045 * au["AU17"]
    right = [
        (0.0, -height * 0.94), (width * 0.56, -height * 0.83), (width * 0.93, -0.52), (width, -0.05),
        (width * 0.96, 0.36), (width * shape.jaw * 1.1, 0.82 + drop * 0.6),
        (shape.chin, height - 0.05 + drop), (0.0, height + drop),
    ]  # fmt: skip
    points = np.array(right + [(-x, y) for x, y in right[::-1][1:-1]])
    for _ in range(2):  # Chaikin's corner cutting
        following = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * following, 0.25 * points + 0.75 * following], axis=1).reshape(-1, 2)
    return points


def _draw_body(sketch: Sketch, person: Identity) -> None:
    shoulders = [(-2.2, 2.6), (-1.6, 1.72), (-0.5, 1.42), (0.5, 1.42), (1.6, 1.72), (2.2, 2.6)]
    sketch.fill(np.array(shoulders), person.look.shirt, front=BODY)
    neck = [(-0.5, 0.7), (0.5, 0.7), (0.52, 1.5), (0.0, 1.72), (-0.52, 1.5)]
    sketch.fill(np.array(neck), darker(person.look.skin, 0.74), front=np.array([OUTLINE, OUTLINE, BODY, BODY, BODY]))


def _draw_back_hair(sketch: Sketch, person: Identity) -> None:
    width, hair = person.geometry.half_width, darker(person.look.hair, 0.85)
    style = person.look.hair_style
    if style == 2:
        sketch.fill(ellipse((0, -0.1), (width * 1.22, 1.62)), hair, front=OUTLINE)
    elif style == 1:
        sketch.fill(ellipse((0, -0.25), (width * 1.18, 1.22)), hair, front=OUTLINE)
    elif style in (0, 3):
        sketch.fill(ellipse((0, -0.5), (width * 1.07, 0.92)), hair, front=OUTLINE)


def _draw_front_hair(sketch: Sketch, person: Identity, outline: Points) -> None:
    style, width, height = person.look.hair_style, person.geometry.half_width, person.geometry.half_height
    if style == 4:
        return
    line = -height * person.geometry.hairline - (0.12 if style == 3 else 0.0)
    side = -0.3 if style in (1, 2) else -0.42
    part = (-0.35, 0.0, 0.35, -0.15, 0.15)[person.scene.seed % 5]
    front = [(-width * 0.99, side), (-width * 0.84, line + 0.14), (-width * 0.5, line - 0.0), (part, line - 0.07)]
    front += [(width * 0.5, line - 0.0), (width * 0.84, line + 0.14), (width * 0.99, side)]
    top = curve((width * 1.03, -0.5), (-width * 1.03, -0.5), (0, -height * 1.12), 13)
    where = np.concatenate([[0.0], np.full(5, 0.55), [0.0], np.zeros(13)])
    sketch.fill(joined(front, top), person.look.hair, front=where)


def _draw_beard(sketch: Sketch, person: Identity, outline: Points) -> None:
    lower = outline[outline[:, 1] > 0.3]
    lower = lower[np.argsort(-lower[:, 0])]
    inner = curve(
        (-0.93 * person.geometry.half_width, 0.3),
        (0.93 * person.geometry.half_width, 0.3),
        (0, person.geometry.mouth_y + 0.21),
        9,
    )
    where = np.concatenate([np.zeros(len(lower)), [0.0], np.full(7, 0.8), [0.0]])
    sketch.fill(joined(lower, inner), mixed(person.look.skin, person.look.hair, 0.5), front=where)


def _draw_forehead(sketch: Sketch, person: Identity, au: Mapping[str, float]) -> None:
    """Horizontal wrinkles: in the middle for AU1, arched over the outer brows for AU2."""
    age, brow = person.look.age, person.geometry.brow_y
    strength = 0.75 + 0.25 * age
    for row in range(3):
        rest = 0.1 * age if row < 2 else 0.0
        height = brow - 0.15 - 0.095 * row
        middle = ((-0.36, height + 0.02), (0.36, height + 0.02), (0, height - 0.045 * au["AU1"]))
        sketch.crease(middle, max(strength * (0.95 - 0.12 * row) * au["AU1"], rest), 0.042)
        for side in (-1, 1):
            arc = ((0.3, height), (0.74, height + 0.1), (0.54, height - 0.03 - 0.05 * au["AU2"]))
            sketch.crease(arc, strength * (0.9 - 0.15 * row) * au["AU2"], 0.042, side=side)
    sketch.bulge((0, brow - 0.2), (0.5, 0.16), 0.12 + 0.15 * au["AU1"])
