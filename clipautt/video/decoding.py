"""Decodes video files and folders of frames into RGB frames at sampled moments, one at a time.

Frames are chosen by time, not by number, so a different or variable frame rate gives the same moments. decord decodes
first; PyAV takes over where decord refuses a file; a folder of frames is read by OpenCV. Frames are streamed: memory
holds a few, however long the video. A file damaged in the middle is refused; one that merely ends early gives the
frames up to there; damage that a decoder conceals is not noticed.

A decoder may hang or crash the process: `reader_process` guards against both. `reader` crops and resizes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import av
import cv2
import numpy as np
import numpy.typing as npt
from pydantic import PositiveFloat

from clipautt.clips import Clip
from clipautt.settings import settings
from clipautt.video.preprocessing import Frames

Decoder = Literal["decord", "pyav", "images"]
_TOLERANCE = 1e-3
"""Seconds: webm rounds its times to milliseconds, and decord gives them in single precision."""
_DEFAULT_RATE = 25.0
CONTAINERS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "ogg", "flv", "asf", "mxf", "ivf", "gif")
"""FFmpeg's names of the containers that are read. Playlists and scripts, which name other files, are excluded."""
PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
"""Suffixes of the frames in a folder."""
_NUMBER = re.compile(r"\d+(?!.*\d)")
_Content = TypeVar("_Content")
_Tick = Callable[[], None]
_Stream = Callable[[Clip, "Sampling", int | None, _Tick], Iterator[tuple[float, Frames]]]


class DecodeError(ValueError):
    """A source gave no frames; the message says why."""


@settings
class Sampling:
    """Which frames of a clip are used."""

    frames_per_second: PositiveFloat | None = 12.5
    """Frames sampled per second of video; None takes every frame."""


def decoders_of(source: str) -> tuple[Decoder, ...]:
    """The decoders that read a source, in the order in which they are tried."""
    return ("images",) if Path(source).is_dir() else ("decord", "pyav")


def stream_clip(
    clip: Clip,
    sampling: Sampling,
    *,
    decoder: Decoder,
    max_pixels: int | None = None,
    on_frame: Callable[[], None] = lambda: None,
) -> Iterator[tuple[float, Frames]]:
    """The sampled frames of a clip, decoded on demand.

    Args:
        clip: what to decode.
        sampling: which moments.
        decoder: one of `decoders_of(clip.source)`.
        max_pixels: width × height of the largest frame that is decoded; None: no limit.
        on_frame: called after each decoded frame, used or not, to show that the decoder is alive.

    Yields:
        Time in seconds from the start of the clip, and the frame upright, RGB uint8 [H, W, 3].

    Raises:
        DecodeError: for frames that are too large, damage, time stamps that go back, or a source without frames.
        Exception: any error of the decoder, for a file that it cannot read.
    """
    streams: dict[Decoder, _Stream] = {"decord": _by_decord, "pyav": _by_pyav, "images": _from_folder}
    return streams[decoder](clip, sampling, max_pixels, on_frame)


def choose_frames(
    frames: Iterable[tuple[int, float, _Content]], sampling: Sampling, clip: Clip
) -> Iterator[tuple[float, _Content]]:
    """The frames on display at the sampled moments of a clip's span.

        frame times   0   .04   .08   .12   .16   .20
        moments       ^         ^           ^            12.5 per second → the frames at 0, .08, .16

    Works on a stream: it holds one frame at a time.

    Args:
        frames: number, time in seconds and content of every frame, both ascending.
        sampling: how many moments per second.
        clip: its span, in seconds or frames; without a start it begins with the first frame.

    Yields:
        Time in seconds from the start of the span, and content; no frame twice.

    Raises:
        DecodeError: if the times go back.
    """
    rate = sampling.frames_per_second
    start: float | None = None
    held: tuple[float, _Content] | None = None
    moment = 0  # the first one that has no frame yet
    for number, time, content in _inside(frames, clip):
        if start is None:
            start = _start(clip, number, time)
        if rate is None:
            yield max(0.0, time - start), content
            continue
        if held is not None and start + moment / rate + _TOLERANCE < time:
            yield max(0.0, held[0] - start), held[1]
            moment = max(moment + 1, math.ceil((time - _TOLERANCE - start) * rate))
        held = time, content
    if held is not None and start is not None and rate and start + moment / rate <= held[0] + _TOLERANCE:
        yield max(0.0, held[0] - start), held[1]


def _inside(frames: Iterable[tuple[int, float, _Content]], clip: Clip) -> Iterator[tuple[int, float, _Content]]:
    """The frames of a clip's span; nothing after it is decoded."""
    first = -math.inf if clip.start_seconds is None else clip.start_seconds - _TOLERANCE
    last = math.inf if clip.end_seconds is None else clip.end_seconds - _TOLERANCE
    before: float | None = None
    for number, time, content in frames:
        if before is not None and time < before - _TOLERANCE:
            raise DecodeError(f"the time stamps go back from {before:.3f} to {time:.3f} s at frame {number}")
        before = time
        if time >= last or (clip.end_frame is not None and number >= clip.end_frame):
            return
        if time >= first and number >= (clip.start_frame or 0):
            yield number, time, content


def _start(clip: Clip, number: int, time: float) -> float:
    """The time at which a span begins, given its first frame."""
    if clip.start_seconds is not None:
        return clip.start_seconds
    missed = 0 if clip.start_frame is None else number - clip.start_frame  # frames that a folder lacks
    return time - missed / (clip.frames_per_second or _DEFAULT_RATE)


def _check_pixels(width: int, height: int, max_pixels: int | None) -> None:
    if max_pixels is not None and width * height > max_pixels:
        raise DecodeError(f"its frames have {width} × {height} pixels; at most {max_pixels:,} pixels are decoded")


def _by_decord(
    clip: Clip, sampling: Sampling, max_pixels: int | None, on_frame: _Tick
) -> Iterator[tuple[float, Frames]]:
    import decord

    with open_container(clip.source) as container:  # decord opens anything, so the file is checked first
        times = _seekable_times(container, _video_stream(container, max_pixels))
        if len(container.streams.video) > 1:
            raise DecodeError("of several video streams, it decodes another one than players show")
    # With this tolerance decord fails rather than replace a single frame by its neighbour.
    reader = decord.VideoReader(clip.source, num_threads=1, fault_tol=1e-9)
    stamps = np.asarray(reader.get_frame_timestamp(range(len(reader))), np.float64)[:, 0]
    single = _TOLERANCE + 2e-7 * times[-1]  # decord keeps its times in single precision
    if len(stamps) != len(times) or np.abs(stamps - stamps[0] - times).max() > single:
        raise DecodeError("its time stamps differ from those in the file")
    # One by one: with batches, memory grows by hundreds of megabytes over a long video of large frames.
    for time, index in choose_frames(((i, t, i) for i, t in enumerate(times.tolist())), sampling, clip):
        frame = reader[index].asnumpy()
        on_frame()
        if frame.shape[2] != 3:  # in frames a few pixels wide it mistakes row padding for channels
            raise DecodeError(f"it gives frames of shape {frame.shape}")
        yield time, frame


def _seekable_times(container: Any, stream: Any) -> npt.NDArray[np.float64]:
    """Seconds of every frame from the first one, ascending, read without decoding.

    Raises:
        DecodeError: where pictures that are shown before a key frame come after it in the file (an open group of
            pictures): a seek to that key frame loses them, and decord then miscounts.
    """
    times: list[float] = []
    key = -math.inf
    for packet in container.demux(stream):
        stamp = packet.dts if packet.pts is None else packet.pts
        if packet.size and stamp is not None:
            times.append(float(stamp * packet.time_base))
            key = times[-1] if packet.is_keyframe else key
            if times[-1] < key:
                raise DecodeError("its groups of pictures are open, so frames would be miscounted after a seek")
    if not times:
        raise DecodeError("no frames with time stamps")
    return np.sort(np.array(times)) - min(times)


def open_container(source: str) -> Any:
    """Open a video file with PyAV, as a context manager.

    Only real containers in local files are opened, never a text file that names other files or URLs, whatever its
    suffix.

    Raises:
        av.FFmpegError: if it is not one of `CONTAINERS`, or broken.
    """
    return av.open(source, options={"protocol_whitelist": "file", "format_whitelist": ",".join(CONTAINERS)})


def _video_stream(container: Any, max_pixels: int | None) -> Any:
    """The stream that players show.

    Raises:
        DecodeError: for a file without video, or with frames that it declares to be too large.
    """
    stream = container.streams.best("video")
    if stream is None:
        raise DecodeError("no video stream")
    for video in container.streams.video:
        _check_pixels(video.width, video.height, max_pixels)
    return stream


def _by_pyav(clip: Clip, sampling: Sampling, max_pixels: int | None, on_frame: _Tick) -> Iterator[tuple[float, Frames]]:
    """Decodes from the beginning of the file, so a span late in a long file is slow."""
    with open_container(clip.source) as container:
        stream = _video_stream(container, max_pixels)
        stream.codec_context.thread_count = 1
        for time, frame in choose_frames(_pyav_frames(container, stream, max_pixels, on_frame), sampling, clip):
            pixels = frame.to_ndarray(format="rgb24")
            yield time, np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


def _pyav_frames(
    container: Any, stream: Any, max_pixels: int | None, on_frame: _Tick
) -> Iterator[tuple[int, float, Any]]:
    """Number, time since the first frame, and frame; frames without a time stamp follow at the stream's rate."""
    rate = float(stream.average_rate or _DEFAULT_RATE)
    first: float | None = None
    number, damage = 0, ""
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            damage = damage or f"damaged at frame {number} ({error.strerror})"
            continue
        for frame in frames:
            on_frame()
            if damage:  # not just a file that ends early: another frame follows the damage
                raise DecodeError(damage)
            if frame.is_corrupt:
                damage = f"damaged at frame {number}"
                continue
            _check_pixels(frame.width, frame.height, max_pixels)
            time = number / rate if frame.time is None else float(frame.time)
            first = time if first is None else first
            yield number, time - first, frame
            number += 1


def _from_folder(
    clip: Clip, sampling: Sampling, max_pixels: int | None, on_frame: _Tick
) -> Iterator[tuple[float, Frames]]:
    rate = clip.frames_per_second or _DEFAULT_RATE
    numbered = ((number, number / rate, path) for number, path in list_frames(Path(clip.source)))
    for time, path in choose_frames(numbered, sampling, clip):
        frame = read_image(path, max_pixels=max_pixels)
        on_frame()
        yield time, frame


def list_frames(folder: Path) -> list[tuple[int, Path]]:
    """The pictures of a folder, each with the last number in its name, in numerical order: 2 before 10.

    Raises:
        DecodeError: for a folder without pictures, or a picture without a number or with another's number.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES and path.name[0] != ".")
    if not paths:
        raise DecodeError("no pictures in the folder")
    numbered: dict[int, Path] = {}
    for path in paths:
        match = _NUMBER.search(path.stem)
        if match is None:
            raise DecodeError(f"{path.name} has no number in its name; the number says when a frame was taken")
        number = int(match[0])
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
            _check_pixels(*header.size, max_pixels)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise DecodeError(f"{path.name} is not a picture that can be read") from error
    pixels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise DecodeError(f"{path.name} is damaged")
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), np.uint8)
