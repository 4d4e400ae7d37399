"""Pictures of what face tracking did: the video with the crop drawn in, and a contact sheet of the crops.

Frames are drawn and encoded one at a time, so a long video needs no more memory than a short one.

Colours: Okabe and Ito, *Color Universal Design* (2008), https://jfly.uni-koeln.de/color/.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import IO

import av
import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from clipautt.files import atomic
from clipautt.video.preprocessing import Frames
from clipautt.video.tracks import FaceTrack

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
SHEET_CROPS = 48
"""The most crops on a contact sheet."""

_FOUND, _MISSING = (86, 180, 233), (213, 94, 0)
_INK, _PAPER, _FAINT = (34, 34, 34), (255, 255, 255), (217, 217, 217)
_OPTIONS = {"crf": "20", "preset": "veryfast"}
_TICKS = 1000
"""Time stamps per second."""
_FINE = 4
"""OpenCV draws at sixteenths of a pixel: 4 binary places."""
_TILE, _COLUMNS, _GAP, _FRAME = 128, 8, 10, 4
"""Side of a crop on the sheet in pixels, crops in a row, pixels between them, and width of their borders."""
_CELL = _TILE + 2 * _FRAME + _GAP
_ROW, _HEADER, _LEAST_WIDTH = _CELL + 18, 64, 500


def write_annotated_video(
    path: str | Path,
    frames: Iterable[tuple[float, Frames]],
    track: FaceTrack,
    *,
    others: Sequence[FaceTrack] = (),
    longest: int = 960,
) -> Path:
    """Write the video with the crop, the line between the eyes and the time drawn in.

    Blue marks a frame in which the face was found, orange a frame whose crop is inferred from other frames, grey the
    faces of others. The file appears when it is complete.

    Args:
        path: mp4 file to write (H.264).
        frames: seconds and RGB frame, uint8 [H, W, 3], in order; as many as the track has.
        track: where the face is.
        others: where the faces are that are left out.
        longest: larger frames are reduced to this longer side in pixels.

    Returns:
        The path.

    Raises:
        ValueError: when there are more or fewer frames than the track has.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic(target) as temporary:
        with temporary.open("wb") as file:
            count = _encode(file, frames, (track, *others), longest)
        if count != len(track.side):
            raise ValueError(f"frames has {count} frames, but track has {len(track.side)}; the same number is needed")
    return target


def _encode(file: IO[bytes], frames: Iterable[tuple[float, Frames]], tracks: Sequence[FaceTrack], longest: int) -> int:
    """Encode the frames and return their number; those beyond the track's are counted, not written."""
    count, shown, first = 0, -1, 0.0
    track, *others = tracks
    with av.open(file, "w", format="mp4") as container:
        stream = None
        for count, (seconds, frame) in enumerate(frames, start=1):
            if count > len(track.side):
                continue
            if stream is None:
                first = seconds
                stream = container.add_stream("libx264", rate=_TICKS, options=_OPTIONS)
                stream.width, stream.height = _even_size(frame.shape[1], frame.shape[0], longest)
                stream.pix_fmt = "yuv420p"
                stream.codec_context.time_base = Fraction(1, _TICKS)
            size = stream.width, stream.height
            drawn = np.array(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
            for other in others:
                _draw_other(drawn, other, count - 1, np.array(size) / frame.shape[1::-1])
            drawn = _annotate(drawn, seconds, track, count - 1, np.array(size) / frame.shape[1::-1])
            picture = av.VideoFrame.from_ndarray(drawn, format="rgb24")
            shown = picture.pts = max(shown + 1, round((seconds - first) * _TICKS))
            picture.time_base = Fraction(1, _TICKS)
            container.mux(stream.encode(picture))
        if stream is not None:
            container.mux(stream.encode(None))
    return count


def _even_size(width: int, height: int, longest: int) -> tuple[int, int]:
    """Width and height for H.264, which takes even numbers only."""
    factor = min(1.0, longest / max(width, height))
    return max(2, 2 * round(width * factor / 2)), max(2, 2 * round(height * factor / 2))


def _draw_other(drawn: Frames, track: FaceTrack, index: int, scale: npt.NDArray[np.float64]) -> None:
    if track.found[index]:
        draw_lines(
            drawn, crop_corners(track, index) * scale, _FAINT, max(1, round(max(drawn.shape) / 800)), closed=True
        )


def _annotate(drawn: Frames, seconds: float, track: FaceTrack, index: int, scale: npt.NDArray[np.float64]) -> Frames:
    found = bool(track.found[index])
    colour, width = (_FOUND if found else _MISSING), max(1, round(max(drawn.shape) / 400))
    if track.shown[index]:
        draw_lines(drawn, crop_corners(track, index) * scale, colour, width, closed=True)
    if np.isfinite(track.eyes[index]).all():
        draw_lines(drawn, track.eyes[index] * scale, colour, width)
        for eye in track.eyes[index] * scale:
            draw_lines(drawn, np.stack([eye, eye]), colour, 3 * width)
    text = f"{seconds:.2f} s" if found else f"{seconds:.2f} s   no face found"
    return _caption(drawn, text, colour)


def crop_corners(track: FaceTrack, index: int) -> npt.NDArray[np.float64]:
    """Corners of a frame's crop in pixels, float64 [4, 2]: upper left, upper right, lower right, lower left."""
    return square_corners(track.centre[index], float(track.side[index]), float(track.angle[index]))


def square_corners(centre: npt.NDArray[np.floating], side: float, angle: float) -> npt.NDArray[np.float64]:
    """Corners of a square that is turned clockwise by `angle` radians, as `crop_corners`."""
    cos, sin = np.cos(angle), np.sin(angle)
    square = (np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) - 0.5) * side
    turned: npt.NDArray[np.float64] = square @ np.array([[cos, sin], [-sin, cos]]) + centre
    return turned


def draw_lines(
    picture: Frames, points: npt.NDArray[np.float64], colour: Colour, width: int, *, closed: bool = False
) -> None:
    """Draw lines through points [n, 2] into the picture, dark below and coloured on top, so that they show on any
    background."""
    fixed = np.round((points - 0.5) * 2**_FINE).astype(np.int32)
    for ink, extra in ((_INK, 2), (colour, 0)):
        cv2.polylines(picture, [fixed], closed, ink, width + extra, cv2.LINE_AA, _FINE)


def _caption(picture: Frames, text: str, colour: Colour) -> Frames:
    """The picture with a line of text in its upper left corner."""
    size = max(10, round(max(picture.shape) / 36))
    font, image = _font(size), Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    width = draw.textlength(text, font)
    draw.rectangle((0, 0, width + 2 * size, 1.9 * size), fill=_INK)
    draw.rectangle((0, 0, size / 3, 1.9 * size), fill=colour)
    draw.text((size, 0.95 * size), text, _PAPER, font, anchor="lm")
    return np.asarray(image)


def evenly_chosen(count: int, limit: int = SHEET_CROPS) -> list[int]:
    """Indices of at most `limit` of `count` frames, spread evenly, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).round().astype(int)).tolist() if count else []


def draw_contact_sheet(
    crops: Sequence[Frames],
    times: Sequence[float],
    found: Sequence[bool],
    path: str | Path,
    *,
    title: str = "",
) -> Path:
    """Write crops in the order of time as one PNG; those without a face have an orange border.

    Args:
        crops: RGB, uint8 [size, size, 3] each; of more than 48, 48 are shown, spread evenly.
        times: time of each crop in seconds.
        found: whether the face was found there.
        path: PNG file to write.
        title: heading; by default the number of frames in which the face was found.

    Returns:
        The path.

    Raises:
        ValueError: when there are no crops, or not one time and one mark for each.
    """
    if not len(crops) or not len(crops) == len(times) == len(found):
        raise ValueError(
            f"there are {len(crops)} crops, {len(times)} times and {len(found)} marks; "
            "one of each is needed per frame, and at least one frame"
        )
    chosen = evenly_chosen(len(crops))
    columns = min(_COLUMNS, len(chosen))
    width = max(_GAP + columns * _CELL, _LEAST_WIDTH)
    sheet = Image.new("RGB", (width, _HEADER + -(-len(chosen) // columns) * _ROW + _GAP), _PAPER)
    draw, font = ImageDraw.Draw(sheet), _font(17)
    counted = f"Face found in {sum(map(bool, found))} of {len(found)} frames"
    draw.text((_GAP, 20), _fitting(draw, title or counted, font, width - 2 * _GAP), _INK, font, anchor="lm")
    _legend(draw, (_GAP, 46))
    for number, index in enumerate(chosen):
        place = _GAP + number % columns * _CELL, _HEADER + number // columns * _ROW
        _tile(sheet, place, crops[index], f"{times[index]:.2f} s", found=bool(found[index]))
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic(target) as temporary:
        sheet.save(temporary, format="PNG")
    return target


def _tile(sheet: Image.Image, place: tuple[int, int], crop: Frames, text: str, *, found: bool) -> None:
    draw, (left, top) = ImageDraw.Draw(sheet), place
    outer = _TILE + 2 * _FRAME
    draw.rectangle((left, top, left + outer - 1, top + outer - 1), fill=_FAINT if found else _MISSING)
    sheet.paste(Image.fromarray(crop).resize((_TILE, _TILE), Image.Resampling.LANCZOS), (left + _FRAME, top + _FRAME))
    draw.text((left + outer / 2, top + outer + 10), text, _INK if found else _MISSING, _font(13), anchor="mm")


def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _legend(draw: ImageDraw.ImageDraw, place: tuple[int, int]) -> None:
    font, (x, y) = _font(13), place
    for colour, text in ((_FAINT, "face found"), (_MISSING, "not found: cropped where it should be, or whole frame")):
        draw.rectangle((x, y - 6, x + 12, y + 6), outline=colour, width=_FRAME)
        draw.text((x + 20, y), text, _INK, font, anchor="lm")
        x += 20 + round(draw.textlength(text, font)) + 24


def _fitting(draw: ImageDraw.ImageDraw, text: str, font: Font, width: float) -> str:
    """The text, its end cut off where it is wider than `width` pixels."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(f"{text}…", font) > width:
        text = text[:-1]
    return f"{text}…"
