"""Reads a clip into chunks of frames for the image tower: decoded, cropped to the face, resized.

This runs in the caller's process, and hangs or crashes with the decoder; `reader_process.read_clip` runs it in a child
process that can be killed. A face detector needs two passes over the clip: one follows the face, one crops it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from clipautt.clips import Clip
from clipautt.video.decoding import DecodeError, Decoder, Sampling, stream_clip
from clipautt.video.faces import Face, FaceConfig, make_detector
from clipautt.video.preprocessing import Frames, Preprocessing, fit_frame
from clipautt.video.tracks import FaceTrack, crop_face, track_faces

Seconds = npt.NDArray[np.float64]
_CHUNK_FRAMES = 64
_CHUNK_BYTES = 16 << 20
_KEPT_BYTES = 128 << 20
"""Decoded frames up to this size are kept between the two passes; longer clips are decoded twice."""


class NoFaceError(ValueError):
    """No face was found anywhere in a clip."""


@dataclass(frozen=True)
class FrameSpec:
    """How a clip becomes frames of the image tower."""

    preprocessing: Preprocessing
    """Size and filter; mean and std are for the tower."""
    sampling: Sampling = field(default_factory=Sampling)
    """Which moments."""
    faces: FaceConfig = field(default_factory=FaceConfig)
    """How the face is found and cropped; detector `none` takes the footage as it is."""

    @property
    def facts(self) -> dict[str, Any]:
        """Everything that changes a frame, as plain values."""
        return asdict(self) | {"faces": self.faces.facts}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> FrameSpec:
        """The inverse of `dataclasses.asdict`, also after a round trip through JSON."""
        return cls(Preprocessing(**facts["preprocessing"]), Sampling(**facts["sampling"]), FaceConfig(**facts["faces"]))


@dataclass(frozen=True, repr=False)
class FrameChunk:
    """Consecutive frames of a clip."""

    decoder: Decoder
    """Which decoder gave them."""
    frames: Frames
    """RGB, uint8 [n, size, size, 3], n ≥ 1."""
    times: Seconds
    """Seconds from the start of the clip, float64 [n]."""
    found: npt.NDArray[np.bool_]
    """Whether a face was found in the frame, [n]; all True without a detector."""
    notes: tuple[str, ...] = ()
    """What could not be shown as it should be, up to this chunk; the last chunk of a clip has all of it."""

    def __repr__(self) -> str:
        return f"FrameChunk({self.frames.shape} by {self.decoder})"


def decode_chunks(
    clip: Clip,
    spec: FrameSpec,
    *,
    decoder: Decoder,
    max_pixels: int | None = None,
    on_frame: Callable[[], None] = lambda: None,
) -> Iterator[FrameChunk]:
    """Decode, crop and resize a clip in this process.

    Args:
        clip: what to read.
        spec: what its frames become.
        decoder: one of `decoders_of(clip.source)`.
        max_pixels: width × height of the largest frame that is decoded.
        on_frame: called after each decoded frame, to show that the decoder is alive.

    Yields:
        Chunks in order.

    Raises:
        DecodeError: for a clip without frames, and as `stream_clip`.
        NoFaceError: if a face is looked for and never found.
    """

    notes: dict[str, None] = {}  # in the order in which they came, each once

    def stream() -> Iterator[tuple[float, Frames]]:
        return stream_clip(
            clip, spec.sampling, decoder=decoder, max_pixels=max_pixels, on_frame=on_frame, on_note=notes.setdefault
        )

    shape = spec.preprocessing
    fitted: Iterator[tuple[float, Frames, bool]]
    if spec.faces.detector == "none":
        fitted = ((time, fit_frame(frame, shape), True) for time, frame in stream())
    else:
        fitted = _face_crops(stream, spec)
    empty = True
    for chunk in _chunks(fitted, shape.size, decoder):
        empty = False
        yield replace(chunk, notes=tuple(notes))
    if empty:
        raise DecodeError("no frames in the span")


def _face_crops(
    stream: Callable[[], Iterator[tuple[float, Frames]]], spec: FrameSpec
) -> Iterator[tuple[float, Frames, bool]]:
    """Time, crop and whether a face was found, of every frame that is used."""
    track, kept = follow_face(stream(), spec.faces)
    shape = spec.preprocessing
    for index, (time, frame) in enumerate(kept if kept is not None else stream()):
        found = bool(track.found[index])
        if found or spec.faces.missing == "fill":
            where = track.centre[index], float(track.side[index]), float(track.angle[index])
            yield time, crop_face(frame, *where, size=shape.size, interpolation=shape.interpolation), found


def follow_face(
    frames: Iterable[tuple[float, Frames]], config: FaceConfig
) -> tuple[FaceTrack, list[tuple[float, Frames]] | None]:
    """The first pass: where the face is in each frame.

    Returns:
        The track, and the frames if they are small enough to be kept.

    Raises:
        DecodeError: if there are no frames.
        NoFaceError: if no face is found in any frame.
    """
    detect = make_detector(config)
    times: list[float] = []
    detections: list[tuple[Face, ...]] = []
    shapes: list[tuple[int, int]] = []
    kept: list[tuple[float, Frames]] | None = []
    size = 0
    for time, frame in frames:
        times.append(time)
        detections.append(detect(frame))
        shapes.append((frame.shape[0], frame.shape[1]))
        size += frame.nbytes
        if kept is not None:
            kept.append((time, frame))
            kept = kept if size <= _KEPT_BYTES else None
    if not times:
        raise DecodeError("no frames in the span")
    track = track_faces(np.array(times), detections, shapes, config)
    if track is None:
        raise NoFaceError(f"no face was found in {len(times)} frames")
    return track, kept


def _chunks(fitted: Iterable[tuple[float, Frames, bool]], size: int, decoder: Decoder) -> Iterator[FrameChunk]:
    most = max(1, min(_CHUNK_FRAMES, _CHUNK_BYTES // (size * size * 3)))
    held: list[tuple[float, Frames, bool]] = []
    for item in fitted:
        held.append(item)
        if len(held) == most:
            yield _chunk(held, decoder)
            held = []
    if held:
        yield _chunk(held, decoder)


def _chunk(held: list[tuple[float, Frames, bool]], decoder: Decoder) -> FrameChunk:
    times, frames, found = zip(*held, strict=True)
    return FrameChunk(decoder, np.stack(frames), np.array(times), np.array(found, bool))
