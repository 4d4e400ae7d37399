"""Pictures as clips: a folder of numbered or timed pictures, and animated WebP and PNG.

In: a folder or a file. Out: pictures with their number and time. OpenCV decodes the pictures of folders, Pillow those
of animated files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from clipautt.video.containers import DecodeError, check_pixels
from clipautt.video.preprocessing import Frames

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
"""Suffixes of the frames in a folder."""
FILES = PICTURES | {".apng"}
"""Suffixes of files that are pictures themselves; the animated ones are clips."""
_NUMBER = re.compile(r"\d+(?!.*\d)")
_SECONDS = re.compile(r"(?P<before>(?:.*[^\d.,])?)(?P<whole>\d+)(?:[.,](?P<part>\d+))?s?")
_COPY = re.compile(r"(?P<name>.+?)(?: ?\(\d+\)| - [^\W\d].*| copy(?: \d+)?)", re.IGNORECASE)
_Number = TypeVar("_Number", int, float)
_FASTEST = 1000.0
"""Pictures per second; names whose decimal numbers are closer together are not times."""


def list_frames(folder: Path, frames_per_second: float) -> list[tuple[int, float, Path]]:
    """The pictures of a folder in order: 2 before 10.

    The last number in a name says when its picture was taken. Where the names are decimal numbers, as in `0.04.jpg`,
    they are seconds.

    Args:
        folder: with pictures, and perhaps other files.
        frames_per_second: whole numbers in names that make up a second.

    Returns:
        Number, seconds and path of each. The number is that in the name, or counts from 0 where names are seconds.

    Raises:
        DecodeError: for a folder without pictures, or a picture without a number, with another's, or that is a copy.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES and path.name[0] != ".")
    if not paths:
        raise DecodeError("no pictures in the folder")
    _check_copies(paths)
    seconds = _seconds(paths)
    if seconds is not None:
        timed = _by_number(paths, seconds)
        return [(number, time, path) for number, (time, path) in enumerate(timed)]
    numbers = []
    for path in paths:
        match = _NUMBER.search(path.stem)
        if match is None:
            raise DecodeError(f"{path.name} has no number in its name; the number says when a frame was taken")
        numbers.append(int(match[0]))
    return [(number, number / frames_per_second, path) for number, path in _by_number(paths, numbers)]


def _check_copies(paths: Sequence[Path]) -> None:
    there = {path.name: path for path in paths}
    for path in paths:
        match = _COPY.fullmatch(path.stem)
        original = there.get(f"{match['name']}{path.suffix}") if match else None
        if original is not None and _NUMBER.search(original.stem):
            raise DecodeError(f"{path.name} looks like a copy of {original.name}; remove one of them")


def _seconds(paths: Sequence[Path]) -> list[float] | None:
    """The times in names that are decimal seconds; None where numbers are whole, or count the pictures of a take.

    `2.1`, `2.2`, … `2.10` and `2.0001`, `2.0002` are pictures of take 2, not seconds.
    """
    matches = [match for path in paths if (match := _SECONDS.fullmatch(path.stem))]
    if len(matches) < len(paths) or len({match["before"] for match in matches}) > 1:
        return None
    if not any(match["part"] for match in matches):
        return None
    wholes, parts = ({match[name] for match in matches} for name in ("whole", "part"))
    counted = sorted(int(part) for part in parts if part)
    if len(wholes) == 1 and int(*wholes) > 0 and counted == list(range(counted[0], counted[0] + len(matches))):
        return None
    times = [float(f"{match['whole']}.{match['part'] or 0}") for match in matches]
    steps = np.diff(np.unique(times))
    return None if len(steps) and np.median(steps) < 1 / _FASTEST else times


def _by_number(paths: Sequence[Path], numbers: Sequence[_Number]) -> list[tuple[_Number, Path]]:
    numbered: dict[_Number, Path] = {}
    for number, path in zip(numbers, paths, strict=True):
        if number in numbered:
            raise DecodeError(f"{numbered[number].name} and {path.name} have the same number")
        numbered[number] = path
    return sorted(numbered.items())


def read_image(path: Path, *, max_pixels: int | None = None) -> Frames:
    """A picture as RGB uint8 [H, W, 3], turned upright if its metadata say how.

    Raises:
        DecodeError: if it cannot be read or is too large.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as header:  # the size, before OpenCV decodes
            check_pixels(*header.size, max_pixels)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise DecodeError(f"{path.name} is not a picture that can be read") from error
    pixels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise DecodeError(f"{path.name} is damaged")
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8)


def animation(path: Path, max_pixels: int | None, on_frame: Callable[[], None]) -> Iterator[tuple[int, float, Frames]]:
    """Number, seconds and pixels of each picture of an animated WebP or PNG, on white where it is transparent.

    Raises:
        DecodeError: for a still picture, and one that cannot be read or is too large.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            check_pixels(*picture.size, max_pixels)
            count = getattr(picture, "n_frames", 1)
            if count < 2 or picture.format not in ("PNG", "WEBP"):
                raise DecodeError(
                    f"a still picture ({picture.format}); a clip is a video, an animated WebP or PNG, "
                    "or a folder of numbered pictures"
                )
            time = 0.0
            for number in range(count):
                picture.seek(number)
                layers = picture.convert("RGBA")
                shown = Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
                on_frame()
                yield number, time, np.asarray(shown, np.uint8)
                time += max(0.0, float(picture.info.get("duration", 0.0))) / 1000
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DecodeError("it is not a picture that can be read, or damaged") from error
