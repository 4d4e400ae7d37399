"""What is proven of a file before decord may read it: each reason for which it may not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipautt.video.containers import DecodeError, open_container, video_stream
from clipautt.video.packets import proven_times
from tests.support.fakes import numbered_frames, write_video
from tests.support.footage import resized, trimmed

X265 = "log-level=none:keyint=16:bframes=3:b-adapt=0:scenecut=0"


def times_of(path: Path) -> np.ndarray:
    with open_container(str(path)) as container:
        return proven_times(container, video_stream(container))


def test_times_count_from_the_first_frame(tmp_path: Path) -> None:
    moments = (1500 + np.cumsum([0] + [20, 60, 33, 47, 100] * 6)[:30]).tolist()
    options = {"bf": "3", "g": "12"}
    for name in ("late.mp4", "late.mkv"):
        path = write_video(tmp_path / name, numbered_frames(30), milliseconds=moments, options=options)
        np.testing.assert_allclose(times_of(path), (np.array(moments) - 1500) / 1000, atol=1e-6)


REFUSED: dict[str, tuple[str, Mapping[str, Any], str]] = {
    "MPEG-TS": ("a.ts", {}, "in mpegts it does not find frames reliably"),
    "AVI": ("a.avi", {"codec": "mpeg4"}, "in avi it does not find frames reliably"),
    "VP9": ("a.webm", {"codec": "libvpx-vp9"}, "frames of vp9 cannot be counted without decoding them"),
    "MPEG-4 part 2": ("a.mp4", {"codec": "mpeg4"}, "frames of mpeg4 cannot be counted"),
    "open groups, H.264": (
        "a.mp4",
        {"options": {"x264-params": "open-gop=1:bframes=3:b-adapt=0:scenecut=0:keyint=16"}},
        "its groups of pictures are open",
    ),
    "open groups, HEVC": (
        "a.mp4",
        {"codec": "libx265", "options": {"x265-params": X265}},
        "its groups of pictures are",
    ),
    "turned": ("a.mp4", {"rotation": 90}, "its pictures are shown other than they are stored"),
    "interlaced": ("a.mp4", {"options": {"flags": "+ildct+ilme"}}, "its pictures are shown other than they are stored"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_left_to_pyav(tmp_path: Path, kind: str) -> None:
    name, options, reason = REFUSED[kind]
    path = write_video(tmp_path / name, numbered_frames(40), **options)
    with pytest.raises(DecodeError, match=reason):
        times_of(path)


def test_an_edit_list_is_left_to_pyav(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", numbered_frames(40), options={"g": "16", "bf": "2"})
    assert len(times_of(whole)) == 40
    with pytest.raises(DecodeError, match="it has an edit list"):
        times_of(trimmed(whole, tmp_path / "part.mp4", 0.8))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_size_that_may_change_is_left_to_pyav(tmp_path: Path, suffix: str) -> None:
    """Headers that repeat the size are fine; those with another are not."""
    headers = {"bf": "0", "x264-params": "repeat-headers=1"}
    sizes = [(64, 64), (96, 96)]
    path = resized(tmp_path / f"other.{suffix}", sizes, frames_each=10, codec="libx264", options=headers)
    with pytest.raises(DecodeError, match="the size of its pictures may change"):
        times_of(path)
    assert len(times_of(write_video(tmp_path / f"same.{suffix}", numbered_frames(20), options=headers))) == 20


def test_a_packet_that_holds_no_picture_is_left_to_pyav(tmp_path: Path) -> None:
    """decord would count a frame that does not come, and give every later one under another's number."""
    path = write_video(tmp_path / "gap.mp4", numbered_frames(20), options={"g": "8", "bf": "0"})
    with open_container(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        at, size = packets[5].pos, packets[5].size
    content = bytearray(path.read_bytes())
    content[at + 4] = 6  # the picture becomes a message
    path.write_bytes(bytes(content))
    assert size > 4
    with pytest.raises(DecodeError, match="a packet holds 0 pictures"):
        times_of(path)
