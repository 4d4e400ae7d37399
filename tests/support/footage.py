"""Videos as cutting tools, phones and browsers leave them: trimmed, with a size that changes, with odd tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from tests.support.fakes import add_silence, numbered_frames, write_video

ODD_TAG = "Größe 20°".encode("latin-1")
_PLAIN_TAG = "Grxxe 20xx"[: len(ODD_TAG)]


def trimmed(source: Path, target: Path, seconds: float) -> Path:
    """A copy that begins later without being encoded again: packets from the key frame before, and an edit list."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream: Any = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        shift = round(seconds / stream.time_base)
        old.seek(shift, stream=stream)
        for packet in old.demux(stream):
            if packet.dts is not None and packet.pts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                new.mux(packet)
    return target


def resized(
    path: Path, sizes: Sequence[tuple[int, int]], *, frames_each: int, codec: str, options: Mapping[str, str]
) -> Path:
    """A video whose frames have one size (height, width) after another, numbered from 0 on."""
    with av.open(str(path), "w") as container:
        stream: Any = None
        for part, (height, width) in enumerate(sizes):
            if stream is None:
                encoder = stream = container.add_stream(codec, rate=25, options=dict(options))
            else:
                encoder = av.CodecContext.create(codec, "w")
                encoder.options, encoder.time_base, encoder.framerate = dict(options), Fraction(1, 25), Fraction(25)
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
            first = part * frames_each
            frames = numbered_frames(first + frames_each, height=height, width=width)[first:]
            for packet in _encoded(encoder, frames, first):
                packet.stream, packet.time_base = stream, Fraction(1, 25)
                container.mux(packet)
    return path


def _encoded(encoder: Any, frames: npt.NDArray[np.uint8], first: int) -> list[Any]:
    packets = []
    for number, pixels in enumerate(frames, start=first):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, 25)
        packets += encoder.encode(frame)
    return packets + encoder.encode(None)


def retagged(path: Path, **options: Any) -> Path:
    """A video with a title in Latin-1, as old machines write it; `options` are those of `write_video`."""
    write_video(path, tags={"title": _PLAIN_TAG, "service_name": _PLAIN_TAG}, **options)
    path.write_bytes(path.read_bytes().replace(_PLAIN_TAG.encode(), ODD_TAG))
    return path


def write_cover(path: Path) -> Path:
    """A song with a picture of its cover."""
    with av.open(str(path), "w", format="mp4") as container:
        sound: Any = container.add_stream("aac", rate=8000)
        cover: Any = container.add_stream("mjpeg", rate=1)
        cover.width = cover.height = 64
        cover.pix_fmt, cover.disposition = "yuvj420p", 1024
        add_silence(container, sound, 1)
        picture = cover.encode(av.VideoFrame.from_ndarray(numbered_frames(1)[0], format="rgb24"))
        for packet in picture + cover.encode():
            container.mux(packet)
    return path
