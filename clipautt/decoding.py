"""Video files to RGB frames of one size at chosen moments.

Frames are chosen by time and not by number, so that a different or variable frame rate gives the same moments. decord
decodes first; PyAV takes over where decord refuses a file. Frames are resized in chunks while decoding: memory grows
with the frames kept, not with the file. What this module does not do yet: end a decoder that hangs, or look for the
face.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt

from clipautt.clips import Clip

Frames = npt.NDArray[np.uint8]
Seconds = npt.NDArray[np.float64]
_CHUNK = 64
_TOLERANCE = 1e-3
"""Seconds: webm rounds its times to milliseconds, and decord gives them in single precision."""
_INTERPOLATION = {"bicubic": cv2.INTER_CUBIC, "bilinear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA}


class DecodeError(ValueError):
    """A file gave no frames; the message names the file and what each decoder said."""


@dataclass(frozen=True)
class Sampling:
    """Which frames of a clip are used."""

    frames_per_second: float | None = 12.5
    """Moments per second of video; None takes every frame."""

    def __post_init__(self) -> None:
        if self.frames_per_second is not None and not self.frames_per_second > 0:
            raise ValueError(
                f"frames_per_second={self.frames_per_second}; allowed are positive numbers or null for every frame"
            )


@dataclass(frozen=True, repr=False)
class DecodedClip:
    """Frames of a clip with their times."""

    frames: Frames
    """RGB, uint8 [T, size, size, 3]."""
    times: Seconds
    """Seconds from the start of the clip, float64 [T]."""
    decoder: str
    """`decord` or `pyav`."""

    def __repr__(self) -> str:
        return f"DecodedClip({self.frames.shape} by {self.decoder})"


def sample_times(
    times: Seconds, sampling: Sampling, *, start: float | None = None, end: float | None = None
) -> npt.NDArray[np.int64]:
    """Indices of the frames on display at the sampled moments of a span.

        frame times   0   .04   .08   .12   .16   .20
        moments       ^         ^           ^            12.5 per second → indices 0, 2, 4

    Args:
        times: presentation time of every frame in seconds, ascending, [N].
        sampling: how many moments per second.
        start: of the span, seconds; None is the first frame.
        end: of the span, exclusive; None is the last frame.

    Returns:
        int64 indices, ascending, without repetition.
    """
    first = float(times[0]) if start is None else start
    inside = np.flatnonzero((times >= first - _TOLERANCE) & (times < (np.inf if end is None else end - _TOLERANCE)))
    if sampling.frames_per_second is None or not len(inside):
        return inside
    last = float(times[inside[-1]])
    count = int((last - first + _TOLERANCE) * sampling.frames_per_second) + 1
    moments = first + np.arange(count) / sampling.frames_per_second
    shown = np.searchsorted(times, moments + _TOLERANCE, side="right") - 1
    return np.unique(shown.clip(inside[0], inside[-1]))


def fit_frames(frames: Iterable[Frames], *, size: int, interpolation: str = "area") -> Frames:
    """Crop the centre square of RGB frames [H, W, 3] and resize it: uint8 [T, size, size, 3]."""
    return np.stack([_fit(frame, size, interpolation) for frame in frames])


def _fit(frame: Frames, size: int, interpolation: str) -> Frames:
    height, width = frame.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = frame[top : top + side, left : left + side]
    if side == size:
        return square
    enlarging = side < size and interpolation == "area"
    resized = cv2.resize(
        square, (size, size), interpolation=cv2.INTER_LINEAR if enlarging else _INTERPOLATION[interpolation]
    )
    return np.asarray(resized, np.uint8)


def decode_clip(clip: Clip, *, size: int, sampling: Sampling, interpolation: str = "area") -> DecodedClip:
    """Decode a clip's sampled frames.

    Raises:
        FileNotFoundError: if the file is not there.
        DecodeError: if no decoder gives a frame of the span.
    """
    if not Path(clip.source).exists():
        raise FileNotFoundError(f"clip {clip.clip_id!r}: no video file at {clip.source}")
    failures = []
    decoders: tuple[tuple[str, Callable[..., tuple[Frames, Seconds]]], ...] = (
        ("decord", _by_decord),
        ("pyav", _by_pyav),
    )
    for name, decoder in decoders:
        try:
            frames, times = decoder(clip, size=size, sampling=sampling, interpolation=interpolation)
        except Exception as error:  # decoders raise types of their own; each reason is kept
            failures.append(
                f"{name}: {str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__}"
            )
            continue
        if len(frames):
            return DecodedClip(frames, times - (clip.start_seconds or 0.0), name)
        failures.append(f"{name}: no frames in the span")
    raise DecodeError(f"clip {clip.clip_id!r}: {clip.source} cannot be decoded ({'; '.join(failures)})")


def _by_decord(clip: Clip, *, size: int, sampling: Sampling, interpolation: str) -> tuple[Frames, Seconds]:
    import decord

    reader = decord.VideoReader(clip.source, num_threads=1)
    stamps = np.asarray(reader.get_frame_timestamp(range(len(reader))), np.float64)[:, 0]
    times = stamps - stamps[0]
    index = sample_times(times, sampling, start=clip.start_seconds, end=clip.end_seconds)
    chunks = [reader.get_batch(list(index[i : i + _CHUNK])).asnumpy() for i in range(0, len(index), _CHUNK)]
    fitted = [fit_frames(chunk, size=size, interpolation=interpolation) for chunk in chunks]
    return (np.concatenate(fitted) if fitted else np.zeros((0, size, size, 3), np.uint8)), times[index]


def _by_pyav(clip: Clip, *, size: int, sampling: Sampling, interpolation: str) -> tuple[Frames, Seconds]:
    """Two linear passes: the first reads the times, the second keeps the sampled frames."""
    with av.open(clip.source) as container:
        times = np.array([time for time, _ in _pyav_frames(container)])
    if not len(times):
        raise ValueError("no video frames")
    index = sample_times(times, sampling, start=clip.start_seconds, end=clip.end_seconds)
    wanted = set(index.tolist())
    with av.open(clip.source) as container:
        kept = [
            _fit(frame.to_ndarray(format="rgb24"), size, interpolation)
            for number, (_, frame) in enumerate(_pyav_frames(container))
            if number in wanted
        ]
    return (np.stack(kept) if kept else np.zeros((0, size, size, 3), np.uint8)), times[index[: len(kept)]]


def _pyav_frames(container: Any) -> Iterator[tuple[float, Any]]:
    """Frames in order with their time from the first frame; frames without a time stamp follow at the stream's rate."""
    if not container.streams.video:
        raise ValueError("no video stream")
    stream = container.streams.video[0]
    rate = float(stream.average_rate or 25)
    first: float | None = None
    for number, frame in enumerate(container.decode(stream)):
        time = number / rate if frame.time is None else float(frame.time)
        first = time if first is None else first
        yield time - first, frame
