"""Frames as players show them: turned, mirrored, square, in standard range; and a word where that is not possible."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from av.video.reformatter import ColorPrimaries, ColorTrc

from clipautt.clips import Clip
from clipautt.video.decoding import DecodeError, Sampling, stream_clip
from clipautt.video.display import standard_range
from clipautt.video.preprocessing import Preprocessing
from clipautt.video.reader import FrameSpec
from clipautt.video.reader_process import read_clip, read_frames
from tests.support.fakes import numbered_frames, read_number, write_video

EVERY = Sampling(None)


def read(path: Path, **options: Any) -> tuple[list[npt.NDArray[np.uint8]], list[str]]:
    """Frames and notes; decord must refuse the file."""
    clip = Clip("c", "s", str(path), "target")
    with pytest.raises(DecodeError, match="its pictures are shown other than they are stored"):
        list(stream_clip(clip, EVERY, decoder="decord"))
    notes: list[str] = []
    frames = [frame for _, frame in stream_clip(clip, EVERY, decoder="pyav", on_note=notes.append, **options)]
    return frames, notes


def marked(height: int = 64, width: int = 96) -> npt.NDArray[np.uint8]:
    """Frames with a red mark at the top left, a green one at the top right and a blue one at the bottom left."""
    frames = np.full((3, height, width, 3), 20, np.uint8)
    frames[:, :16, :16], frames[:, :16, -16:], frames[:, -16:, :16] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    return frames


def corners(frame: npt.NDArray[np.uint8]) -> str:
    """The marks at the top left, top right, bottom left and bottom right: r, g, b, or a dot for none."""
    seen = [frame[y, x] for y in (6, -7) for x in (6, -7)]
    return "".join("rgb"[int(pixel.argmax())] if pixel.max() > 120 else "." for pixel in seen)


def with_matrix(path: Path, matrix: tuple[float, float, float, float], **options: Any) -> Path:
    """A video whose display matrix is (a, b, c, d)."""
    a, b, c, d = (round(value * (1 << 16)) for value in matrix)
    return write_video(path, marked(), matrix=(a, b, 0, c, d, 0, 0, 0, 1 << 30), **options)


EIGHT = {
    "half turn": ((-1, 0, 0, -1), ".bgr"),
    "quarter turn clockwise": ((0, 1, -1, 0), "br.g"),
    "quarter turn counter-clockwise": ((0, -1, 1, 0), "g.rb"),
    "mirrored": ((-1, 0, 0, 1), "gr.b"),
    "upside down": ((1, 0, 0, -1), "b.rg"),
    "mirrored and turned": ((0, 1, 1, 0), "rbg."),
    "mirrored and turned back": ((0, -1, -1, 0), ".gbr"),
}


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
@pytest.mark.parametrize("how", EIGHT)
def test_turned_and_mirrored(tmp_path: Path, how: str, suffix: str) -> None:
    """Front cameras mirror, and phones store a picture as the sensor saw it."""
    matrix, right = EIGHT[how]
    frames, notes = read(with_matrix(tmp_path / f"phone.{suffix}", matrix))
    assert [corners(frame) for frame in frames] == [right] * 3 and notes == []
    assert frames[0].shape == ((64, 96, 3) if matrix[0] else (96, 64, 3))


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_phone_that_was_turned(tmp_path: Path, degrees: int) -> None:
    stored = np.ascontiguousarray(np.rot90(marked(), -degrees // 90, axes=(1, 2)))
    frames, _ = read(write_video(tmp_path / "turned.mkv", stored, rotation=degrees))
    assert [corners(frame) for frame in frames] == ["rgb."] * 3


def test_any_other_angle_is_shown_with_black_corners_and_a_word(tmp_path: Path) -> None:
    turn = math.radians(30)
    path = with_matrix(tmp_path / "tilted.mp4", (math.cos(turn), math.sin(turn), -math.sin(turn), math.cos(turn)))
    frames, notes = read(path)
    assert notes == ["the file says to turn its pictures by 30 degrees; the corners are black"]
    assert frames[0].shape == (round(96 * 0.5 + 64 * 0.866), round(96 * 0.866 + 64 * 0.5), 3)
    assert frames[0][0, 0].max() == 0
    # Turned back, it is the stored picture: the red mark's middle, at (8, 8) of 96 × 64, is where a turn puts it.
    x, y = (np.array([[0.866, -0.5], [0.5, 0.866]]) @ [8, 8] + [64 * 0.5, 0]).round().astype(int)
    assert frames[0][y, x, 0] > 200 and frames[0][y, x, 1:].max() < 60


def test_a_matrix_that_shows_nothing_is_passed_over(tmp_path: Path) -> None:
    path = with_matrix(tmp_path / "zero.mp4", (0, 0, 0, 0))
    clip = Clip("c", "s", str(path), "target")
    for decoder in ("decord", "pyav"):
        frames = [frame for _, frame in stream_clip(clip, EVERY, decoder=decoder)]  # type: ignore[arg-type]
        assert [corners(frame) for frame in frames] == ["rgb."] * 3


@pytest.mark.parametrize("name", ["wide.mp4", "wide.mkv", "wide.mov"])
def test_pixels_that_are_not_square(tmp_path: Path, name: str) -> None:
    """64 × 96 pixels, twice as wide as high, are shown as 128 × 96; half as wide, as 64 × 192."""
    for aspect, shape in ((Fraction(2), (96, 128, 3)), (Fraction(1, 2), (192, 64, 3)), (Fraction(16, 11), (96, 93, 3))):
        path = write_video(tmp_path / name, numbered_frames(5, height=96, width=64), pixel_aspect=aspect)
        frames, notes = read(path)
        assert {frame.shape for frame in frames} == {shape} and notes == []
        assert [read_number(frame) for frame in frames] == [0, 1, 2, 3, 4]
        with pytest.raises(DecodeError, match="at most 6,144 pixels are decoded"):
            read(path, max_pixels=64 * 96)


def test_pixels_are_made_square_before_they_are_turned(tmp_path: Path) -> None:
    frames, _ = read(with_matrix(tmp_path / "both.mp4", (0, 1, -1, 0), pixel_aspect=Fraction(2)))
    assert frames[0].shape == (192, 64, 3)


def test_pixels_that_are_nearly_square_are_left_as_they_are(tmp_path: Path) -> None:
    path = write_video(tmp_path / "nearly.mp4", numbered_frames(5), pixel_aspect=Fraction(181, 182))
    frames = [frame for _, frame in stream_clip(Clip("c", "s", str(path), "target"), EVERY, decoder="decord")]
    assert {frame.shape for frame in frames} == {(64, 64, 3)}


def test_a_shape_of_pixels_that_cannot_be_is_not_believed(tmp_path: Path) -> None:
    frames, notes = read(write_video(tmp_path / "odd.mkv", numbered_frames(5), pixel_aspect=Fraction(64)))
    assert frames[0].shape == (64, 64, 3)
    assert notes == ["the file says that its pixels are 64 as wide as they are high, which is not believed"]


def write_grey(path: Path, signals: list[float], *, trc: int, primaries: int, matrix: int) -> Path:
    """Ten-bit HEVC with one frame per signal, a grey of that share of the range."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx265", rate=25, options={"x265-params": "log-level=none:qp=4"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace, context.color_range = trc, primaries, matrix, 1
        for signal in signals:
            frame = av.VideoFrame(64, 64, "yuv420p10le")
            for plane, value in zip(frame.planes, (round(64 + 876 * signal), 512, 512), strict=True):
                plane.update(np.full(plane.buffer_size // 2, value, np.uint16).tobytes())
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


GREYS = {
    # Reference white, 203 cd/m², is 75 % of HLG and 58.07 % of PQ: white but for what the highlights take.
    # A quarter and a twentieth of it: (1/4)^(1/2.4) and (1/20)^(1/2.4) of 255.
    "hlg": (ColorTrc.ARIB_STD_B67, [0.0, 0.2538, 0.5005, 0.75, 1.0], [0, 73, 143, 248, 255]),
    "pq": (ColorTrc.SMPTE2084, [0.0, 0.3038, 0.4401, 0.5807, 0.7518], [0, 73, 143, 248, 255]),
}


@pytest.mark.parametrize("kind", GREYS)
def test_hdr_becomes_standard_range(tmp_path: Path, kind: str) -> None:
    trc, signals, right = GREYS[kind]
    path = write_grey(tmp_path / "phone.mov", signals, trc=trc, primaries=ColorPrimaries.BT2020, matrix=9)
    frames, notes = read(path)
    assert notes == []
    np.testing.assert_allclose([frame.mean() for frame in frames], right, atol=2)


def test_colours_of_hdr_are_those_of_standard_range() -> None:
    """Forward by the formulas of BT.2100, with other code: a picture of standard range inside PQ comes back."""
    wanted = np.array([[[200, 20, 20], [20, 180, 40], [30, 40, 210], [190, 150, 130], [90, 60, 50]]], np.uint8)
    light = (wanted / 255.0) ** 2.4
    wide = light @ np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]).T
    power = (wide * 203 / 10000) ** 0.1593017578125
    pq = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    back = standard_range((pq * 65535).round().astype(np.uint16), "PQ")
    np.testing.assert_allclose(back, wanted, atol=2)
    scene = (wide * 0.203) ** (1 / 1.2)
    hlg = np.where(
        scene <= 1 / 12, np.sqrt(3 * scene), 0.17883277 * np.log(np.maximum(12 * scene, 1) - 0.28466892) + 0.55991073
    )
    back = standard_range((hlg * 65535).round().astype(np.uint16), "HLG")
    np.testing.assert_allclose(back, wanted, atol=2)


def test_highlights_keep_their_order_and_hue() -> None:
    ramp = np.linspace(30000, 65535, 200).astype(np.uint16)
    grey = standard_range(np.repeat(ramp, 3).reshape(1, -1, 3), "PQ").astype(int)
    assert (np.diff(grey[0, :, 0]) >= 0).all() and grey[0, -1].tolist() == [255] * 3
    lamp = standard_range(np.array([[[52000, 46000, 40000]]], np.uint16), "PQ")[0, 0].astype(int)
    assert lamp[0] > lamp[1] > lamp[2] and lamp[0] - lamp[2] > 40


STRANGE = {
    "hdr in other primaries": (ColorTrc.SMPTE2084, ColorPrimaries.SMPTE432, 9, r"HDR \(PQ\) with other primaries"),
    "a logarithmic scale": (ColorTrc.LOG, ColorPrimaries.BT709, 1, "a logarithmic scale"),
    "wide colours": (ColorTrc.BT709, ColorPrimaries.BT2020, 9, "colours are those of BT.2020"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_not_converted_is_said(tmp_path: Path, kind: str) -> None:
    """The note reaches whoever asked for the frames, through the decoding process."""
    trc, primaries, matrix, said = STRANGE[kind]
    path = write_grey(tmp_path / "odd.mkv", [0.2, 0.5], trc=trc, primaries=primaries, matrix=matrix)
    clip = Clip("c", "s", str(path), "target")
    spec = FrameSpec(Preprocessing(32, (0, 0, 0), (1, 1, 1), "area"), EVERY)
    for notes in ([*read_clip(clip, spec)][-1].notes, read_frames(clip, spec).notes):
        assert len(notes) == 1 and re.search(said, notes[0])


def test_ordinary_videos_have_no_notes(tmp_path: Path) -> None:
    path = write_video(tmp_path / "plain.webm", numbered_frames(5), codec="libvpx")
    spec = FrameSpec(Preprocessing(32, (0, 0, 0), (1, 1, 1), "area"), EVERY)
    assert read_frames(Clip("c", "s", str(path), "target"), spec).notes == ()
