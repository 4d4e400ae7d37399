"""What a synthetic person does during a clip: intensities, head movement, and where the expression sits.

A clip holds everyday movements (blinks, talking, smiles, lone frowns, glances, head turns) and, when positive, one
subtle burst of the task's expression. Everyday movements come from a random stream of their own, so a positive and a
neutral clip drawn from the same generator differ only in the burst.

Durations are in frames at 25 frames per second; clips shorter than 96 frames shrink them in proportion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipautt.action_units import RENDERED, TASKS
from clipautt.datasets.synthetic.identity import INDEX, Identity, total_intensities

Array = NDArray[np.float64]
Codes = tuple[str, ...]

MIN_FRAMES = 24
"""Shortest clip that can hold a burst."""

_BLINK_INTERVAL = 75.0  # mean number of frames between blinks
_CLIP_DRIFT = 0.03  # how much the resting face differs from clip to clip
_JITTER = 0.3  # units of one expression differ by up to this fraction
_SMOOTHING = 15  # frames over which head sway is averaged


@dataclass(frozen=True)
class Difficulty:
    """How hard it is to tell a positive clip from a neutral one."""

    burst: tuple[float, float]
    """Range of the burst's intensity before gain, 0..1."""
    resting_bias: float
    """Factor on the resting intensities, see `draw_identity`."""
    expressivity_spread: float
    """Factor on the spread of the gains, see `draw_identity`."""


DIFFICULTIES: dict[str, Difficulty] = {
    "standard": Difficulty(burst=(0.20, 0.50), resting_bias=1.0, expressivity_spread=1.0),
    "hard": Difficulty(burst=(0.15, 0.40), resting_bias=1.6, expressivity_spread=1.4),
}
"""The difficulties a data set can have."""


@dataclass(frozen=True, eq=False)
class Track:
    """One clip's movements."""

    intensities: Array
    """Total intensities, gain and resting face included, [T, 28] in `RENDERED` order, 0..1."""
    pose: Array
    """Head sway as yaw, pitch and roll in radians, on top of AU51..56, [T, 3]."""
    translation: Array
    """Head sway in face units, to the viewer's right and down, [T, 2]."""
    burst: tuple[int, int] | None
    """First frame of the burst and the one after its last; None in a neutral clip."""

    def __repr__(self) -> str:
        return f"Track(intensities={list(self.intensities.shape)}, burst={self.burst})"


@dataclass(frozen=True)
class _Movement:
    """A kind of everyday movement."""

    probability: float
    """Chance that a clip contains it."""
    choices: tuple[Codes, ...]
    """Unit combinations, one of which is shown."""
    level: tuple[float, float]
    """Range of its intensity."""
    apex: tuple[int, int]
    """Range of the number of frames at full intensity."""
    onset: int = 7
    """Frames to full intensity."""
    offset: int = 9
    """Frames back to none."""


_EVERYDAY: tuple[_Movement, ...] = (
    _Movement(0.25, (("AU6", "AU12"), ("AU6", "AU12", "AU25")), (0.25, 0.7), (6, 30)),
    _Movement(0.25, (("AU1", "AU2"), ("AU2",)), (0.25, 0.7), (5, 20), onset=5),
    _Movement(0.20, (("AU4",),), (0.15, 0.45), (8, 30)),
    _Movement(0.15, (("AU7",),), (0.15, 0.45), (8, 30)),
    _Movement(0.12, (("AU9",), ("AU10",)), (0.15, 0.4), (5, 12)),
    _Movement(0.25, (("AU23",), ("AU17",), ("AU15",), ("AU14",), ("AU18",), ("AU20",)), (0.2, 0.6), (8, 20)),
    _Movement(0.10, (("AU5",),), (0.2, 0.6), (4, 14), onset=4),
    _Movement(0.30, (("AU61",), ("AU62",), ("AU63",), ("AU64",)), (0.3, 1.0), (8, 30), onset=3, offset=3),
    _Movement(0.25, (("AU51",), ("AU52",)), (0.15, 0.5), (10, 40), onset=10, offset=10),
    _Movement(0.25, (("AU53",), ("AU54",)), (0.15, 0.5), (10, 40), onset=10, offset=10),
    _Movement(0.25, (("AU55",), ("AU56",)), (0.15, 0.5), (10, 40), onset=10, offset=10),
)
_TALKING = 0.3  # chance that a clip contains speech


def draw_track(
    identity: Identity,
    *,
    task: str,
    positive: bool,
    difficulty: Difficulty,
    rng: np.random.Generator,
    num_frames: int = 96,
) -> Track:
    """Draws what happens in one clip.

    Args:
        identity: who moves; gain and resting face are applied here.
        task: which expression a positive clip shows, a key of `TASKS`.
        positive: whether the clip contains the expression.
        difficulty: how strong the expression is.
        rng: source of all randomness; the same state gives the same everyday movements for both classes.
        num_frames: number of frames T.

    Raises:
        ValueError: for an unknown task or fewer than 24 frames.
    """
    if task not in TASKS:
        raise ValueError(f"task={task!r} is unknown; allowed: {', '.join(TASKS)}")
    if num_frames < MIN_FRAMES:
        raise ValueError(f"num_frames={num_frames} is too few; {MIN_FRAMES} or more are allowed")
    everyday, expression, motion = (np.random.default_rng(seed) for seed in rng.integers(2**63, size=3).tolist())
    raw, reflexes = _everyday(everyday, num_frames)
    burst = None
    if positive:
        level = expression.uniform(*difficulty.burst)
        burst = _add_burst(raw, reflexes, task, level, expression)
    pose = np.stack([_sway(motion, num_frames, 0.06) + motion.normal(0, 0.02) for _ in range(3)], axis=1)
    translation = np.stack([_sway(motion, num_frames, 6 * identity.scene.sway) for _ in range(2)], axis=1)
    # Blinks and speech are as strong in a person with little facial expression as in anyone.
    totals = np.maximum(total_intensities(identity, raw), reflexes)
    return Track(totals, pose, translation, burst)


def envelope(num_frames: int, start: float, onset: float, apex: float, offset: float) -> Array:
    """A smooth rise, hold and fall; values [num_frames] in 0..1, zero outside.

    Args:
        num_frames: length T.
        start: frame at which it begins to rise.
        onset: frames to full intensity.
        apex: frames at full intensity.
        offset: frames back to zero.
    """
    time = np.arange(num_frames) - start
    rise = np.clip(time / onset, 0, 1)
    fall = np.clip((onset + apex + offset - time) / offset, 0, 1)
    linear = np.minimum(rise, fall)
    smooth: Array = linear * linear * (3 - 2 * linear)
    return smooth


def _raise_to(intensities: Array, code: str, values: Array) -> None:
    column = intensities[:, INDEX[code]]
    np.maximum(column, np.clip(values, 0, 1), out=column)


def _express(raw: Array, codes: Codes, level: float, shape: Array, rng: np.random.Generator) -> None:
    for code in codes:
        _raise_to(raw, code, shape * level * rng.uniform(1 - _JITTER, 1 + _JITTER))


def _everyday(rng: np.random.Generator, num_frames: int) -> tuple[Array, Array]:
    """Movements that both classes show: raw intensities [T, 28] and reflexes that gain does not touch [T, 28]."""
    pace = min(1.0, num_frames / 96)
    raw, reflexes = np.zeros((num_frames, len(RENDERED))), np.zeros((num_frames, len(RENDERED)))
    muscles = np.array([int(code[2:]) < 51 for code in RENDERED])
    raw += _CLIP_DRIFT * np.abs(rng.normal(size=len(RENDERED))) * muscles
    blink_at = rng.exponential(_BLINK_INTERVAL)
    while blink_at < num_frames:
        _raise_to(reflexes, "AU43", _blink(num_frames, blink_at))
        blink_at += 6 + rng.exponential(_BLINK_INTERVAL)
    for movement in _EVERYDAY:
        if rng.random() >= movement.probability:
            continue
        codes = movement.choices[rng.integers(len(movement.choices))]
        start = rng.uniform(0, num_frames - 20 * pace)
        apex = rng.uniform(*movement.apex)
        shape = envelope(num_frames, start, movement.onset * pace, apex * pace, movement.offset * pace)
        _express(raw, codes, rng.uniform(*movement.level), shape, rng)
    if rng.random() < _TALKING:
        _talk(reflexes, rng, pace)
    return raw, reflexes


def _blink(num_frames: int, start: float) -> Array:
    return envelope(num_frames, round(start), 2, 1, 3)


def _talk(reflexes: Array, rng: np.random.Generator, pace: float) -> None:
    num_frames = len(reflexes)
    time = np.arange(num_frames)
    shape = envelope(num_frames, rng.uniform(0, num_frames - 20 * pace), 6 * pace, rng.uniform(15, 50) * pace, 6 * pace)
    syllables = 0.5 + 0.5 * np.sin(time * rng.uniform(0.5, 0.9) + rng.uniform(0, 6))
    rounding = 0.5 + 0.5 * np.sin(time * rng.uniform(0.2, 0.5) + rng.uniform(0, 6))
    _raise_to(reflexes, "AU25", shape * (0.3 + 0.5 * syllables))
    _raise_to(reflexes, "AU26", shape * 0.35 * syllables)
    _raise_to(reflexes, "AU18", shape * 0.4 * rounding)


def _sway(rng: np.random.Generator, num_frames: int, amplitude: float) -> Array:
    kernel = np.hanning(_SMOOTHING + 2)[1:-1]
    noise = rng.normal(0, amplitude, num_frames + _SMOOTHING - 1)
    smooth: Array = np.convolve(noise, kernel / kernel.sum(), "valid")
    return smooth


@dataclass(frozen=True)
class _Burst:
    """Timing of one expression."""

    start: int
    """First frame."""
    onset: int
    """Frames to full intensity."""
    apex: int
    """Frames at full intensity."""
    offset: int
    """Frames back to none."""
    num_frames: int
    """Length of the clip."""

    @property
    def end(self) -> int:
        return self.start + self.onset + self.apex + self.offset

    def shape(self) -> Array:
        return envelope(self.num_frames, self.start, self.onset, self.apex, self.offset)

    def part(self, first: float, last: float) -> Array:
        """An envelope over a fraction of the burst, for brief movements."""
        length = self.end - self.start
        duration = (last - first) * length
        return envelope(self.num_frames, self.start + first * length, 0.3 * duration, 0.4 * duration, 0.3 * duration)


def _add_burst(raw: Array, reflexes: Array, task: str, level: float, rng: np.random.Generator) -> tuple[int, int]:
    num_frames = len(raw)
    pace = min(1.0, num_frames / 96)
    onset, apex, offset = (max(2, round(pace * rng.integers(*span))) for span in ((6, 13), (8, 22), (8, 17)))
    latest = num_frames - (onset + apex + offset)
    start = int(rng.integers(min(4, latest), latest + 1))
    burst = _Burst(start, onset, apex, offset, num_frames)
    _EXPRESSIONS[task](raw, reflexes, burst, level, rng)
    return burst.start, burst.end


def _pick(rng: np.random.Generator, *choices: Codes) -> Codes:
    return choices[rng.integers(len(choices))]


def _maybe(rng: np.random.Generator, probability: float, *choices: Codes) -> Codes:
    chosen, shown = _pick(rng, *choices), rng.random() < probability
    return chosen if shown else ()


def _pain(raw: Array, reflexes: Array, burst: _Burst, level: float, rng: np.random.Generator) -> None:
    """AU4, AU6 or 7, AU9 or 10, often AU43: the Prkachin-Solomon intensity (Pain 139, 2008), sometimes a mouth unit."""
    codes: Codes = ("AU4",)
    codes += _pick(rng, ("AU6",), ("AU7",), ("AU6", "AU7"))
    codes += _pick(rng, ("AU9",), ("AU10",), ("AU9", "AU10"))
    codes += _maybe(rng, 0.6, ("AU43",))
    codes += _maybe(rng, 0.3, ("AU20",), ("AU25",), ("AU26",), ("AU17",))
    _express(raw, codes, level, burst.shape(), rng)


def _stress(raw: Array, reflexes: Array, burst: _Burst, level: float, rng: np.random.Generator) -> None:
    """AU4 with pressed lips (AU23, mostly AU17), sometimes AU1 or AU20, and up to three quick blinks: our mixture."""
    codes: Codes = ("AU4", "AU23")
    codes += _maybe(rng, 0.75, ("AU17",))
    codes += _maybe(rng, 0.5, ("AU1",), ("AU20",), ("AU1", "AU20"))
    _express(raw, codes, level, burst.shape(), rng)
    for blink_at in burst.start + (burst.end - burst.start) * rng.uniform(0.1, 0.8, rng.integers(2, 4)):
        if blink_at + 6 <= burst.end:
            _raise_to(reflexes, "AU43", _blink(burst.num_frames, blink_at))


def _ambivalence(raw: Array, reflexes: Array, burst: _Burst, level: float, rng: np.random.Generator) -> None:
    """A smile that contradicts itself (AU12 with AU14, AU15 or both), a moment of AU2, then sometimes AU18 or AU4 with
    it, and eyes that look away: our mixture."""
    codes = ("AU12", *_pick(rng, ("AU15",), ("AU14",), ("AU14", "AU15")))
    _express(raw, codes, level, burst.shape(), rng)
    _express(raw, ("AU2",), level, burst.part(0.0, 0.6), rng)
    _express(raw, _maybe(rng, 0.6, ("AU18",), ("AU4", "AU18")), level, burst.part(0.4, 1.0), rng)
    _express(raw, _maybe(rng, 0.6, ("AU61",), ("AU62",), ("AU64",)), 1.5 * level, burst.part(0.2, 0.9), rng)


_EXPRESSIONS: dict[str, Callable[[Array, Array, _Burst, float, np.random.Generator], None]] = {
    "pain": _pain,
    "stress": _stress,
    "ambivalence": _ambivalence,
}
