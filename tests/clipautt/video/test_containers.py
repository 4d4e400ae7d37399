"""Which files are opened as videos, and what is said of the others."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from clipautt.clips import Clip
from clipautt.video.containers import DecodeError, open_container, video_stream
from clipautt.video.decoding import Sampling, stream_clip
from clipautt.video.preprocessing import Preprocessing
from clipautt.video.reader import FrameSpec
from clipautt.video.reader_process import read_clip, read_frames
from tests.support.fakes import numbered_frames, write_sound, write_video
from tests.support.footage import write_cover

SPEC = FrameSpec(Preprocessing(32, (0, 0, 0), (1, 1, 1), "area"), Sampling(None))


def clip_of(path: Path) -> Clip:
    return Clip("c", "s", str(path), "target")


def said_of(path: Path) -> str:
    """Why a file is not read, as a caller of the decoding process sees it: one line, with one reason."""
    with pytest.raises(DecodeError) as caught:
        list(read_clip(clip_of(path), SPEC))
    message = str(caught.value)
    before = f"clip 'c': {path} cannot be decoded (decord and pyav: "
    assert message.startswith(before) and "\n" not in message
    return message.removeprefix(before)[:-1]


@pytest.mark.parametrize("name", ["song.m4a", "song.mp4"])
def test_the_cover_of_a_sound_file_is_no_video(tmp_path: Path, name: str) -> None:
    assert said_of(write_cover(tmp_path / name)) == "no video stream, only the cover picture of a sound file"


def test_a_sound_file_is_no_video(tmp_path: Path) -> None:
    assert said_of(write_sound(tmp_path / "song.mp4")) == "no video stream"


def test_a_video_beside_a_cover_is_read(tmp_path: Path) -> None:
    """The cover comes first and is larger; the video is what moves."""
    path = tmp_path / "both.mp4"
    with av.open(str(path), "w") as container:
        streams: list[Any] = [container.add_stream(codec, rate=25) for codec in ("mjpeg", "libx264")]
        for stream, size in zip(streams, (256, 64), strict=True):
            stream.width = stream.height = size
        streams[0].pix_fmt, streams[0].disposition, streams[1].pix_fmt = "yuvj420p", 1024, "yuv420p"
        cover = av.VideoFrame.from_ndarray(numbered_frames(1, height=256, width=256)[0], format="rgb24")
        container.mux(streams[0].encode(cover) + streams[0].encode())
        for pixels in numbered_frames(10):
            container.mux(streams[1].encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(streams[1].encode())
    assert read_frames(clip_of(path), SPEC).times.tolist() == pytest.approx((np.arange(10) / 25).tolist())
    with open_container(str(path)) as container:
        assert video_stream(container, 64 * 64).width == 64  # the cover does not count


PICTURES = {"JPEG": "JPEG", "PNG": "PNG", "WEBP": "WebP", "BMP": "BMP", "TIFF": "TIFF", "AVIF": "AVIF"}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_that_is_called_a_video(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "face.mp4"
    Image.new("RGB", (64, 64)).save(path, kind)
    animated = f"; an animated one is read if its name ends in .{kind.lower()}" if kind in ("PNG", "WEBP") else ""
    assert said_of(path) == f"it is a picture ({PICTURES[kind]}){animated}"


CONTENTS = {
    b"ID3\x04" + bytes(100): "it is sound (MP3)",
    b"fLaC" + bytes(100): "it is sound (FLAC)",
    b"RIFF\x24\0\0\0WAVEfmt " + bytes(100): "it is sound (WAV)",
    b"#EXTM3U\n#EXTINF:1,\nother.mp4\n": "it is a playlist, which only names other files",
    b"PK\x03\x04" + bytes(100): "it is a ZIP archive; unpack it first",
    b"<!DOCTYPE html><title>Sign in</title>" * 9: "it is a web page or another text",
}


@pytest.mark.parametrize("content", CONTENTS)
def test_other_files_are_called_what_they_are(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    assert said_of(path) == CONTENTS[content]


@pytest.mark.parametrize(("codec", "name"), [("libx264", "H.264"), ("libx265", "HEVC")])
def test_a_stream_without_a_container_says_how_to_make_a_video_of_it(tmp_path: Path, codec: str, name: str) -> None:
    suffix = "h264" if codec == "libx264" else "hevc"
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    path = write_video(tmp_path / f"a raw 'film'.{suffix}", numbered_frames(10), codec=codec, options=options)
    if codec == "libx264":
        path.write_bytes(b"\0\0\0\1\x09\xf0" + path.read_bytes())  # some begin with a delimiter
    said = said_of(path)
    assert said.startswith(f"it is a bare {name} stream, without a container and so without times; ")
    command = said.split("`")[1]
    made = str(path.with_suffix(".mp4"))
    assert shlex.split(command) == ["ffmpeg", "-framerate", "25", "-i", str(path), made]


def test_what_is_not_recognized_is_not_called_an_invalid_argument(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.nut", numbered_frames(3), codec="mpeg4")
    assert said_of(path.rename(tmp_path / "clip.mp4")).startswith(
        "it is none of the containers that are read (mov, mp4"
    )


@pytest.mark.parametrize("name", ["x" * 300 + ".mp4", "no/such/folder.mp4"])
def test_a_name_that_cannot_be_is_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        list(read_clip(clip_of(tmp_path / name), SPEC))
    assert str(caught.value) == f"clip 'c': no video file or folder of frames at {tmp_path / name}"


def test_names_that_are_not_utf8_are_read_through_the_decoding_process(tmp_path: Path) -> None:
    path = write_video(tmp_path / "plain.mp4", numbered_frames(5)).rename(tmp_path / "caf\udce9.mp4")
    assert len(read_frames(clip_of(path), SPEC).times) == 5
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    for number, pixels in enumerate(numbered_frames(5)):
        Image.fromarray(pixels).save(folder / f"\udce9{number}.png")
    assert len(read_frames(clip_of(folder), SPEC).times) == 5


def test_max_pixels_of_the_declared_size(tmp_path: Path) -> None:
    path = write_video(tmp_path / "plain.mp4", numbered_frames(3))
    with pytest.raises(DecodeError, match="64 × 64 pixels; at most 4,000 pixels"):
        next(stream_clip(clip_of(path), Sampling(None), decoder="pyav", max_pixels=4000))
