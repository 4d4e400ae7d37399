"""Single pictures of a stream into frames of the image tower, as `reader` makes them of a clip.

In: JPEGs, one at a time, as a browser sends them from its camera. Out: a `Still`. No state is kept here: what was seen
in earlier pictures of a stream is part of a `Still`, and is given again with the next picture.

    look = StillReader(spec, max_pixels=1920 * 1080)
    first = look(jpeg, seconds=0.0)
    second = look(another, seconds=0.08, seen=first.seen)

The face is followed as in a clip, but the future is not known: the crop of a picture rests on it and on those before.
"""

from __future__ import annotations

import io
import struct
import threading
from dataclasses import dataclass, fields

import numpy as np

from clipautt.video.containers import DecodeError, check_pixels
from clipautt.video.faces import Face, FaceDetector, make_detector
from clipautt.video.preprocessing import Frames, fit_frame
from clipautt.video.reader import BOX, FittedFrame, FrameSpec, face_crops
from clipautt.video.tracks import FaceTrack, follow_faces

_KEPT = 40
"""Earlier pictures in which the face is followed: three seconds at twelve a second."""
_SCANS = 64
"""Most scans of a JPEG. A progressive one has about ten; with thousands, a small file takes seconds to decode."""
_SCAN = b"\xff\xda"
_START = b"\xff\xd8\xff"


@dataclass(frozen=True)
class Sighting:
    """The faces of one picture of a stream."""

    seconds: float
    """When it was taken, from the first picture on."""
    faces: tuple[Face, ...]
    """What the detector found."""
    shape: tuple[int, int]
    """Height and width of the picture, pixels."""


@dataclass(frozen=True, eq=False, repr=False)
class Still:
    """A picture as the image tower takes it."""

    frame: Frames
    """RGB, uint8 [size, size, 3]; grey where no face is shown."""
    found: bool
    """Whether a face was found in the picture; True without a detector."""
    shown: bool
    """Whether the frame shows anything: a face, found here or a moment ago, or without a detector the picture."""
    brightness: float
    """Mean luma of what is shown, 0 (black) to 1 (white); nan where nothing is."""
    box: dict[str, float] | None = None
    """Where the face is, see `reader.BOX`; None where none is shown, and without a detector."""
    seen: tuple[Sighting, ...] = ()
    """This picture and those before, for the next one; empty without a detector."""

    def __repr__(self) -> str:
        return f"Still({self.frame.shape}, {'found' if self.found else 'not found'})"


class StillReader:
    """Decodes and crops the pictures of any number of streams; safe to share between threads.

    Args:
        frames: size and filter, and how the face is found.
        max_pixels: width × height of the largest picture that is decoded; None: no limit.

    Raises:
        ValueError: if the face detector cannot be made.
    """

    def __init__(self, frames: FrameSpec, *, max_pixels: int | None = None) -> None:
        self._frames = frames
        self._max_pixels = max_pixels
        self._local = threading.local()
        if frames.faces.detector != "none":
            self._detector()

    def _detector(self) -> FaceDetector:
        """This thread's detector."""
        if not hasattr(self._local, "detector"):
            self._local.detector = make_detector(self._frames.faces)
        detector: FaceDetector = self._local.detector
        return detector

    def __call__(self, jpeg: bytes, *, seconds: float = 0.0, seen: tuple[Sighting, ...] = ()) -> Still:
        """One picture.

        Args:
            jpeg: content of a JPEG file.
            seconds: when it was taken, from the first picture of its stream on; it never decreases within a stream.
            seen: `Still.seen` of the picture before in the stream.

        Raises:
            DecodeError: if it is no JPEG, damaged, cut or too large.
        """
        picture = read_jpeg(jpeg, max_pixels=self._max_pixels)
        if self._frames.faces.detector == "none":
            fitted = FittedFrame(seconds, fit_frame(picture, self._frames.preprocessing), found=True)
            return Still(fitted.frame, found=True, shown=True, brightness=fitted.brightness)
        now = Sighting(seconds, self._detector()(picture), (picture.shape[0], picture.shape[1]))
        return self._followed(picture, (*seen[-_KEPT:], now))

    def _followed(self, picture: Frames, seen: tuple[Sighting, ...]) -> Still:
        """The crop of the last picture that was seen."""
        faces = self._frames.faces
        times = np.array([one.seconds for one in seen])
        people = follow_faces(times, [one.faces for one in seen], [one.shape for one in seen], faces)
        track = _last(people.subject) if people.subject is not None else FaceTrack.nowhere(1)
        shape = self._frames.preprocessing
        (fitted,) = face_crops([(seen[-1].seconds, picture)], track, shape, margin=faces.margin)
        box = None if fitted.box is None else dict(zip(BOX, fitted.box.tolist(), strict=True))
        return Still(fitted.frame, fitted.found, fitted.shown, fitted.brightness, box, seen)


def _last(track: FaceTrack) -> FaceTrack:
    """The last frame of a track."""
    return FaceTrack(**{field.name: getattr(track, field.name)[-1:] for field in fields(FaceTrack)})


def read_jpeg(content: bytes, *, max_pixels: int | None = None) -> Frames:
    """Decode a JPEG, turned upright if its metadata say how; grey and CMYK become RGB.

    Its size is read from the header, before anything is decoded.

    Args:
        content: of the file.
        max_pixels: width × height of the largest picture that is decoded; None: no limit.

    Returns:
        RGB, uint8 [H, W, 3].

    Raises:
        DecodeError: if it is no JPEG, damaged, cut or too large.
    """
    from PIL import Image, ImageOps

    if not content.startswith(_START):
        raise DecodeError("it is not a JPEG")
    if content.count(_SCAN) > _SCANS:
        raise DecodeError(f"it has more than {_SCANS} scans, which takes too long to decode")
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as picture:
            check_pixels(*picture.size, max_pixels)
            # The pixels first: a picture that is cut has no other fault to name.
            picture.load()
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"), np.uint8)
    except DecodeError:
        raise
    except Image.DecompressionBombError as error:
        raise DecodeError("it has too many pixels") from error
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error, OverflowError) as error:
        # What Pillow raises for damaged metadata depends on where the damage is.
        raise DecodeError("it is damaged or cut") from error
