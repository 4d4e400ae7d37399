"""Reads a clip into chunks of frames for the image tower: decoded, cropped to the face, resized.

This runs in the caller's process, and hangs or crashes with the decoder; `reader_process.read_clip` runs it in a child
process that can be killed. A face detector needs two passes over the clip: one follows the face, one crops it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from clipautt.clips import Clip
from clipautt.video.decoding import DecodeError, Decoder, Sampling, stream_clip
from clipautt.video.faces import Face, FaceConfig, make_detector, reduce_frame
from clipautt.video.preprocessing import Frames, Preprocessing, fit_frame
from clipautt.video.tracks import FaceTrack, People, crop_face, follow_faces, too_small

Seconds = npt.NDArray[np.float64]
Boxes = npt.NDArray[np.float32]
BOX = ("x", "y", "side", "tilt", "score")
"""What is known of a face in a frame: the upper left corner and the side of its square box, without margin and without
tilt, in pixels of the frame; degrees by which it is turned clockwise as seen; the detector's score, nan where the box
is inferred from the frames around."""
_CHUNK_FRAMES = 64
_CHUNK_BYTES = 16 << 20
_KEPT_BYTES = 128 << 20
"""Decoded frames up to this size are kept between the two passes; longer clips are decoded twice."""


_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in luma, Rec. ITU-R BT.601."""
_BLANK = 127
"""Grey of the picture that stands for a frame without the face."""
_FACELESS, _SMALLEST_FACE = 8, 0.03
"""Where no face is found at all, this many frames are searched again for faces down to this share of the frame."""


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
    boxes: Boxes
    """Where the face is in the frame, see `BOX`, float32 [n, 5]; nan where no face is shown, and without a detector."""
    brightness: npt.NDArray[np.float32]
    """Mean luma of what is shown, 0 (black) to 1 (white), float32 [n]; nan where no face is shown."""
    turned: npt.NDArray[np.float32]
    """Degrees by which the head is turned to either side, see `Face.turn`, float32 [n]; nan where nothing tells."""
    notes: tuple[str, ...] = ()
    """What could not be shown as it should be, up to this chunk; the last chunk of a clip has all of it."""
    other_faces: int = 0
    """Faces that were followed through the clip beside the subject's."""

    def where(self, mask: npt.NDArray[np.bool_]) -> FrameChunk:
        """The frames for which the mask, [n], is True."""
        return replace(self, **{name: getattr(self, name)[mask] for name in OF_FRAMES})

    @classmethod
    def joined(cls, chunks: Sequence[FrameChunk]) -> FrameChunk:
        """Consecutive chunks of one decoder as one; what is said of the clip as a whole is the last one's."""
        of_frames = {name: np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in OF_FRAMES}
        return replace(chunks[-1], **of_frames)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f"FrameChunk({self.frames.shape} by {self.decoder})"


OF_FRAMES = ("frames", "times", "found", "boxes", "brightness", "turned")
"""The fields of a `FrameChunk` that have a value per frame."""


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
        ValueError: for a clip that names a face, without a detector.
    """

    notes: dict[str, None] = {}  # in the order in which they came, each once

    def stream() -> Iterator[tuple[float, Frames]]:
        return stream_clip(
            clip, spec.sampling, decoder=decoder, max_pixels=max_pixels, on_frame=on_frame, on_note=notes.setdefault
        )

    shape, faces = spec.preprocessing, spec.faces.following(clip.face)
    others = 0
    fitted: Iterator[FittedFrame]
    if faces.detector == "none":
        fitted = (FittedFrame(time, fit_frame(frame, shape), found=True) for time, frame in stream())
    else:
        people, kept = follow_people(stream(), faces)
        others = people.others
        if people.subject is None:
            raise NoFaceError(people.why)
        fitted = face_crops(kept if kept is not None else stream(), people.subject, shape, margin=faces.margin)
    empty = True
    for chunk in _chunks(fitted, shape.size, decoder):
        empty = False
        yield replace(chunk, notes=tuple(notes), other_faces=others)
    if empty:
        raise DecodeError("no frames in the span")


@dataclass(frozen=True, repr=False, eq=False)
class FittedFrame:
    """A frame as the image tower takes it."""

    time: float
    frame: Frames
    found: bool
    box: Boxes | None = None
    """[5]; None where no face is shown, and without a detector."""
    shown: bool = True
    """Whether the frame shows anything; a blank one does not."""
    turn: float = float("nan")
    """Degrees by which the head is turned to a side; nan where nothing tells."""

    @property
    def brightness(self) -> float:
        """Mean luma, 0 to 1; nan for a blank frame."""
        return float(np.dot(cv2.mean(self.frame)[:3], _LUMA)) / 255 if self.shown else float("nan")


def face_crops(
    frames: Iterable[tuple[float, Frames]], track: FaceTrack, shape: Preprocessing, *, margin: float
) -> Iterator[FittedFrame]:
    """The crop of every frame along a track; far from any frame with the face it is blank.

    Args:
        frames: time and pixels of each frame of the track.
        track: where the crops are.
        shape: size and filter.
        margin: `FaceConfig.margin`.
    """
    boxes = face_boxes(track, margin=margin)
    blank = np.full((shape.size, shape.size, 3), _BLANK, np.uint8)
    for index, (time, frame) in enumerate(frames):
        if track.shown[index]:
            where = track.centre[index], float(track.side[index]), float(track.angle[index])
            crop = crop_face(frame, *where, size=shape.size, interpolation=shape.interpolation)
            yield FittedFrame(time, crop, bool(track.found[index]), boxes[index], turn=float(track.turn[index]))
        else:
            yield FittedFrame(time, blank, found=False, shown=False)


def face_boxes(track: FaceTrack, *, margin: float) -> Boxes:
    """The boxes of a track as `BOX`, float32 [T, 5].

    Args:
        track: where the crops are.
        margin: `FaceConfig.margin`, by which a crop is wider than the box.
    """
    side = track.side / (1 + 2 * margin)
    corner = track.centre - side[:, None] / 2
    return np.column_stack([corner, side, np.degrees(track.angle), track.score]).astype(np.float32)


def follow_people(
    frames: Iterable[tuple[float, Frames]], config: FaceConfig
) -> tuple[People, list[tuple[float, Frames]] | None]:
    """The first pass: where the faces are in each frame.

    Returns:
        The faces that were followed, and the frames if they are small enough to be kept.

    Raises:
        DecodeError: if there are no frames.
    """
    detect = make_detector(config)
    times: list[float] = []
    detections: list[tuple[Face, ...]] = []
    shapes: list[tuple[int, int]] = []
    kept: list[tuple[float, Frames]] | None = []
    faceless: list[Frames] = []
    size = 0
    for time, frame in frames:
        times.append(time)
        detections.append(detect(frame))
        shapes.append((frame.shape[0], frame.shape[1]))
        size += frame.nbytes
        if kept is not None:
            kept.append((time, frame))
            kept = kept if size <= _KEPT_BYTES else None
        if not detections[-1]:
            _sample(faceless, reduce_frame(frame, config.detect_pixels)[0])
    if not times:
        raise DecodeError("no frames in the span")
    people = follow_faces(np.array(times), detections, shapes, config)
    if not people.tracks and (size_seen := _smaller_face(faceless, config)):
        people = replace(people, why=f"no face was found in {len(times)} frames: {too_small(size_seen, config)}")
    return people, kept


def _sample(faceless: list[Frames], frame: Frames) -> None:
    """Keep a few frames without a face, spread over the clip: where the list is full, every other one goes."""
    faceless.append(frame)
    if len(faceless) > _FACELESS:
        del faceless[1::2]


def _smaller_face(frames: Sequence[Frames], config: FaceConfig) -> float | None:
    """The largest face that is smaller than those that count, as a share of the frame's shorter side."""
    detect = make_detector(replace(config, min_face=_SMALLEST_FACE))
    sizes = [face.size / min(frame.shape[:2]) for frame in frames for face in detect(frame) if face.eyes]
    return max((size for size in sizes if size < config.min_face), default=None)


def _chunks(fitted: Iterable[FittedFrame], size: int, decoder: Decoder) -> Iterator[FrameChunk]:
    most = max(1, min(_CHUNK_FRAMES, _CHUNK_BYTES // (size * size * 3)))
    held: list[FittedFrame] = []
    for item in fitted:
        held.append(item)
        if len(held) == most:
            yield _chunk(held, decoder)
            held = []
    if held:
        yield _chunk(held, decoder)


def _chunk(held: list[FittedFrame], decoder: Decoder) -> FrameChunk:
    nowhere = np.full(len(BOX), np.nan, np.float32)
    return FrameChunk(
        decoder,
        np.stack([one.frame for one in held]),
        np.array([one.time for one in held]),
        np.array([one.found for one in held], bool),
        np.stack([nowhere if one.box is None else one.box for one in held]),
        np.array([one.brightness for one in held], np.float32),
        np.array([one.turn for one in held], np.float32),
    )
