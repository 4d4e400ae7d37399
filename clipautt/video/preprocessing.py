"""How a frame becomes the input of the image tower: crop to a square, size, filter, mean and standard deviation.

Resizing uses the filter that the model was trained with. `bicubic` and `bilinear` are Pillow's, which average over
the source pixels when they shrink a picture, as open_clip's own transform does; `area` is OpenCV's.
"""

from __future__ import annotations

from typing import Annotated, Literal

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import Field, PositiveInt

from clipautt.settings import settings

Frames = npt.NDArray[np.uint8]
Interpolation = Literal["bicubic", "bilinear", "area"]
Crop = Literal["centre", "squash"]
Box = tuple[float, float, float, float]
Channels = Annotated[tuple[float, float, float], Field(strict=False)]
"""One number per RGB channel; a list, as JSON has it, becomes a tuple."""
_PILLOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@settings
class Preprocessing:
    """How a frame becomes the input of the image tower."""

    size: PositiveInt
    """Height and width in pixels."""
    mean: Channels
    """Subtracted per RGB channel, on the 0..1 scale."""
    std: Channels
    """Divided by per RGB channel, on the 0..1 scale."""
    interpolation: Interpolation = "bicubic"
    """Resizing filter."""
    crop: Crop = "centre"
    """How a frame is made square: `centre` resizes the shorter side and crops the longer one, `squash` stretches."""


def fit_frame(frame: Frames, preprocessing: Preprocessing) -> Frames:
    """A whole RGB frame [H, W, 3] as the image tower takes it: uint8 [size, size, 3]."""
    height, width = frame.shape[:2]
    if preprocessing.crop == "squash":
        return resize(frame, (0, 0, width, height), preprocessing.size, preprocessing.interpolation)
    if preprocessing.interpolation == "area":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return resize(frame, (left, top, left + side, top + side), preprocessing.size, preprocessing.interpolation)
    box = _central_square(height, width, preprocessing.size)
    return resize(frame, box, preprocessing.size, preprocessing.interpolation)


def _central_square(height: int, width: int, size: int) -> Box:
    """The part of a frame that remains when its shorter side is resized to `size` and its middle is cropped.

    open_clip resizes to whole pixels, so the scale of the longer side is not exactly that of the shorter one.
    """
    short = min(height, width)
    high, wide = (int(size * side / short) for side in (height, width))
    top, left = round((high - size) / 2), round((wide - size) / 2)
    down, right = height / high, width / wide
    return left * right, top * down, (left + size) * right, (top + size) * down


def resize(frame: Frames, box: Box, size: int, interpolation: Interpolation) -> Frames:
    """Resize a part of an RGB frame to a square.

    Args:
        frame: uint8 [H, W, 3].
        box: left, top, right and bottom in pixels, inside the frame; `area` takes whole numbers.
        size: of the square in pixels.
        interpolation: the filter.

    Returns:
        uint8 [size, size, 3].
    """
    left, top, right, bottom = box
    if interpolation != "area":
        picture = Image.fromarray(frame)
        return np.array(picture.resize((size, size), _PILLOW[interpolation], box=box))
    part = frame[int(top) : int(bottom), int(left) : int(right)]
    if part.shape[:2] == (size, size):
        return part.copy()
    enlarging = min(part.shape[:2]) < size
    resized = cv2.resize(part, (size, size), interpolation=cv2.INTER_LINEAR if enlarging else cv2.INTER_AREA)
    return np.asarray(resized, np.uint8)
