"""Painting: collects shapes in face coordinates, projects all of them at once and rasterises them.

Three layers: `colour` holds what has a colour of its own; `fine` and `broad` are multiplied onto it and hold wrinkles
and bulges. Everything is drawn at twice the size and averaged down. All points of a layer are projected at once, for
speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipautt.datasets.synthetic.identity import Colour, Scene

Points = NDArray[np.float64]
"""Points [n, 2], x and y in face units."""

Point = tuple[float, float]
"""x and y in face units."""

Arc = tuple[Point, Point, Point]
"""Start, end and middle point of a parabola."""

SUPERSAMPLING = 2
BODY, OUTLINE, FRONT = -1.0, 0.0, 1.0
"""Where a point lies: on the body (does not turn), on the silhouette of the head, or on the front of the face."""

_SHIFT = 4  # fractional bits of OpenCV's fixed-point coordinates
_FACE_UNIT = 0.345  # length of one face unit as a fraction of the frame at scale 1
_BROAD_FRACTION = 0.5  # resolution of the broad layer relative to the frame
_NEUTRAL = 128
_NOISE_FRAMES = 12
_CREASE_POINTS = 9
_BULGE_POINTS = 20
_CREASE_DARKNESS = 0.72
_BULGE_STRENGTH = 0.45


@dataclass(frozen=True)
class View:
    """Where the head is and how it is turned."""

    yaw: float
    """Radians; positive turns the head to the subject's left, which is the viewer's right."""
    pitch: float
    """Radians; positive lifts the chin."""
    roll: float
    """Radians; positive tilts the head towards the subject's left shoulder, clockwise for the viewer."""
    offset: tuple[float, float]
    """Translation in face units, viewer's right and down."""
    scale: float
    """Size of the head, 1 fills most of the frame."""


@dataclass
class Sketch:
    """Shapes of one face, in drawing order. The drawing functions of every region add to it."""

    shapes: list[tuple[Points, float | NDArray[np.float64], Colour, float]] = field(default_factory=list)
    """Colour layer: points [n, 2], where they lie (`BODY`, `OUTLINE`, `FRONT`), colour, line width (0 fills)."""
    creases: list[tuple[Arc, float, float, float]] = field(default_factory=list)
    """Fine layer: arc, side, depth, width."""
    bulges: list[tuple[float, float, float, float, float]] = field(default_factory=list)
    """Broad layer: centre x and y, radius x and y, height."""
    rim: Points | None = None
    """Broad layer: closed outline of the face, shaded because it turns away [n, 2]."""

    def fill(self, points: Points, colour: Colour, *, front: float | NDArray[np.float64] = FRONT) -> None:
        """A filled polygon; `front` says where its points lie, one value for all or one for each."""
        self.shapes.append((points, front, colour, 0.0))

    def stroke(self, points: Points, colour: Colour, width: float) -> None:
        """A line of constant width, in face units."""
        self.shapes.append((points, FRONT, colour, width))

    def crease(self, arc: Arc, depth: float, width: float = 0.04, *, side: float = 1.0) -> None:
        """A wrinkle that tapers at both ends.

        Args:
            arc: where it runs, given for the viewer's right half.
            depth: how dark it is, 0..1; below 0.03 nothing is drawn.
            width: thickness in the middle, face units.
            side: 1 draws it as given, -1 mirrored.
        """
        if depth > 0.03:
            self.creases.append((arc, side, min(depth, 1.0), width))

    def bulge(self, centre: Point, radii: Point, height: float) -> None:
        """A soft bright (height > 0) or dark (height < 0) patch of skin."""
        if abs(height) > 0.02:
            self.bulges.append((*centre, *radii, height))


@lru_cache(maxsize=16)
def _bezier(count: int) -> NDArray[np.float64]:
    t = np.linspace(0, 1, count)
    return np.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2], axis=1)


@lru_cache(maxsize=8)
def _circle(count: int) -> Points:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


@lru_cache(maxsize=16)
def _taper_profile(count: int) -> NDArray[np.float64]:
    return np.sin(np.pi * np.linspace(0.04, 0.96, count)) ** 0.7 / 2


def curve(start: Point, end: Point, through: Point, count: int = 9) -> Points:
    """A parabola from `start` to `end` that passes `through` at its middle; points [count, 2]."""
    control = (2 * through[0] - (start[0] + end[0]) / 2, 2 * through[1] - (start[1] + end[1]) / 2)
    points: Points = _bezier(count) @ np.array((start, control, end))
    return points


def ellipse(centre: Point, radii: Point, count: int = 24) -> Points:
    """An ellipse with axes along x and y; points [count, 2]."""
    points: Points = _circle(count) * radii + centre
    return points


def straight(start: Point, end: Point) -> Arc:
    """The arc without a bend."""
    return start, end, ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)


def _crease_outlines(creases: Sequence[tuple[Arc, float, float, float]]) -> Points:
    """Lens-shaped outlines of all creases [number, 18, 2]."""
    arcs = np.array([crease[0] for crease in creases])
    side, width = (np.array([crease[column] for crease in creases]) for column in (1, 3))
    arcs[:, 2] = 2 * arcs[:, 2] - (arcs[:, 0] + arcs[:, 1]) / 2  # the Bezier control point
    arcs[:, :, 0] *= side[:, None]
    spine = _bezier(_CREASE_POINTS) @ arcs[:, (0, 2, 1)]
    along = np.empty_like(spine)
    along[:, 1:-1] = spine[:, 2:] - spine[:, :-2]
    along[:, 0], along[:, -1] = spine[:, 1] - spine[:, 0], spine[:, -1] - spine[:, -2]
    along *= (_taper_profile(_CREASE_POINTS) * width[:, None] / (np.hypot(along[..., 0], along[..., 1]) + 1e-9))[
        ..., None
    ]
    half = along[..., ::-1] * (-1.0, 1.0)
    return np.concatenate([spine + half, (spine - half)[:, ::-1]], axis=1)


def mirrored(points: ArrayLike, side: float) -> Points:
    """Points given for the viewer's right half, moved to the side -1 (viewer's left) or 1."""
    result = np.array(points, np.float64)
    result[:, 0] *= side
    return result


def project(points: Points, front: float | NDArray[np.float64], view: View) -> Points:
    """Face units to face units after turning the head; points [n, 2].

    Features lie on the front of an ellipsoid and shift and foreshorten with it. The outline (`front` 0) is the
    silhouette of a round head: it does not foreshorten and follows only as far as its chin sticks out.
    """
    x, y = points[:, 0], points[:, 1]
    still, front = np.less(front, 0), np.maximum(front, 0)
    surface = 0.78 * np.sqrt(np.maximum(0.0, 1 - (x / 1.12) ** 2 - (y / 1.65) ** 2))
    silhouette = 0.06 + 0.32 * np.clip((y + 0.3) / 1.5, 0, 1)
    depth = front * surface + (1 - front) * silhouette
    turned_x = x * (1 - front * (1 - np.cos(view.yaw))) + depth * np.sin(view.yaw)
    turned_y = y * (1 - front * (1 - np.cos(view.pitch))) - depth * np.sin(view.pitch)
    cos, sin = np.cos(view.roll), np.sin(view.roll)
    turned = np.empty_like(points)
    turned[:, 0] = turned_x * cos - turned_y * sin
    turned[:, 1] = turned_x * sin + turned_y * cos
    if np.any(still):
        turned[still] = points[still]
    return turned


def paint(sketch: Sketch, view: View, scene: Scene, size: int, rng: np.random.Generator | None) -> NDArray[np.uint8]:
    """Rasterises a sketch in front of the scene's background; uint8 [size, size, 3] RGB."""
    drawn = size * SUPERSAMPLING
    layers = {
        "colour": backdrop(scene, drawn).copy(),
        "fine": np.full((drawn, drawn), _NEUTRAL, np.uint8),
        "broad": np.full((int(size * _BROAD_FRACTION),) * 2, _NEUTRAL, np.uint8),
    }
    _rasterise(sketch, view, layers, drawn)
    small = cv2.resize(layers["colour"], (size, size), interpolation=cv2.INTER_AREA)
    image: NDArray[Any] = small.astype(np.float32)
    fine = cv2.resize(layers["fine"], (size, size), interpolation=cv2.INTER_AREA)
    fine = cv2.GaussianBlur(fine, (0, 0), 0.007 * size)
    broad = cv2.GaussianBlur(layers["broad"], (0, 0), 0.028 * size * _BROAD_FRACTION)
    broad = cv2.resize(broad, (size, size), interpolation=cv2.INTER_LINEAR)
    image *= cv2.multiply(fine, broad, scale=1 / _NEUTRAL**2, dtype=cv2.CV_32F)[..., None]
    image *= _light(scene, size)
    if scene.blur > 0.2:
        image = cv2.GaussianBlur(image, (0, 0), scene.blur * size / 96)
    if rng is not None:
        image += _noise(size)[rng.integers(_NOISE_FRAMES)] * scene.noise
    frame: NDArray[np.uint8] = np.clip(image, 0, 255).astype(np.uint8)
    return frame


def _rasterise(sketch: Sketch, view: View, layers: dict[str, NDArray[np.uint8]], drawn: int) -> None:
    unit = _FACE_UNIT * drawn * view.scale
    origin = np.array(view.offset) * unit + (drawn / 2, drawn * 0.485)
    _rasterise_colour(sketch, view, layers["colour"], unit, origin)
    if sketch.creases:
        outlines = _crease_outlines(sketch.creases)
        pixels = _fixed(project(outlines.reshape(-1, 2), 1.0, view) * unit + origin).reshape(len(outlines), -1, 2)
        for outline, (_, _, depth, _) in zip(pixels, sketch.creases, strict=True):
            cv2.fillPoly(
                layers["fine"], [outline], _NEUTRAL * (1 - _CREASE_DARKNESS * depth**0.85), cv2.LINE_AA, _SHIFT
            )
    _rasterise_broad(sketch, view, layers["broad"], unit, origin)


def _rasterise_colour(sketch: Sketch, view: View, layer: NDArray[np.uint8], unit: float, origin: Points) -> None:
    points = np.concatenate([shape[0] for shape in sketch.shapes])
    front = np.empty(len(points))
    start = 0
    for shape, where, _, _ in sketch.shapes:
        front[start : start + len(shape)] = where
        start += len(shape)
    pixels = _fixed(project(points, front, view) * unit + origin)
    start = 0
    for shape, _, colour, width in sketch.shapes:
        outline = pixels[start : start + len(shape)]
        start += len(shape)
        if width:
            cv2.polylines(layer, [outline], False, colour, max(1, round(width * unit)), cv2.LINE_AA, _SHIFT)
        else:
            cv2.fillPoly(layer, [outline], colour, cv2.LINE_AA, _SHIFT)


def _rasterise_broad(sketch: Sketch, view: View, layer: NDArray[np.uint8], unit: float, origin: Points) -> None:
    zoom = _BROAD_FRACTION / SUPERSAMPLING
    if sketch.rim is not None:
        rim = _fixed((project(sketch.rim, 0.0, view) * unit + origin) * zoom)
        cv2.polylines(layer, [rim], True, _NEUTRAL * 0.8, max(1, round(0.16 * unit * zoom)), cv2.LINE_AA, _SHIFT)
    bulges = np.array(sketch.bulges)
    outlines = bulges[:, None, :2] + bulges[:, None, 2:4] * _circle(_BULGE_POINTS)
    pixels = _fixed((project(outlines.reshape(-1, 2), 1.0, view) * unit + origin) * zoom).reshape(len(bulges), -1, 2)
    levels = np.clip(_NEUTRAL * (1 + _BULGE_STRENGTH * bulges[:, 4]), 6, 250).tolist()
    for outline, level in zip(pixels, levels, strict=True):
        cv2.fillPoly(layer, [outline], level, cv2.LINE_AA, _SHIFT)


def _fixed(pixels: Points) -> NDArray[np.int32]:
    """OpenCV's fixed-point coordinates."""
    return np.rint(pixels * (1 << _SHIFT)).astype(np.int32)


@lru_cache(maxsize=64)
def backdrop(scene: Scene, size: int) -> NDArray[np.uint8]:
    """The blurred background, uint8 [size, size, 3]; shared, so copy before drawing on it."""
    rng = np.random.default_rng([scene.seed, 5])
    top, bottom = (np.array(colour) for colour in scene.background)
    ramp = np.linspace(0, 1, size)[:, None, None]
    image = np.broadcast_to(top * (1 - ramp) + bottom * ramp, (size, size, 3)).astype(np.uint8).copy()
    for _ in range(4):
        left, upper, right, lower = (int(v) for v in rng.uniform(0, size, 4))
        shade = tuple(float(v) for v in np.clip(top + rng.normal(0, 30, 3), 0, 255))
        cv2.rectangle(image, (left, upper), (right, lower), shade, -1)
    image = cv2.GaussianBlur(image, (0, 0), size / 50).astype(np.uint8)
    image.setflags(write=False)
    return image


@lru_cache(maxsize=64)
def _light(scene: Scene, size: int) -> NDArray[np.float32]:
    y, x = np.mgrid[0:size, 0:size] / size * 2 - 1
    slope = np.cos(scene.light_direction) * x + np.sin(scene.light_direction) * y
    light = (1 + scene.light_strength * slope)[..., None] * scene.brightness * np.array(scene.tint)
    result: NDArray[np.float32] = light.astype(np.float32)
    return result


@lru_cache(maxsize=4)
def _noise(size: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((_NOISE_FRAMES, size, size, 3)).astype(np.float32)


def darker(colour: Colour, factor: float) -> Colour:
    """The colour times a factor."""
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def mixed(first: Colour, second: Colour, share: float) -> Colour:
    """A colour between two, `share` of the second."""
    return tuple(a + (b - a) * share for a, b in zip(first, second, strict=True))  # type: ignore[return-value]


def joined(*parts: Sequence[Sequence[float]] | Points) -> Points:
    """Points of several curves, one after the other."""
    return np.concatenate([np.asarray(part, np.float64) for part in parts])
