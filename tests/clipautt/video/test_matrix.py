"""Containers × codecs × traits: what clipautt reads is what a player shows, frame by frame and time by time.

Every file is made here, of frames that carry their number, so the right answer is known without a decoder. Whichever
decoder clipautt trusts with a file is the one that is tested; `FAST` says which files decord must be trusted with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipautt.clips import Clip
from clipautt.video.decoding import Decoder, Sampling, choose_frames, decoders_of, stream_clip
from tests.support.fakes import numbered_frames, read_number, write_video
from tests.support.footage import ODD_TAG, resized, retagged, trimmed

COUNT = 64
IRREGULAR = np.cumsum([0] + [20, 60, 33, 47, 100] * 20)[:COUNT].tolist()
"""Milliseconds, at a rate that varies."""
LATE = (np.arange(COUNT) * 40 + 1500).tolist()
CLOSED = {"g": "16", "bf": "2"}
X264_OPEN = {"x264-params": "open-gop=1:bframes=3:b-adapt=0:scenecut=0:keyint=16"}
X265 = "log-level=none:keyint=16:bframes=3:b-adapt=0:scenecut=0"
VPX = {"deadline": "realtime", "cpu-used": "8", "g": "16"}


@dataclass(frozen=True)
class Case:
    """One file of the matrix."""

    name: str
    codec: str = "libx264"
    options: Mapping[str, str] = field(default_factory=dict)
    milliseconds: tuple[int, ...] | None = None
    container_options: Mapping[str, str] = field(default_factory=dict)
    decoder: Decoder = "pyav"


def _cases() -> list[Case]:
    fast: Decoder = "decord"
    files = [
        *(Case(f"h264.{suffix}", options={"g": "16", "bf": "0"}, decoder=fast) for suffix in ("mp4", "mov", "mkv")),
        *(Case(f"h264_b.{suffix}", options=CLOSED, decoder=fast) for suffix in ("mp4", "mov", "mkv")),
        *(
            Case(f"h264_vfr.{suffix}", options=CLOSED, milliseconds=tuple(IRREGULAR), decoder=fast)
            for suffix in ("mp4", "mkv")
        ),
        *(
            Case(f"h264_late.{suffix}", options=CLOSED, milliseconds=tuple(LATE), decoder=fast)
            for suffix in ("mp4", "mkv")
        ),
        *(Case(f"h264_open.{suffix}", options=X264_OPEN) for suffix in ("mp4", "mkv", "ts")),
        *(Case(f"h264_intra.{suffix}", options={"g": "1"}, decoder=fast) for suffix in ("mp4", "mkv")),
        Case("h264_repeated.mp4", options={**CLOSED, "x264-params": "repeat-headers=1"}, decoder=fast),
        Case(
            "h264_fragments.mp4",
            options=CLOSED,
            container_options={"movflags": "frag_keyframe+empty_moov"},
            decoder=fast,
        ),
        Case("h264_faststart.mp4", options=CLOSED, container_options={"movflags": "faststart"}, decoder=fast),
        *(Case(f"h264_b.{suffix}", options=CLOSED) for suffix in ("ts", "avi", "flv")),
        Case("h264_late.ts", options=CLOSED, milliseconds=tuple(LATE)),
        *(
            Case(f"hevc_closed.{suffix}", "libx265", {"x265-params": f"{X265}:open-gop=0"}, decoder=fast)
            for suffix in ("mp4", "mkv")
        ),
        *(Case(f"hevc_open.{suffix}", "libx265", {"x265-params": X265}) for suffix in ("mov", "ts")),
        *(Case(f"mpeg4.{suffix}", "mpeg4", {"g": "16"}) for suffix in ("mp4", "avi", "mkv")),
        *(Case(f"mpeg4_b.{suffix}", "mpeg4", {"g": "16", "bf": "2"}) for suffix in ("mp4", "avi")),
        Case("mpeg4_vfr.avi", "mpeg4", {"g": "16"}, tuple(IRREGULAR)),
        Case("mpeg2.ts", "mpeg2video", {"g": "16", "bf": "2"}),
        *(Case(f"vp8.{suffix}", "libvpx", VPX) for suffix in ("webm", "mkv")),
        *(Case(f"vp9.{suffix}", "libvpx-vp9", VPX) for suffix in ("webm", "mp4")),
        Case("vp8_vfr.webm", "libvpx", VPX, tuple(IRREGULAR)),
        Case("vp8_live.webm", "libvpx", VPX, container_options={"live": "1"}),
        *(Case(f"av1.{suffix}", "libsvtav1", {"preset": "12", "g": "16"}) for suffix in ("mp4", "webm")),
        *(Case(f"mjpeg.{suffix}", "mjpeg") for suffix in ("avi", "mov", "mkv")),
    ]
    return files


CASES = {case.name: case for case in _cases()}


def written(folder: Path, case: Case, *, write: Callable[..., Path] = write_video) -> Path:
    """The file of a case."""
    return write(
        folder / case.name,
        frames=numbered_frames(COUNT),
        codec=case.codec,
        milliseconds=case.milliseconds,
        options=case.options,
        container_options=case.container_options,
        pixel_format="yuvj420p" if case.codec == "mjpeg" else "yuv420p",
    )


def read(path: Path, rate: float | None, **span: Any) -> tuple[Decoder, list[int], list[float]]:
    """Decoder, numbers on the frames and their times, as clipautt reads a file: by the first decoder that takes it."""
    clip = Clip("c", "s", str(path), "target", **span)
    for decoder in decoders_of(str(path)):
        try:
            frames = list(stream_clip(clip, Sampling(rate), decoder=decoder))
        except Exception:
            if decoder == decoders_of(str(path))[-1]:
                raise
            continue
        return decoder, [read_number(frame) for _, frame in frames], [time for time, _ in frames]
    raise AssertionError(path)


def check(path: Path, numbers: list[int], times: list[float], decoder: Decoder | None = None) -> None:
    """Compare all frames, coarse samples, and spans in seconds and frames with what a player shows.

    Args:
        path: the file.
        numbers: those of its frames, in the order shown.
        times: of these frames in seconds from the first.
        decoder: the one that must read it; None: any.
    """
    spans: list[dict[str, Any]] = [{}, {"start_seconds": 0.7, "end_seconds": 1.5}, {"start_frame": 21, "end_frame": 37}]
    for rate in (None, 12.5, 3.0):
        for span in spans:
            clip = Clip("c", "s", str(path), "target", **span)
            frames = zip(range(len(numbers)), times, numbers, strict=True)
            right = list(choose_frames(frames, Sampling(rate), clip))
            used, found, at = read(path, rate, **span)
            assert found == [number for _, number in right], (path.name, rate, span, used)
            np.testing.assert_allclose(at, [time for time, _ in right], atol=2e-3, err_msg=f"{path.name} {rate} {span}")
            assert decoder in (None, used), (path.name, used)


@pytest.mark.parametrize("name", CASES)
def test_containers_and_codecs(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    milliseconds = case.milliseconds or range(0, 40 * COUNT, 40)
    times = [(moment - milliseconds[0]) / 1000 for moment in milliseconds]
    check(written(tmp_path, case), list(range(COUNT)), times, case.decoder)


@pytest.mark.parametrize("seconds", [0.2, 0.64, 1.0, 1.01])
@pytest.mark.parametrize("name", ["h264_b.mp4", "h264.mov", "hevc_closed.mp4", "mpeg4.mp4"])
def test_clips_that_were_trimmed_without_encoding_them_again(tmp_path: Path, name: str, seconds: float) -> None:
    """The file holds whole groups of pictures, and an edit list that says where players begin."""
    path = trimmed(written(tmp_path, CASES[name]), tmp_path / f"trimmed_{name}", seconds)
    first = math.ceil(seconds * 25)  # FFmpeg's players leave out a frame that began before
    numbers = list(range(first, COUNT))
    check(path, numbers, [number / 25 - first / 25 for number in numbers])


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("sizes.ts", "libx264", {"bf": "2"}),
        ("sizes.mkv", "libx264", {"bf": "0", "x264-params": "repeat-headers=1"}),
        ("sizes.mp4", "libx264", {"bf": "0", "x264-params": "repeat-headers=1"}),
        ("sizes.webm", "libvpx", VPX),
        ("sizes9.webm", "libvpx-vp9", VPX),
    ],
)
def test_a_size_that_changes_midway(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    path = resized(tmp_path / name, [(64, 64), (96, 160), (64, 64)], frames_each=16, codec=codec, options=options)
    check(path, list(range(48)), [number / 25 for number in range(48)])
    shapes = [
        frame.shape for _, frame in stream_clip(Clip("c", "s", str(path), "target"), Sampling(None), decoder="pyav")
    ]
    assert shapes == [(64, 64, 3)] * 16 + [(96, 160, 3)] * 16 + [(64, 64, 3)] * 16


@pytest.mark.parametrize("name", ["h264_b.mp4", "h264.mov", "h264.mkv", "vp8.webm", "mpeg4.avi", "h264_b.ts"])
def test_tags_in_any_encoding(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, CASES[name], write=retagged)
    assert ODD_TAG in path.read_bytes()
    check(path, list(range(COUNT)), [number / 25 for number in range(COUNT)])


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = written(tmp_path, CASES["h264_b.mp4"])
    odd = path.rename(tmp_path / "caf\udce9.mp4")
    check(odd, list(range(COUNT)), [number / 25 for number in range(COUNT)], "pyav")
