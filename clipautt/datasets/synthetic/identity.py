"""Who a synthetic person is: geometry, looks, the camera that films them, how they express and how they rest.

An identity follows from its seed alone. Looks, expressivity and resting face come from separate random streams, so a
person looks the same at every difficulty.

Lengths are in face units: the origin is the middle of the face, x points to the viewer's right (the subject's left), y
points down, and the face is about 1.9 wide and 2.6 high.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clipautt.action_units import RENDERED

Colour = tuple[float, float, float]
"""Red, green and blue, 0..255."""

INDEX: dict[str, int] = {code: position for position, code in enumerate(RENDERED)}
"""Position of every rendered code in an intensity vector."""

# Standard deviation of the half-normal resting intensity: the units that people's resting faces are read as.
_RESTING_SPREAD = {
    "AU1": 0.12, "AU2": 0.12, "AU4": 0.28, "AU5": 0.12, "AU6": 0.20, "AU7": 0.25, "AU9": 0.12, "AU10": 0.15,
    "AU12": 0.15, "AU14": 0.12, "AU15": 0.20, "AU17": 0.15, "AU20": 0.08, "AU23": 0.15, "AU25": 0.15, "AU43": 0.20,
}  # fmt: skip
_MAX_RESTING = 0.7
_GAIN_RANGE = (0.3, 2.2)
_SKIN = np.array(
    [(244, 214, 194), (228, 186, 156), (203, 152, 116), (160, 108, 76), (112, 72, 50), (74, 47, 34)], float
)
_HAIR = np.array([(28, 23, 21), (66, 42, 26), (108, 74, 42), (190, 155, 98), (158, 156, 152), (128, 62, 34)], float)
_IRIS = np.array([(66, 42, 26), (62, 104, 148), (78, 112, 70), (104, 74, 42)], float)


@dataclass(frozen=True)
class Geometry:
    """Where things are on the neutral face, in face units."""

    half_width: float
    """Half the width of the face at the cheek bones."""
    half_height: float
    """Distance from the middle of the face to the chin."""
    jaw: float
    """Width of the jaw corners as a fraction of `half_width`."""
    chin: float
    """Half the width of the chin."""
    hairline: float
    """Height of the hairline as a fraction of `half_height`."""
    eye_x: float
    """Horizontal distance of each eye from the middle."""
    eye_y: float
    """Height of the eyes (negative is up)."""
    eye_half_width: float
    """Half the distance between the corners of one eye."""
    eye_height: float
    """Height of the upper lid above the corners when at rest."""
    eye_tilt: float
    """How much the outer corner lies below the inner one."""
    iris_radius: float
    """Radius of the iris."""
    brow_y: float
    """Height of the brows."""
    brow_inner: float
    """Distance of the inner brow end from the middle."""
    brow_length: float
    """Horizontal length of a brow."""
    brow_thickness: float
    """Thickness at the inner end."""
    brow_arch: float
    """Rise of the middle of a brow above its ends."""
    nose_y: float
    """Height of the base of the nose."""
    nose_half_width: float
    """Half the distance between the outer edges of the nostrils."""
    mouth_y: float
    """Height of the line between the lips."""
    mouth_half_width: float
    """Half the distance between the lip corners."""
    upper_lip: float
    """Thickness of the upper lip."""
    lower_lip: float
    """Thickness of the lower lip."""
    mouth_curve: float
    """How much the lip corners lie below the middle at rest."""


@dataclass(frozen=True)
class Look:
    """Colours and accessories."""

    skin: Colour
    """Skin colour."""
    lip: Colour
    """Lip colour."""
    hair: Colour
    """Hair colour."""
    brow: Colour
    """Brow colour."""
    iris: Colour
    """Iris colour."""
    shirt: Colour
    """Clothing colour."""
    hair_style: int
    """0 short, 1 chin length, 2 long, 3 receding, 4 bald."""
    age: float
    """0 smooth skin .. 1 deep resting wrinkles."""
    glasses: bool
    """Whether glasses are worn."""
    beard: bool
    """Whether a beard covers jaw and chin."""
    moustache: bool
    """Whether a moustache covers the upper lip's skin."""


@dataclass(frozen=True)
class Scene:
    """Background, light and camera."""

    seed: int
    """Seed of the background's shapes."""
    background: tuple[Colour, Colour]
    """Colours at the top and at the bottom."""
    light_direction: float
    """Direction that the light comes from, radians in the image plane."""
    light_strength: float
    """Relative brightness gained or lost at the frame's edge."""
    brightness: float
    """Exposure, 1 is neutral."""
    tint: Colour
    """Factors on red, green and blue, near 1 (white balance)."""
    noise: float
    """Standard deviation of the sensor noise, grey levels of 255."""
    blur: float
    """Standard deviation of the lens blur in pixels of a 96-pixel frame."""
    pose: tuple[float, float, float]
    """Resting yaw, pitch and roll, radians."""
    offset: tuple[float, float]
    """Where the face sits in the frame, face units."""
    scale: float
    """How large the face is, 1 fills most of the frame."""
    sway: float
    """How much the head moves about on its own, face units."""


@dataclass(frozen=True, eq=False)
class Identity:
    """One synthetic person."""

    seed: int
    """The seed everything follows from."""
    geometry: Geometry
    """Shape of the neutral face."""
    look: Look
    """Colours and accessories."""
    scene: Scene
    """Background, light and camera."""
    gain: NDArray[np.float64]
    """Expressivity: factor on every raw intensity, [28] in `RENDERED` order, 0.3..2.2."""
    bias: NDArray[np.float64]
    """Resting face: intensity present when nothing is expressed, [28] in `RENDERED` order, 0..0.7."""

    def __repr__(self) -> str:
        return f"Identity(seed={self.seed}, gain=[{self.gain.size}], bias=[{self.bias.size}])"


def draw_identity(seed: int, *, resting_bias: float = 1.0, expressivity_spread: float = 1.0) -> Identity:
    """The person with this seed.

    Args:
        seed: non-negative; the same seed is the same person.
        resting_bias: factor on the resting intensities; 0 gives resting faces without any expression.
        expressivity_spread: factor on the spread of the logarithm of the gains; 0 makes everyone equally expressive.

    Raises:
        ValueError: when an argument is negative.
    """
    for name, value in (("seed", seed), ("resting_bias", resting_bias), ("expressivity_spread", expressivity_spread)):
        if value < 0:
            raise ValueError(f"{name}={value} is negative; 0 or more is allowed")
    look = _draw_look(np.random.default_rng([seed, 1]))
    return Identity(
        seed=seed,
        geometry=_draw_geometry(np.random.default_rng([seed, 0])),
        look=look,
        scene=_draw_scene(np.random.default_rng([seed, 2]), seed),
        gain=_draw_gain(np.random.default_rng([seed, 3]), expressivity_spread),
        bias=_draw_bias(np.random.default_rng([seed, 4]), resting_bias),
    )


def total_intensities(identity: Identity, raw: ArrayLike) -> NDArray[np.float64]:
    """What shows on the face when the person expresses `raw`: times the gain, plus the resting face, clipped to [0, 1].

    Args:
        identity: the person.
        raw: intensities [..., 28] in `RENDERED` order, 0..1.
    """
    totals: NDArray[np.float64] = np.clip(np.asarray(raw, np.float64) * identity.gain + identity.bias, 0.0, 1.0)
    return totals


def _draw_gain(rng: np.random.Generator, spread: float) -> NDArray[np.float64]:
    per_unit, overall = rng.normal(0, 0.35, len(RENDERED)), rng.normal(0, 0.2)
    posture = np.array([int(code[2:]) > 50 for code in RENDERED])
    # Head and gaze codes are movements, not muscle strength: people differ less in them.
    gain: NDArray[np.float64] = np.clip(
        np.exp(spread * (per_unit + overall) * np.where(posture, 0.4, 1.0)), *_GAIN_RANGE
    )
    gain.setflags(write=False)
    return gain


def _draw_bias(rng: np.random.Generator, factor: float) -> NDArray[np.float64]:
    spread = np.array([_RESTING_SPREAD.get(code, 0.0) for code in RENDERED])
    bias: NDArray[np.float64] = np.minimum(
        np.maximum(rng.normal(0, 1, len(RENDERED)), 0.0) * spread * factor, _MAX_RESTING
    )
    bias.setflags(write=False)
    return bias


def _draw_geometry(rng: np.random.Generator) -> Geometry:
    uniform, normal = rng.uniform, rng.normal
    return Geometry(
        half_width=uniform(0.88, 1.02), half_height=uniform(1.22, 1.36), jaw=uniform(0.62, 0.84),
        chin=uniform(0.26, 0.42), hairline=uniform(0.64, 0.76), eye_x=uniform(0.39, 0.46), eye_y=uniform(-0.2, -0.12),
        eye_half_width=uniform(0.195, 0.235), eye_height=uniform(0.085, 0.12),
        eye_tilt=float(np.clip(normal(0, 0.018), -0.04, 0.04)),
        iris_radius=uniform(0.085, 0.098), brow_y=uniform(-0.49, -0.42), brow_inner=uniform(0.18, 0.24),
        brow_length=uniform(0.42, 0.49), brow_thickness=uniform(0.055, 0.1), brow_arch=uniform(0.01, 0.08),
        nose_y=uniform(0.27, 0.35), nose_half_width=uniform(0.15, 0.21), mouth_y=uniform(0.68, 0.76),
        mouth_half_width=uniform(0.3, 0.37), upper_lip=uniform(0.05, 0.08), lower_lip=uniform(0.065, 0.105),
        mouth_curve=float(np.clip(normal(0, 0.013), -0.03, 0.03)),
    )  # fmt: skip


def _colour(values: ArrayLike, low: float = 8, high: float = 248) -> Colour:
    red, green, blue = (float(v) for v in np.clip(np.asarray(values, float), low, high))
    return red, green, blue


def _draw_look(rng: np.random.Generator) -> Look:
    tone = rng.uniform(0, len(_SKIN) - 1)
    skin = np.array([np.interp(tone, np.arange(len(_SKIN)), _SKIN[:, c]) for c in range(3)]) + rng.normal(0, 4, 3)
    # Dark skin with blond hair or blue eyes is rare enough to leave out.
    hair = _HAIR[rng.integers(len(_HAIR))] if tone < 2.8 else _HAIR[rng.choice([0, 0, 1, 4])]
    hair = hair + rng.normal(0, 6, 3)
    return Look(
        skin=_colour(skin),
        lip=_colour(skin * (0.88, 0.58, 0.6) + np.array([18, 4, 6]) * rng.uniform(0, 1.5)),
        hair=_colour(hair),
        brow=_colour(np.minimum(hair, skin * 0.72) * rng.uniform(0.6, 0.9)),
        iris=_colour(_IRIS[rng.integers(len(_IRIS)) if tone < 2.8 else 0] + rng.normal(0, 6, 3)),
        shirt=_colour(rng.uniform(25, 215, 3)),
        hair_style=int(rng.choice(5, p=(0.36, 0.22, 0.2, 0.14, 0.08))),
        age=float(rng.uniform()),
        glasses=bool(rng.random() < 0.17),
        beard=bool(rng.random() < 0.14),
        moustache=bool(rng.random() < 0.12),
    )


def _draw_scene(rng: np.random.Generator, seed: int) -> Scene:
    top = rng.uniform(40, 215, 3)
    yaw, pitch, roll = rng.normal(0, (0.06, 0.05, 0.035))
    offset_x, offset_y = rng.normal(0, 0.035, 2)
    red, green, blue = 1 + rng.normal(0, 0.03, 3)
    return Scene(
        seed=seed,
        background=(_colour(top), _colour(top + rng.normal(0, 35, 3))),
        light_direction=rng.uniform(-np.pi, np.pi),
        light_strength=rng.uniform(0.04, 0.26),
        brightness=rng.uniform(0.84, 1.08),
        tint=(float(red), float(green), float(blue)),
        noise=rng.uniform(1, 5),
        blur=rng.uniform(0, 0.7),
        pose=(float(yaw), float(pitch), float(roll)),
        offset=(float(offset_x), float(offset_y)),
        scale=rng.uniform(0.93, 1.05),
        sway=rng.uniform(0.004, 0.015),
    )
