"""The frames of an overlay: the video with the face's box, between the text and the curves, with a cursor in them,
and a bar for each AU.

In: a `Plan`, whose text and curves are drawn, and the frames of the video. Out: an MP4 file (H.264). Each frame is
drawn and encoded alone, so memory does not grow with the length of the video.

`write_frames` runs in the decoding process, see `reader_process.work_on_clip`; this module imports neither torch nor
matplotlib, which would delay that process.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
from av.video.reformatter import Colorspace
from PIL import Image, ImageDraw, ImageFont

from clipautt.clips import Clip
from clipautt.evaluation.reports.face_sheet import Colour, draw_lines, square_corners
from clipautt.video.decoding import DecodeError, Decoder, Sampling, stream_clip
from clipautt.video.preprocessing import Frames

_INK, _PAPER, _EMPTY = (34, 34, 34), (255, 255, 255), (232, 232, 232)
_AHEAD = 0.6
"""Strength of the charts right of the cursor: what is to come is pale."""
_MOST_ENLARGED = 8.0
"""The factor by which small frames are enlarged at most."""
_LONGEST_GAP = 0.5
"""Seconds between two looks at the face up to which its box moves evenly from one place to the other."""
_OPTIONS = {"crf": "20", "preset": "veryfast", "g": "60", "bf": "0"}
"""Without frames that refer to later ones, so that players show the last frame for as long as it is told."""
_FAST_START = {"movflags": "+faststart"}
"""The index comes first, so that a browser begins before it has the whole file."""
_TICKS = 90_000
"""Time stamps per second."""
_USUAL_RATE = 25
_BT709, _LIMITED = 1, 1
"""FFmpeg's numbers of the colours of BT.709 and of video levels, 16 to 235."""
MADE = "clipautt overlay"
"""The comment in the head of every file, by which it is known."""


@dataclass(frozen=True, repr=False)
class Plan:
    """What is drawn around and into the frames; all values are JSON's."""

    png: str
    """Text and charts, PNG in base64."""
    header: int
    """Rows above the picture; the others go below it."""
    left: float
    """Column of the time 0 in the charts."""
    right: float
    """Column of `end_seconds`."""
    end_seconds: float
    """End of the time axis."""
    charts: list[tuple[int, int, bool]]
    """First and last row of each chart, counted in the PNG, from top to bottom, and whether it shows curves."""
    moments: list[float]
    """Seconds of the values of the curves."""
    curves: list[tuple[list[float], Colour]]
    """Rows of each curve's values in the PNG, nan where there is none, and its colour."""
    bars: list[tuple[int, int, list[float], Colour]]
    """Each AU's bar: its first row in the PNG and the one after its last, its values at the moments, nan where there is
    none, and its colour. All have one scale and one zero line."""
    bar_columns: tuple[int, int]
    """First column of the bars, and the one after the last."""
    reach: float
    """Seconds by which the first and the last moment speak for the time before and after: half a window."""
    times: list[float]
    """Seconds at which the face was looked for."""
    boxes: list[list[float]]
    """The face's box at each of them, the first four values of `reader.BOX`; nan where there is none."""
    states: list[str]
    """What is said of the face at each of them."""
    colours: dict[str, Colour]
    """State → colour of the box."""
    font: str
    """Path of the font."""
    highest: int = 640
    """Pixels of the picture's height at most."""
    rate: float | None = None
    """Frames per second at most; None: all. Others are left out."""

    def colour(self, state: str) -> Colour:
        """The colour of the box in this state."""
        red, green, blue = self.colours.get(state, _PAPER)  # JSON has made a list of it
        return red, green, blue


def write_frames(clip: Clip, *, target: str, plan: dict[str, Any], decoder: Decoder, **decoding: Any) -> int:
    """The work of the decoding process: draw and encode all frames of the clip.

    PyAV reads the files that decord would read, and gives the same frames: beside an encoder decord decodes ahead
    without a limit, and memory grows by gigabytes.

    Args:
        clip: the video.
        target: MP4 file that is written; one of a decoder that failed is overwritten.
        plan: fields of a `Plan`.
        decoder: of `stream_clip`, as are `max_pixels` and `on_frame` in `decoding`.
        decoding: the latter two.

    Returns:
        The number of frames.
    """
    decoder = "pyav" if decoder == "decord" else decoder
    made = Plan(**plan)
    canvas, writer, count = _Canvas(made), None, 0
    with _written(target) as container:
        for seconds, frame in stream_clip(clip, Sampling(made.rate), decoder=decoder, **decoding):
            drawn = canvas.draw(seconds, frame)
            writer = writer or _Writer(container, drawn)
            writer.write(seconds, drawn)
            count += 1
        if writer is None:
            raise DecodeError("no frames in the span")
        writer.finish()
    decoding["on_frame"]()
    return count


@contextmanager
def _written(target: str) -> Iterator[Any]:
    """A new MP4 file, opened by Python, as FFmpeg takes names in UTF-8 only; to move the index to the front, FFmpeg
    reads what it has written."""

    def again(url: str, flags: int, options: Any) -> Any:
        del url, flags, options
        return open(target, "rb")

    number = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)  # a file of this kind has no name
    with (
        open(number, "wb", buffering=0) as file,
        av.open(file, "w", format="mp4", container_options=_FAST_START, io_open=again) as container,
    ):
        container.metadata["comment"] = MADE
        yield container


class _Writer:
    """Encodes pictures with their times."""

    def __init__(self, container: Any, first: Frames) -> None:
        self.container, self.shown, self.gap = container, -1, _TICKS // _USUAL_RATE
        self.gaps: dict[int, int] = {}
        stream = self.stream = container.add_stream("libx264", rate=_USUAL_RATE, options=_OPTIONS)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        codec = stream.codec_context
        codec.time_base = Fraction(1, _TICKS)
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
        codec.color_range = _LIMITED

    def write(self, seconds: float, picture: Frames) -> None:
        """Encode one picture; the first is shown from the beginning of the file."""
        rgb = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame = rgb.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=_LIMITED, threads=1)
        stamp = 0 if self.shown < 0 else max(self.shown + 1, round(seconds * _TICKS))
        self.gap = stamp - self.shown if self.shown >= 0 else self.gap
        self.shown = frame.pts = stamp
        self.gaps[stamp], frame.time_base = self.gap, Fraction(1, _TICKS)
        self._mux(self.stream.encode(frame))

    def finish(self) -> None:
        """Encode what is held back."""
        self._mux(self.stream.encode(None))

    def _mux(self, packets: Sequence[Any]) -> None:
        """A picture stays for as long as the one before: what counts is the last, which would be gone at once."""
        for packet in packets:
            packet.duration = self.gaps.pop(packet.pts, self.gap)
            self.container.mux(packet)


class _Canvas:
    """Text, picture and charts from top to bottom, as one picture that is drawn over for each frame."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        with Image.open(io.BytesIO(base64.b64decode(plan.png))) as image:
            still = np.asarray(image.convert("RGB"), np.uint8)
        self.header, self.charts = still[: plan.header], still[plan.header :]
        self.pale = np.asarray(255 - (255 - self.charts) * _AHEAD, np.uint8)
        self.moments = np.array(plan.moments, np.float64)
        self.curves = [(np.array(rows, np.float64) - plan.header, tuple(ink)) for rows, ink in plan.curves]
        self.bars = [_Bar(plan, *bar) for bar in plan.bars]
        self.track = _Track(plan)
        self.pixels: Frames = still[:0]
        self.height = 0

    def draw(self, seconds: float, frame: Frames) -> Frames:
        """The canvas at a time, RGB uint8 [H, W, 3]; it is overwritten by the next call."""
        if not self.height:
            self._begin(frame)
        first = len(self.header)
        box, state = self.track.at(seconds)
        self._draw_picture(self.pixels[first : first + self.height], frame, box, self.plan.colour(state))
        self._draw_charts(self.pixels[first + self.height :], seconds)
        for bar in self.bars:
            bar.draw(self.pixels[first + self.height :], seconds)
        self._say(self.pixels[first + self.height :], seconds, state)
        return self.pixels

    def _begin(self, frame: Frames) -> None:
        """Room for pictures as high as the first one."""
        width = self.header.shape[1]
        factor = min(width / frame.shape[1], self.plan.highest / frame.shape[0], _MOST_ENLARGED)
        self.height = max(2, 2 * round(frame.shape[0] * factor / 2))
        self.pixels = np.empty((len(self.header) + self.height + len(self.charts), width, 3), np.uint8)
        self.pixels[: len(self.header)] = self.header

    def _draw_picture(self, room: Frames, frame: Frames, box: npt.NDArray[np.float64], colour: Colour) -> None:
        """The frame with the box, as large as the room allows, in its middle."""
        high, wide = room.shape[:2]
        factor = min(wide / frame.shape[1], high / frame.shape[0])
        size = max(1, round(frame.shape[1] * factor)), max(1, round(frame.shape[0] * factor))
        way = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
        picture = np.asarray(cv2.resize(frame, size, interpolation=way), np.uint8)
        if np.isfinite(box).all():
            x, y, side, tilt = box.tolist()
            corners = square_corners(np.array([x, y]) + side / 2, side, math.radians(tilt))
            draw_lines(picture, corners * (np.array(size) / frame.shape[1::-1]), colour, 3, closed=True)
        left, top = (wide - size[0]) // 2, (high - size[1]) // 2
        room[:] = _INK
        room[top : top + size[1], left : left + size[0]] = picture

    def _draw_charts(self, room: Frames, seconds: float) -> None:
        """The charts, pale right of the cursor, and a dot where each curve meets it."""
        plan = self.plan
        share = min(max(seconds / plan.end_seconds, 0.0), 1.0)
        place = plan.left + share * (plan.right - plan.left)
        column = round(place)
        room[:] = self.charts
        for first, last, curves in plan.charts:
            rows = slice(first - plan.header, last - plan.header)
            ahead = (rows, slice(column, round(plan.right) + 2))
            if curves:
                room[ahead] = self.pale[ahead]
            cv2.line(room, (column, rows.start - 3), (column, rows.stop), _INK, 2)
        for values, ink in self.curves:
            row = float(np.interp(seconds, self.moments, values, left=math.nan, right=math.nan))
            if math.isfinite(row):
                cv2.circle(room, (round(place * 16), round(row * 16)), 5 * 16, _PAPER, -1, cv2.LINE_AA, 4)
                cv2.circle(room, (round(place * 16), round(row * 16)), 4 * 16, ink, -1, cv2.LINE_AA, 4)

    def _say(self, room: Frames, seconds: float, state: str) -> None:
        """Time and state of the face, above the charts."""
        line = room[: self.plan.charts[0][0] - self.plan.header - 4, : round(self.plan.right)]
        image = Image.fromarray(line)
        draw, font = ImageDraw.Draw(image), _font(self.plan.font)
        draw.text((14, len(line) / 2 + 2), f"{seconds:.2f} s", _INK, font, anchor="lm")
        if state:
            middle = len(line) / 2 + 2
            draw.rectangle((104, middle - 6, 116, middle + 6), outline=self.plan.colour(state), width=3)
            draw.text((124, middle), state, _INK, font, anchor="lm")
        line[:] = np.asarray(image)


class _Bar:
    """The rise of an AU over its usual level at a time: right of the zero line, or left of it where it fell."""

    def __init__(self, plan: Plan, first: int, last: int, values: list[float], colour: Colour) -> None:
        self.rows = slice(first - plan.header, last - plan.header)
        self.columns = plan.bar_columns
        self.moments, self.values, self.colour = np.array(plan.moments), np.array(values, np.float64), tuple(colour)
        self.reach = plan.reach
        known = [value for bar in plan.bars for value in bar[2] if math.isfinite(value)]
        self.low, self.high = min(0.0, *known), max(0.0, *known)

    def draw(self, room: Frames, seconds: float) -> None:
        """Draw it at a time into the rows of the charts; only its track where there is no value."""
        room[self.rows, slice(*self.columns)] = _EMPTY
        value, zero = self.at(seconds), self.column(0.0)
        if math.isfinite(value):
            room[self.rows, slice(*sorted((zero, self.column(value))))] = self.colour
        room[self.rows.start - 1 : self.rows.stop + 1, zero - 1 : zero + 1] = _INK

    def at(self, seconds: float) -> float:
        """The value at a time; nan where no window speaks for it."""
        if not self.moments[0] - self.reach <= seconds <= self.moments[-1] + self.reach:
            return math.nan
        return float(np.interp(seconds, self.moments, self.values))

    def column(self, value: float) -> int:
        """Where a value lies."""
        left, right = self.columns[0] + 1, self.columns[1] - 1
        return round(left + (right - left) * (value - self.low) / (self.high - self.low))


class _Track:
    """Where the face is at any time, given where it is at some."""

    def __init__(self, plan: Plan) -> None:
        self.times = np.array(plan.times, np.float64)
        self.boxes = np.array(plan.boxes, np.float64).reshape(-1, 4)
        self.states: Sequence[str] = plan.states

    def at(self, seconds: float) -> tuple[npt.NDArray[np.float64], str]:
        """Box and state at a time: between two looks that are close in time the box moves evenly."""
        before = max(0, int(np.searchsorted(self.times, seconds + 1e-3, side="right")) - 1)
        after = min(before + 1, len(self.times) - 1)
        gap = self.times[after] - self.times[before]
        share = float(np.clip((seconds - self.times[before]) / gap, 0, 1)) if gap > 0 else 0.0
        state = self.states[after if share > 0.5 else before]
        box, other = self.boxes[before], self.boxes[after]
        if gap > _LONGEST_GAP or not np.isfinite(box).all() or not np.isfinite(other).all():
            return (other if share > 0.5 else box), state
        return box + share * (other - box), state


@lru_cache(maxsize=4)
def _font(path: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, 14)
