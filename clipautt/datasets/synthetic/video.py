"""Frames to mp4 and back, for synthetic clips.

One encoder thread and fixed settings make the same frames give the same file. x264's macroblock tree stays off: on
processors with AVX-512 its rate control differs from call to call. `clipautt.video` reads any other videos.
"""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import IO

import av
import numpy as np
from numpy.typing import NDArray

from clipautt.files import atomic
from clipautt.footage import RENDERED_MARK

Frames = NDArray[np.uint8]
"""RGB frames [T, height, width, 3]."""

_OPTIONS = {"crf": "18", "preset": "veryfast", "mbtree": "0"}


def write_mp4(path: str | Path, frames: Frames, *, fps: int = 25) -> None:
    """Writes H.264 video, marked as rendered; the file appears under its name only when it is complete.

    Args:
        path: where to write; the folder is made when it is missing.
        frames: uint8 [T, height, width, 3] RGB, height and width even.
        fps: frames per second.

    Raises:
        ValueError: when `frames` has another type or shape, or `fps` is not positive.
    """
    _check(frames, fps)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic(target) as temporary, temporary.open("wb") as file:
        _encode(file, frames, fps)


def reencode(frames: Frames, *, fps: int = 25) -> Frames:
    """The frames after H.264 compression, through an mp4 in memory; same shape and type.

    Raises:
        ValueError: when `frames` has another type or shape, or `fps` is not positive.
    """
    _check(frames, fps)
    buffer = io.BytesIO()
    _encode(buffer, frames, fps)
    buffer.seek(0)
    with av.open(buffer, "r") as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(decoded).astype(np.uint8, copy=False)


def _check(frames: Frames, fps: int) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames is {frames.dtype} {list(frames.shape)}; uint8 [T, height, width, 3] is needed")
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(f"frames are {frames.shape[1]} x {frames.shape[2]} pixels; H.264 needs even height and width")
    if fps < 1:
        raise ValueError(f"fps={fps} is not allowed; 1 or more is")


def _encode(file: IO[bytes], frames: Frames, fps: int) -> None:
    with av.open(file, "w", format="mp4") as container:
        container.metadata["comment"] = RENDERED_MARK
        stream = container.add_stream("libx264", rate=Fraction(fps), options=_OPTIONS)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
