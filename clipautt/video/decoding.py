"""Decodes video files and folders of frames into RGB frames at sampled moments, one at a time.

Frames are chosen by time, not by number, so a different or variable frame rate gives the same moments. decord, which
finds frames by seeking, decodes the files of which `packets` proves that it is right; PyAV decodes all others, and
`display` shows its frames as players do; `pictures` reads folders of frames. Frames are streamed: memory holds a few,
however long the video. A file damaged in the middle is refused; one that merely ends early gives the frames up to
there; damage that a decoder conceals is not noticed.

A decoder may hang or crash the process: `reader_process` guards against both. `reader` crops and resizes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import av
import numpy as np
from pydantic import PositiveFloat

from clipautt.clips import Clip
from clipautt.settings import settings
from clipautt.video.containers import DecodeError as DecodeError
from clipautt.video.containers import check_pixels, open_container, video_stream
from clipautt.video.display import Display, display_of, show
from clipautt.video.packets import proven_times
from clipautt.video.pictures import FILES, animation, list_frames, read_image
from clipautt.video.preprocessing import Frames

Decoder = Literal["decord", "pyav", "images"]
VERSION = 2
"""Raised when files give other frames than before, so that stored features of the earlier frames are not used."""
_TOLERANCE = 1e-3
"""Seconds: webm rounds its times to milliseconds, and decord gives them in single precision."""
_DEFAULT_RATE = 25.0
_Content = TypeVar("_Content")


@settings
class Sampling:
    """Which frames of a clip are used."""

    frames_per_second: PositiveFloat | None = 12.5
    """Frames sampled per second of video; None takes every frame."""


def decoders_of(source: str) -> tuple[Decoder, ...]:
    """The decoders that read a source, in the order in which they are tried."""
    pictures = os.path.isdir(source) or Path(source).suffix.lower() in FILES
    return ("images",) if pictures else ("decord", "pyav")


@dataclass(frozen=True)
class _How:
    max_pixels: int | None
    on_frame: Callable[[], None]
    on_note: Callable[[str], None]


def stream_clip(
    clip: Clip,
    sampling: Sampling,
    *,
    decoder: Decoder,
    max_pixels: int | None = None,
    on_frame: Callable[[], None] = lambda: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Iterator[tuple[float, Frames]]:
    """The sampled frames of a clip, decoded on demand.

    Args:
        clip: what to decode.
        sampling: which moments.
        decoder: one of `decoders_of(clip.source)`.
        max_pixels: width × height of the largest frame that is decoded; None: no limit.
        on_frame: called after each decoded frame, used or not, to show that the decoder is alive.
        on_note: called with each sentence about what cannot be shown as it should be, before the first such frame.

    Yields:
        Time in seconds from the start of the clip, and the frame as players show it: upright, with square pixels, in
        standard range, RGB uint8 [H, W, 3]. Frames differ in size where the file changes its own.

    Raises:
        DecodeError: for frames that are too large, damage, time stamps that go back, a source without frames, or a file
            of which it is not proven that decord reads it right.
        Exception: any error of the decoder, for a file that it cannot read.
    """
    streams = {"decord": _by_decord, "pyav": _by_pyav, "images": _from_pictures}
    return streams[decoder](clip, sampling, _How(max_pixels, on_frame, on_note))


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


def _by_decord(clip: Clip, sampling: Sampling, how: _How) -> Iterator[tuple[float, Frames]]:
    import decord

    with open_container(clip.source) as container:  # decord opens anything, so the file is checked first
        times = proven_times(container, video_stream(container, how.max_pixels), how.on_frame)
    # With this tolerance decord fails rather than replace a single frame by its neighbour.
    reader = decord.VideoReader(clip.source, num_threads=1, fault_tol=1e-9)
    stamps = np.asarray(reader.get_frame_timestamp(range(len(reader))), np.float64)[:, 0]
    single = _TOLERANCE + 2e-7 * times[-1]  # decord keeps its times in single precision
    if len(stamps) != len(times) or np.abs(stamps - stamps[0] - times).max() > single:
        raise DecodeError("its time stamps differ from those in the file")
    # One by one: with batches, memory grows by hundreds of megabytes over a long video of large frames.
    for time, index in choose_frames(((i, t, i) for i, t in enumerate(times.tolist())), sampling, clip):
        frame = reader[index].asnumpy()
        how.on_frame()
        if frame.shape[2] != 3:  # in frames a few pixels wide it mistakes row padding for channels
            raise DecodeError(f"it gives frames of shape {frame.shape}")
        yield time, frame


def _by_pyav(clip: Clip, sampling: Sampling, how: _How) -> Iterator[tuple[float, Frames]]:
    """Decodes from the beginning of the file, so a span late in a long file is slow."""
    told: set[str] = set()
    with open_container(clip.source) as container:
        stream = video_stream(container, how.max_pixels)
        stream.codec_context.thread_count = 1
        for time, (frame, display) in choose_frames(_pyav_frames(container, stream, how), sampling, clip):
            for note in display.notes:
                if note not in told:
                    how.on_note(note)
            told.update(display.notes)
            yield time, show(frame, display, max_pixels=how.max_pixels)


def _pyav_frames(container: Any, stream: Any, how: _How) -> Iterator[tuple[int, float, tuple[Any, Display]]]:
    """Number, time since the first frame, and frame; frames without a time stamp follow at the stream's rate.

    AVI has no times of display: there a frame is shown when the packet comes with which it is complete.
    """
    rate, size = float(stream.average_rate or _DEFAULT_RATE), (stream.width, stream.height)
    in_order = container.format.name == "avi"
    first, time = 0.0, 0.0
    number, damage = 0, ""
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            damage = damage or f"damaged at frame {number} ({error.strerror})"
            continue
        for frame in frames:
            how.on_frame()
            if damage:  # not just a file that ends early: another frame follows the damage
                raise DecodeError(damage)
            if frame.is_corrupt:
                damage = f"damaged at frame {number}"
                continue
            check_pixels(frame.width, frame.height, how.max_pixels)
            stamp = packet.dts if in_order else frame.pts
            if stamp is not None:
                time = float(stamp * (packet.time_base if in_order else frame.time_base))
            elif number:
                time += 1 / rate
            first = time if number == 0 else first
            yield number, time - first, (frame, display_of(frame, stream, size))
            number += 1


def _from_pictures(clip: Clip, sampling: Sampling, how: _How) -> Iterator[tuple[float, Frames]]:
    source = Path(clip.source)
    if not source.is_dir():
        yield from choose_frames(animation(source, how.max_pixels, how.on_frame), sampling, clip)
        return
    numbered = list_frames(source, clip.frames_per_second or _DEFAULT_RATE)
    for time, path in choose_frames(numbered, sampling, clip):
        frame = read_image(path, max_pixels=how.max_pixels)
        how.on_frame()
        yield time, frame
