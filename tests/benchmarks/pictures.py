"""Pictures made darker, brighter, smaller or blurred, as cameras and tone curves make them, for `bench_validity`."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

BRIGHTNESS = (0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03)
OVEREXPOSED = (0.8, 0.9)
SIDES = (0.9, 0.75, 0.6, 0.45)
PIXELS = (0.67, 0.5, 0.33, 0.25, 0.17)
WELL, READ_NOISE = 5000.0, 3.0
"""Electrons of a white pixel of a small sensor, and the standard deviation of its read noise."""

Frames = npt.NDArray[np.uint8]
"""RGB frames [n, S, S, 3]."""
Change = Callable[[Frames, np.random.Generator], Frames]
"""Frames to frames of the same shape."""


def luma(frames: Frames) -> npt.NDArray[np.float32]:
    """Mean luma of frames, 0..1, as the reader of videos has it."""
    return np.asarray((frames @ np.array([0.299, 0.587, 0.114])).mean((1, 2)) / 255, np.float32)


def exposed(frames: Frames, factor: float, rng: np.random.Generator | None) -> Frames:
    """Frames as a camera takes them in this many times as much light; without a generator, without its noise.

    The curve between light and pixel values is that of IEC 61966-2-1 (sRGB); light above white is cut off.
    """
    values = np.arange(256) / 255
    light = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)[frames] * factor
    if rng is not None:
        light += np.sqrt(light * WELL + READ_NOISE**2) / WELL * rng.normal(size=light.shape)
    light = light.clip(0, 1)
    shown = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(255 * shown), np.uint8)


def curved(frames: Frames, power: float) -> Frames:
    """Frames with every value, 0..1, raised to a power: a dark tone curve instead of less light."""
    return np.asarray(np.rint(255 * (np.arange(256) / 255) ** power)[frames], np.uint8)


def solved(change: Callable[[float], Frames], wanted: float, low: float, high: float) -> float:
    """The strength, between two that enclose it, at which frames reach this brightness."""
    rising = luma(change(high)).mean() > luma(change(low)).mean()
    for _ in range(20):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if (luma(change(middle)).mean() < wanted) == rising else (low, middle)
    return float(np.sqrt(low * high))


def lit(brightness: float) -> Change:
    """More or less light, to this brightness, with the noise of a sensor."""

    def change(frames: Frames, rng: np.random.Generator) -> Frames:
        return exposed(frames, solved(lambda factor: exposed(frames[:1], factor, None), brightness, 1e-4, 1e4), rng)

    return change


def toned(brightness: float) -> Change:
    """A darker tone curve, to this brightness."""
    return lambda frames, _: curved(frames, solved(lambda power: curved(frames[:1], power), brightness, 0.1, 100))


def smaller(share: float) -> Change:
    """The picture made smaller, with its border continued around it."""

    def change(frames: Frames, _: np.random.Generator) -> Frames:
        size = frames.shape[1]
        side = round(share * size)
        gap = (size - side) // 2
        around = (gap, size - side - gap) * 2
        small = [cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA) for frame in frames]
        return np.stack([cv2.copyMakeBorder(one, *around, cv2.BORDER_REPLICATE) for one in small]).astype(np.uint8)

    return change


def blurred(share: float) -> Change:
    """As few pixels as a face that is far away has, enlarged to what the model takes: a share of the side of either."""

    def change(frames: Frames, _: np.random.Generator) -> Frames:
        size = frames.shape[1]
        side = max(1, round(share * size))
        small = [cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA) for frame in frames]
        return np.stack([cv2.resize(one, (size, size), interpolation=cv2.INTER_LINEAR) for one in small]).astype(
            np.uint8
        )

    return change


CHANGES: dict[tuple[str, str], Change] = {
    ("unchanged", "-"): lambda frames, _: frames,
    ("noise of a sensor", "-"): lambda frames, rng: exposed(frames, 1.0, rng),
    **{("less light", f"{level:g}"): lit(level) for level in BRIGHTNESS},
    **{("darker tones", f"{level:g}"): toned(level) for level in BRIGHTNESS},
    **{("overexposed", f"{level:g}"): lit(level) for level in OVEREXPOSED},
    **{("smaller face", f"{share:g}"): smaller(share) for share in SIDES},
    **{("fewer pixels", f"{share:g}"): blurred(share) for share in PIXELS},
}
