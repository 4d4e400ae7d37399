"""Opens video files, and says in words what a file is that is none.

In: the path of a file. Out: an open PyAV container and the stream that players show, or a `DecodeError`. Nothing is
decoded here.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import av
from av.stream import Disposition

CONTAINERS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "ogg", "flv", "asf", "mxf", "ivf", "gif")
"""FFmpeg's names of the containers that are read. Playlists and scripts, which name other files, are excluded."""
_NO_VIDEO = Disposition.attached_pic | Disposition.timed_thumbnails
_BEGINNINGS = {
    b"\xff\xd8\xff": "a picture (JPEG)",
    b"\x89PNG": "a picture (PNG); an animated one is read if its name ends in .png",
    b"BM": "a picture (BMP)",
    b"II*\0": "a picture (TIFF)",
    b"MM\0*": "a picture (TIFF)",
    b"fLaC": "sound (FLAC)",
    b"ID3": "sound (MP3)",
    b"\xff\xfb": "sound (MP3)",
    b"\xff\xf1": "sound (AAC)",
    b"#EXTM3U": "a playlist, which only names other files",
    b"ffconcat": "a list of other files",
    b"PK\x03\x04": "a ZIP archive; unpack it first",
    b"%PDF": "a PDF document",
    b"<": "a web page or another text",
}
_RIFF = {
    b"WEBP": "a picture (WebP); an animated one is read if its name ends in .webp",
    b"WAVE": "sound (WAV)",
}
_STILL_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF", b"avif": "AVIF"}
_BARE = re.compile(rb"\x00\x00\x01(?:(?P<hevc>[\x40\x42]\x01)|[\x27\x47\x67])")
"""A parameter set after a start code, in a stream without a container; of HEVC (VPS, SPS), else of H.264 (SPS)."""
_START_CODES = (b"\0\0\1", b"\0\0\0\1")


class DecodeError(ValueError):
    """A source gave no frames; the message says why."""


@contextmanager
def open_container(source: str) -> Iterator[Any]:
    """Open a video file with PyAV.

    Only real containers in local files are opened, never a text file that names other files or URLs, whatever its
    suffix. Names and tags may be in any encoding.

    Yields:
        The container of PyAV.

    Raises:
        DecodeError: for a file that is recognized as something else, such as a picture or sound.
        av.FFmpegError, OSError: if it is not one of `CONTAINERS`, or broken.
    """
    with ExitStack() as opened:
        # FFmpeg takes names in UTF-8 only; Python opens the others.
        file = source if _is_utf8(source) else opened.enter_context(open(source, "rb"))
        options = {"protocol_whitelist": "file", "format_whitelist": ",".join(CONTAINERS)}
        try:
            container: Any = av.open(file, options=options, metadata_errors="replace")
        except av.FFmpegError as error:
            kind = _kind_of(source)
            if kind:
                raise DecodeError(f"it is {kind}") from error
            if isinstance(error, av.ArgumentError):
                raise DecodeError(f"it is none of the containers that are read ({', '.join(CONTAINERS)})") from error
            raise
        opened.enter_context(container)
        still = _STILL_BRANDS.get(_head(source)[8:12]) if container.format.name.startswith("mov") else None
        if still:
            raise DecodeError(f"it is a picture ({still})")
        yield container


def video_stream(container: Any, max_pixels: int | None = None) -> Any:
    """The stream that players show; the cover of a sound file is none.

    Raises:
        DecodeError: for a file without video, or with frames that it declares to be too large.
    """
    videos = [stream for stream in container.streams.video if not stream.disposition & _NO_VIDEO]
    if not videos:
        cover = ", only the cover picture of a sound file" if container.streams.video else ""
        raise DecodeError(f"no video stream{cover}")
    videos = [video for video in videos if video.codec_context is not None]
    if not videos:
        raise DecodeError("its video is in a format that is not known")
    for video in videos:
        check_pixels(video.width, video.height, max_pixels)
    best = container.streams.best("video")
    return best if best in videos else videos[0]


def check_pixels(width: int, height: int, max_pixels: int | None) -> None:
    """Refuse frames that are too large.

    Raises:
        DecodeError: for more than `max_pixels`; None: no limit.
    """
    if max_pixels is not None and width * height > max_pixels:
        raise DecodeError(f"its frames have {width} × {height} pixels; at most {max_pixels:,} pixels are decoded")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _head(source: str) -> bytes:
    try:
        with open(source, "rb") as file:
            return file.read(4096)
    except OSError:
        return b""


def _kind_of(source: str) -> str:
    """What a file is that FFmpeg did not take for a video; empty if that is not recognized."""
    head = _head(source)
    if head[:4] == b"RIFF":
        return _RIFF.get(head[8:12], "")
    bare = _BARE.search(head) if head.startswith(_START_CODES) else None
    if bare:
        return _bare("HEVC" if bare["hevc"] else "H.264", source)
    return next((kind for beginning, kind in _BEGINNINGS.items() if head.startswith(beginning)), "")


def _bare(name: str, source: str) -> str:
    shown = os.path.abspath(source)
    command = shlex.join(["ffmpeg", "-framerate", "25", "-i", shown, f"{os.path.splitext(shown)[0]}.mp4"])
    return (
        f"a bare {name} stream, without a container and so without times; "
        f"make a video of it with `{command}`, where 25 stands for its frame rate"
    )
