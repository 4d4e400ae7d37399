"""What is refused of a video before anything decodes it.

In: a file, and `Limits`. Out: the video's length, or a `RefusedError`. Nothing a file says about itself is trusted:
containers are chosen by content from a short list that never reads other files or the network, and the length is
counted from the packets.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import av
from pydantic import PositiveFloat, PositiveInt

from clipautt.settings import settings
from clipautt.video.containers import DecodeError, open_container, video_stream
from ray_jobs.serve.refusals import RefusedError

_MAX_FRAMES_PER_SECOND = 240
_ABSOLUTE_PATH = re.compile(r"(?:/[\w.@+%~-]+){2,}")
MAX_UPLOAD_MB = 50.0
MAX_SECONDS = 60.0
MAX_PIXELS = 3840 * 2160


@settings
class Limits:
    """Upper limits of an upload."""

    max_bytes: PositiveInt = int(MAX_UPLOAD_MB * 1e6)
    """Size of the file, bytes."""
    max_seconds: PositiveFloat = MAX_SECONDS
    """Length of the video in seconds, from its first frame to the end of its last."""
    max_pixels: PositiveInt = MAX_PIXELS
    """Width × height of a frame."""
    max_frames: PositiveInt = 4000
    """Frames that are looked at; they are in memory together."""


def check_video(path: Path, limits: Limits) -> float:
    """Open a video without decoding it, and refuse what is over a limit.

    Args:
        path: The file.
        limits: Limits of its length and frame size.

    Returns:
        The length in seconds.

    Raises:
        RefusedError: `not_a_video`: it cannot be read as a video; `over_limit`: it is over a limit.
    """
    try:
        with open_container(str(path)) as container:
            stream = video_stream(container)
            _check_pixels(stream.width, stream.height, limits)
            if stream.duration is not None:  # of the picture; the sound may go on
                _check_seconds(float(stream.duration * stream.time_base), limits)
            return _measured_seconds(container, stream, limits)
    except DecodeError as error:
        raise RefusedError(
            "not_a_video", without_paths(f"the file cannot be read as a video: {error}", path)
        ) from error
    except (av.FFmpegError, OSError) as error:
        reason = without_paths(str(getattr(error, "strerror", None) or error), path)
        raise RefusedError(
            "not_a_video", f"the file cannot be read as a video; MP4 and WebM can (pyav: {reason})"
        ) from error


def without_paths(text: str, path: Path) -> str:
    """`text` without the folder of `path`, and with every other absolute path cut to its last part."""
    text = text.replace(f"{path.parent}/", "")
    return _ABSOLUTE_PATH.sub(lambda found: found[0].rpartition("/")[2], text)


def _check_pixels(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.max_pixels:
        raise RefusedError(
            "over_limit", f"the frames are {width} × {height} pixels; at most {limits.max_pixels:,} pixels are allowed"
        )


def _check_seconds(seconds: float, limits: Limits) -> None:
    if seconds > limits.max_seconds:
        raise RefusedError(
            "over_limit", f"the video is {seconds:.1f} s long; at most {limits.max_seconds:g} s are allowed"
        )


def _measured_seconds(container: Any, stream: Any, limits: Limits) -> float:
    """Length by the packets' times, since browsers record files without a length and a header may say anything."""
    first: float | None = None
    end, frames = 0.0, 0
    rate = float(stream.average_rate or 25)
    for packet in container.demux(stream):
        if not packet.size or packet.is_discard:
            continue
        frames += 1
        if frames > limits.max_seconds * _MAX_FRAMES_PER_SECOND:
            raise RefusedError("over_limit", f"the video has more than {_MAX_FRAMES_PER_SECOND} frames per second")
        time = packet.pts if packet.pts is not None else packet.dts
        start = frames / rate if time is None else float(time * packet.time_base)
        first = start if first is None else min(first, start)
        end = max(end, start + float((packet.duration or 0) * packet.time_base))
        _check_seconds(end - first, limits)
    if first is None:
        raise RefusedError("not_a_video", "the file has no video frames in it")
    return end - first
