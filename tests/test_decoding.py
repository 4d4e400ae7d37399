"""Real files whose frames carry their number in their pixels: the right frames, whichever decoder reads them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from clipautt import decoding
from clipautt.clips import Clip
from clipautt.decoding import DecodeError, Sampling, decode_clip, fit_frames, sample_times
from tests.fakes import numbered_frames, read_number, write_video

DECODERS: list[Callable[..., Any]] = [decoding._by_decord, decoding._by_pyav]
EVERY = Sampling(None)
IRREGULAR = np.cumsum([0] + [20, 60, 33, 47, 100] * 20)[:100].tolist()
"""Milliseconds of a hundred frames at a rate that varies; five frames take 0.26 s."""


def clip_of(path: Path, start: float | None = None, end: float | None = None) -> Clip:
    return Clip("c1", "s1", str(path), "target", start_seconds=start, end_seconds=end)


def numbers(frames: np.ndarray) -> list[int]:
    return [read_number(frame) for frame in frames]


def read(decoder: Callable[..., Any], path: Path, sampling: Sampling, *span: float | None) -> tuple[list[int], Any]:
    frames, times = decoder(clip_of(path, *span), size=64, sampling=sampling, interpolation="area")
    return numbers(frames), times


FILES: dict[str, dict[str, Any]] = {
    "plain.mp4": {},
    "b_frames.mp4": {"options": {"bf": "3", "g": "60"}},
    "irregular.mp4": {"milliseconds": IRREGULAR, "options": {"bf": "2"}},
    "late.mp4": {"milliseconds": [m + 1500 for m in IRREGULAR]},
    "fragmented.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "vp8.webm": {"codec": "libvpx", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "irregular.webm": {"codec": "libvpx", "milliseconds": IRREGULAR},
    "mpeg4.avi": {"codec": "mpeg4"},
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, options in FILES.items():
        write_video(folder / name, numbered_frames(100), **options)
    write_video(folder / "thirty.mp4", numbered_frames(100), fps=30)
    write_video(folder / "live.webm", numbered_frames(100), codec="libvpx", container_options={"live": "1"})
    return folder


@pytest.mark.parametrize("name", FILES)
def test_both_decoders_give_every_frame_in_order(videos: Path, name: str) -> None:
    for decoder in DECODERS:
        found, times = read(decoder, videos / name, EVERY)
        assert found == list(range(100)), decoder.__name__
        expected = np.array(IRREGULAR) / 1000 if "irregular" in name or "late" in name else np.arange(100) / 25
        np.testing.assert_allclose(times, expected, atol=1e-4)


SPANS = [(None, None), (1.0, 2.5), (2.01, None), (None, 0.5), (2.3, 2.55)]


@pytest.mark.parametrize(
    "name", ["b_frames.mp4", "irregular.mp4", "late.mp4", "vp8.webm", "irregular.webm", "mpeg4.avi"]
)
def test_both_decoders_choose_the_same_frames(videos: Path, name: str) -> None:
    for number, span in enumerate(SPANS):
        sampling = Sampling(12.5 if number % 2 else 4.0)
        (one, times), (other, other_times) = (read(d, videos / name, sampling, *span) for d in DECODERS)
        assert one == other and len(one) >= 1, span
        np.testing.assert_allclose(times, other_times, atol=1e-4)


def test_frames_are_chosen_by_time_at_25_frames_per_second(videos: Path) -> None:
    decoded = decode_clip(clip_of(videos / "plain.mp4"), size=64, sampling=Sampling(12.5))
    assert numbers(decoded.frames) == list(range(0, 100, 2)) and decoded.decoder == "decord"
    np.testing.assert_allclose(decoded.times, np.arange(50) * 0.08, atol=1e-6)
    assert repr(decoded) == "DecodedClip((50, 64, 64, 3) by decord)"


def test_frames_are_chosen_by_time_at_30_frames_per_second(videos: Path) -> None:
    """The moments 0, 0.08, 0.16, … fall into frames 0, 2.4, 4.8, …: the frame then on display is shown."""
    decoded = decode_clip(clip_of(videos / "thirty.mp4"), size=64, sampling=Sampling(12.5))
    assert numbers(decoded.frames)[:11] == [0, 2, 4, 7, 9, 12, 14, 16, 19, 21, 24]
    assert numbers(decoded.frames)[-1] == 98 and len(decoded.frames) == 42  # the last frame shows at 3.3 s


def test_frames_are_chosen_by_time_at_a_variable_rate(videos: Path) -> None:
    #  frames begin at 0, .02, .08, .113, .16, .26, .28, .34, .373, .42, .52, …; frame 4 is still there at .24
    decoded = decode_clip(clip_of(videos / "irregular.mp4"), size=64, sampling=Sampling(12.5))
    assert numbers(decoded.frames)[:10] == [0, 2, 4, 6, 8, 9, 11, 13, 14, 16]
    np.testing.assert_allclose(decoded.times[:5], [0, 0.08, 0.16, 0.28, 0.373], atol=1e-6)


def test_span_starts_are_included_and_ends_are_not(videos: Path) -> None:
    decoded = decode_clip(clip_of(videos / "plain.mp4", 1.0, 2.0), size=64, sampling=EVERY)
    assert numbers(decoded.frames) == list(range(25, 50))
    np.testing.assert_allclose(decoded.times, np.arange(25) / 25, atol=1e-6)  # counted from the start of the clip
    half = decode_clip(clip_of(videos / "plain.mp4", 1.0, 2.0), size=64, sampling=Sampling(12.5))
    assert numbers(half.frames) == list(range(25, 50, 2))


def test_the_same_moments_at_any_frame_rate(tmp_path: Path) -> None:
    """A clock that shows tenths of a second, filmed at three rates, reads the same."""
    for fps in (20, 30, 50):
        clock = numbered_frames(256)[np.arange(3 * fps) * 10 // fps]
        path = write_video(tmp_path / f"{fps}.mp4", clock, fps=fps)
        decoded = decode_clip(clip_of(path), size=64, sampling=Sampling(10.0))
        assert numbers(decoded.frames) == list(range(30)), fps


def test_browser_recording_without_a_duration_is_read_by_the_second_decoder(videos: Path) -> None:
    decoded = decode_clip(clip_of(videos / "live.webm"), size=64, sampling=Sampling(12.5))
    assert decoded.decoder == "pyav" and numbers(decoded.frames) == list(range(0, 100, 2))


def test_long_videos_are_sampled_evenly_by_both_decoders(tmp_path: Path) -> None:
    """decord's single-precision times once put every third moment of a long video one frame early."""
    path = write_video(tmp_path / "long.mp4", numbered_frames(1500), options={"preset": "ultrafast"})
    for decoder in DECODERS:
        _, times = read(decoder, path, Sampling(5.0))
        np.testing.assert_allclose(np.diff(times), 0.2, atol=1e-3)
        assert len(times) == 300


@pytest.mark.parametrize(
    ("fps", "span", "expected"),
    [
        (12.5, (None, None), [0, 2, 4]),
        (25.0, (None, None), [0, 1, 2, 3, 4, 5]),
        (None, (None, None), [0, 1, 2, 3, 4, 5]),
        (100.0, (None, None), [0, 1, 2, 3, 4, 5]),
        (1.0, (None, None), [0]),
        (12.5, (0.05, None), [2, 3]),
        (12.5, (0.04, 0.12), [1]),
        (None, (0.04, 0.12), [1, 2]),
        (12.5, (0.5, None), []),
        (12.5, (0.0, 0.0005), []),
    ],
)
def test_sample_times_literal(fps: float | None, span: tuple[float | None, float | None], expected: list[int]) -> None:
    times = np.array([0.0, 0.04, 0.08, 0.12, 0.16, 0.20])
    assert sample_times(times, Sampling(fps), start=span[0], end=span[1]).tolist() == expected


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_sampling_rate_must_be_positive(rate: float) -> None:
    with pytest.raises(ValueError, match=r"frames_per_second=.*; allowed are positive numbers or null for every frame"):
        Sampling(rate)


@pytest.mark.parametrize(("height", "width"), [(64, 128), (128, 64)])
def test_centre_square_is_cropped(tmp_path: Path, height: int, width: int) -> None:
    frames = np.zeros((5, height, width, 3), np.uint8)
    frames[:] = (255, 0, 0)
    top, left = (height - 64) // 2, (width - 64) // 2
    frames[:, top : top + 64, left : left + 64] = (0, 0, 255)
    path = write_video(tmp_path / "wide.mp4", frames)
    for size in (64, 32, 96):
        square = decode_clip(clip_of(path), size=size, sampling=EVERY).frames
        assert square.shape == (5, size, size, 3)
        inside = square[:, size // 8 : -(size // 8), size // 8 : -(size // 8)].reshape(-1, 3).mean(0)
        assert inside[2] > 230 and inside[0] < 25  # blue, and RGB in this order


@pytest.mark.parametrize("interpolation", ["area", "bilinear", "bicubic"])
def test_resizing_keeps_flat_colours_and_the_right_size(interpolation: str) -> None:
    frames = np.full((2, 50, 40, 3), (10, 20, 30), np.uint8)
    for size in (20, 40, 60):
        fitted = fit_frames(frames, size=size, interpolation=interpolation)
        assert fitted.shape == (2, size, size, 3) and (fitted == (10, 20, 30)).all()


def test_area_resizing_averages() -> None:
    frame = np.zeros((1, 4, 4, 3), np.uint8)
    frame[0, :2, :2] = [[[100], [0]], [[0], [100]]]
    assert fit_frames(frame, size=2)[0, :, :, 0].tolist() == [[50, 0], [0, 0]]


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"clip 'c1': no video file at {re.escape(str(tmp_path))}/gone\.mp4"):
        decode_clip(clip_of(tmp_path / "gone.mp4"), size=64, sampling=EVERY)


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize("kind", ["text", "empty", "sound", "folder", "beyond the end", "header only"])
def test_file_without_frames_is_an_error_that_names_it_and_both_reasons(tmp_path: Path, kind: str) -> None:
    path, start = tmp_path / "clip.mp4", None
    if kind == "text":
        path.write_text("this is not a video\n" * 100)
    elif kind == "empty":
        path.touch()
    elif kind == "sound":
        write_sound(path)
    elif kind == "folder":
        path.mkdir()
    else:
        write_video(path, numbered_frames(10))
        start = 60.0 if kind == "beyond the end" else None
    if kind == "header only":
        path.write_bytes(path.read_bytes()[:200])
    message = rf"clip 'c1': .*{re.escape(str(path))} cannot be decoded \(decord: .+; pyav: .+\)"
    with pytest.raises(DecodeError, match=message):
        decode_clip(clip_of(path, start), size=64, sampling=Sampling(12.5))
