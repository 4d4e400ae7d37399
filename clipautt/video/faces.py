"""Finds the faces in a frame, and their eyes.

In: an RGB frame, uint8 [H, W, 3]. Out: a tuple of `Face`, empty where there is none. OpenCV's cascades are built in;
YuNet finds more faces, turned ones too, but needs its ONNX file. A detector sees one frame at a time; `tracks` links
the faces of a clip.

    detect = make_detector(FaceConfig(detector="cascade"))
    faces = detect(frame)
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveInt

from clipautt.clips import FACES, is_face
from clipautt.settings import settings
from clipautt.video.head_turn import head_turn
from clipautt.video.preprocessing import Frames

Point = tuple[float, float]
Eyes = tuple[Point, Point]
Grey = npt.NDArray[np.uint8]
Boxes = list[tuple[float, float, float, float, float]]
"""Left, top, width, height in pixels of the picture, and a score."""
Detector = Literal["none", "cascade", "yunet"]
Missing = Literal["drop", "fill"]
Which = Literal["largest", "left", "right", "center"]
SHRUNK = 0.7
"""A face that counts is followed while it shrinks, down to this share of `FaceConfig.min_face`."""
FEW_FACES = 0.7
"""Below this share of frames with a face, answers suffer, and another detector is worth a try.

`make bench-validity` (part `found`) loses the face of 90 rendered people for a second at a time: UAR falls by 3 points
where it is found in 80 or 70 % of the frames, by 9 at 60 % and by 11 at 50 %, where a fifth of the clips has no answer.
"""

_PROFILE = 60.0
"""Stands for the turn of a head that only the cascade for profiles finds, which was trained on half and full ones."""
_OVERLAP = 0.3
"""Intersection over union from which two boxes of one frame are one face."""


@settings
class FaceConfig:
    """How the face is found, followed and cropped."""

    detector: Detector = "none"
    """`none` takes frames as they are, for footage already cropped; `cascade` is built in; `yunet` needs its file."""
    model: str | None = None
    """Path of YuNet's ONNX file, for instance `face_detection_yunet_2023mar.onnx`; made absolute if the file exists."""
    model_hash: str = ""
    """First 16 hex digits of the SHA-256 of that file; read from it when empty."""
    margin: Annotated[float, Field(ge=0, le=2)] = 0.2
    """Added around the face on each side, as a share of the side of its box."""
    align: bool = True
    """Turn the crop so that the line between the eyes is level."""
    smooth_seconds: Annotated[float, Field(ge=0, le=10)] = 0.15
    """Standard deviation of the Gaussian over time that steadies the crop; 0 follows every detection."""
    missing: Missing = "fill"
    """Frames without a face: `fill` crops where the face should be, judging by the frames around; `drop` leaves them
    blank, and no window contains one."""
    max_gap_seconds: Annotated[float, Field(ge=0, le=600)] = 2.0
    """How long a face may be out of sight and still be followed while it moves; also how far from a frame with the face
    others are filled. Frames beyond are blank."""
    min_share: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of a window's frames in which the face must be found for the window to count. A clip without such a window
    has no prediction."""
    which: Which | PositiveInt = "largest"
    """Whose face is followed where there are several: the one that is `largest` for longest, the one on the `left` or
    `right` of the picture or nearest to its `center`, or a number: 2 is the second largest."""
    detect_pixels: Annotated[int, Field(ge=64, le=8192)] = 480
    """Longer side of the picture that the detector sees; larger frames are reduced to it."""
    min_face: Annotated[float, Field(ge=0.01, le=1)] = 0.15
    """Smallest face that counts, as a share of the frame's shorter side: the square root of its box's area, for either
    detector. Once found, a face is followed down to 0.7 of it. The cascades need 20 pixels of the picture they see."""
    min_score: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """`yunet`: the least certain face that counts."""

    def __post_init__(self) -> None:
        if self.model is not None:  # workers and later runs may be in another folder
            there = os.path.expanduser(self.model)
            object.__setattr__(self, "model", os.path.abspath(there) if os.path.exists(there) else there)
        if self.detector == "yunet" and not self.model_hash:
            object.__setattr__(self, "model_hash", _hash_file(_model_path(self.model)))

    @property
    def facts(self) -> dict[str, Any]:
        """Everything that changes a crop, ready for JSON; the path of the model's file is omitted.

        Settings that came later are left out at their default, so that earlier features and checkpoints stay valid.
        """
        if self.detector == "none":
            return {"detector": "none"}
        unused = (
            {"model", "min_share"} if self.detector == "yunet" else {"model", "min_share", "model_hash", "min_score"}
        )
        later = {name for name in ("which", "min_score") if getattr(self, name) == getattr(FaceConfig, name)}
        return {name: value for name, value in asdict(self).items() if name not in unused | later}

    @property
    def window_share(self) -> float:
        """Share of a window's frames that must show the face: 0 without a detector, 1 if other frames are blank."""
        if self.detector == "none":
            return 0.0
        return 1.0 if self.missing == "drop" else self.min_share

    def following(self, face: str | None) -> FaceConfig:
        """These settings for a clip that names whose face it is, see `Clip.face`; None: as they are.

        Raises:
            ValueError: for another name than those of `which`, or without a detector.
        """
        if face is None:
            return self
        if not is_face(face):
            raise ValueError(f"face={face!r}; allowed: {', '.join(FACES)}, or a number from 1")
        if self.detector == "none":
            raise ValueError(
                f"face={face!r} needs a face detector, and faces=none takes frames as they are; give faces=cascade, "
                "and train with it"
            )
        return replace(self, which=int(face) if face.isdigit() else face)  # type: ignore[arg-type]


YUNET = (
    "YuNet finds more faces, turned, covered and dark ones too: download face_detection_yunet_2023mar.onnx from "
    "https://github.com/opencv/opencv_zoo/tree/main/models/face_detection_yunet and give "
    "faces=yunet faces.model=face_detection_yunet_2023mar.onnx"
)
"""What to try where the cascades find too little."""


def hints(config: FaceConfig) -> str:
    """What to try where too few faces are found."""
    if config.detector == "yunet":
        return (
            f"a faces.min_score below {config.min_score:g} finds less certain faces, a faces.min_face below "
            f"{config.min_face:g} smaller ones"
        )
    return YUNET


def few_faces(share: float, config: FaceConfig) -> str | None:
    """A warning where the face is found in too few frames, see `FEW_FACES`, and what to try; None elsewhere.

    Args:
        share: of the frames with the face, 0..1; nan, as without a detector, gives no warning.
        config: how they were found.
    """
    if not share < FEW_FACES:
        return None
    return f"the face is found in only {100 * share:.0f} % of the frames; {hints(config)}"


def _model_path(model: str | None) -> Path:
    if model is None:
        raise ValueError("faces.model=None; faces.detector='yunet' needs the path of YuNet's ONNX file")
    if not Path(model).is_file():
        raise ValueError(f"faces.model={model!r} is not there; give the path of YuNet's ONNX file")
    return Path(model)


def _hash_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Face:
    """One face in one frame, in pixels of the full frame."""

    left: float
    """Left edge of the box; may lie outside the frame."""
    top: float
    """Upper edge of the box."""
    width: float
    """Width of the box, pixels."""
    height: float
    """Height of the box, pixels."""
    score: float
    """Higher is more certain; comparable within one frame only."""
    eyes: Eyes | None = None
    """The subject's right and left eye as (x, y), which is left and right in an upright picture; None: not found."""
    turn: float | None = None
    """Degrees by which the head is turned to either side, 0 to 90, see `head_turn`; None where nothing tells."""

    @property
    def centre(self) -> Point:
        """Middle of the box, (x, y)."""
        return self.left + self.width / 2, self.top + self.height / 2

    @property
    def side(self) -> float:
        """The longer side of the box."""
        return max(self.width, self.height)

    @property
    def size(self) -> float:
        """Square root of the box's area, which the detectors agree on: YuNet's boxes are narrower and higher."""
        return math.sqrt(self.width * self.height)

    @property
    def angle(self) -> float | None:
        """Radians by which the line between the eyes is turned clockwise as seen, or None without eyes."""
        if self.eyes is None:
            return None
        (right_x, right_y), (left_x, left_y) = self.eyes
        return math.atan2(left_y - right_y, left_x - right_x)


class FaceDetector(Protocol):
    """Finds the faces of one frame."""

    def __call__(self, frame: Frames) -> tuple[Face, ...]:
        """The faces in an RGB frame, uint8 [H, W, 3], the most certain first, down to `SHRUNK` of the smallest that
        counts; empty where there is none."""


def make_detector(config: FaceConfig) -> FaceDetector:
    """The detector of a configuration; only the thread that made it may use it.

    Raises:
        ValueError: for `detector="none"`; when OpenCV has no cascades; when YuNet's file is missing, is not the one
            that the configuration was made with, or cannot be read.
    """
    if config.detector == "cascade":
        return CascadeDetector(config)
    if config.detector == "yunet":
        return YuNetDetector(config)
    raise ValueError("faces.detector='none' finds no faces; cascade and yunet do")


class CascadeDetector:
    """OpenCV's cascades: the frontal ones first, then profiles to either side; eyes are looked for within a face.

    Frontal faces are found up to about 15 degrees of tilt.

    Args:
        config: how small a face may be, and how large the picture is that is searched.
        eyes: whether eyes are looked for, which takes most of the time.
    """

    def __init__(self, config: FaceConfig, *, eyes: bool = True) -> None:
        self._config, self._with_eyes = config, eyes
        # The first gives the steadier boxes and fewer false alarms; the second finds more tilted and covered faces.
        self._steady, self._keen = _cascade("frontalface_alt2"), _cascade("frontalface_default")
        self._profile = _cascade("profileface")
        # The first finds open eyes and places them best; the second finds closed ones too.
        self._eyes = [_cascade("eye"), _cascade("lefteye_2splits")]

    def __call__(self, frame: Frames) -> tuple[Face, ...]:
        """As in `FaceDetector`."""
        _check_frame(frame)
        grey = np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)
        small, scale = reduce_frame(grey, self._config.detect_pixels)
        if _is_dark(small):
            grey, small = _lighten(grey), _lighten(small)
        counts = self._config.min_face * min(small.shape)
        boxes, turn = self._boxes(small, counts)
        if not boxes and counts < _CASCADE_PIXELS:
            factor = min(_CASCADE_PIXELS / counts, _ENLARGED)
            larger = np.asarray(cv2.resize(small, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC), np.uint8)
            scale = scale / factor
            boxes, turn = self._boxes(larger, counts * factor)
        faces = []
        for left, top, width, height, score in boxes:
            box = (left * scale, top * scale, width * scale, height * scale)
            faces.append(Face(*box, score, self._find_eyes(grey, box) if self._with_eyes else None, turn))
        return tuple(faces)

    def _boxes(self, grey: Grey, counts: float) -> tuple[Boxes, float | None]:
        """The boxes of the first attempt that finds one whose side counts, or else of the first that finds any; and
        `Face.turn` of all of them."""
        found: Boxes = []
        turned: float | None = None
        for boxes, turn in self._attempts(grey, max(_CASCADE_PIXELS, round(SHRUNK * counts))):
            if any(box[2] >= counts for box in boxes):
                return _without_overlaps(boxes), turn
            if boxes and not found:
                found, turned = boxes, turn
        return _without_overlaps(found), turned

    def _attempts(self, grey: Grey, smallest: int) -> Iterator[tuple[Boxes, float | None]]:
        # Sensor noise and hard edges make boxes jump from frame to frame; too dark or bright footage hides faces.
        calm = np.asarray(cv2.GaussianBlur(grey, (0, 0), _BLUR), np.uint8)
        yield _scan(self._steady, calm, smallest), None
        yield _scan(self._steady, np.asarray(cv2.equalizeHist(calm), np.uint8), smallest), None
        yield _surer(_scan(self._keen, calm, smallest), than=_KEEN_SCORE), None
        boxes = _scan(self._profile, calm, smallest)
        mirrored = _scan(self._profile, np.ascontiguousarray(calm[:, ::-1]), smallest)
        boxes += [(grey.shape[1] - x - w, y, w, h, score) for x, y, w, h, score in mirrored]
        yield _surer(boxes, than=_PROFILE_SCORE), _PROFILE

    def _find_eyes(self, grey: Grey, box: tuple[float, float, float, float]) -> Eyes | None:
        """Two plausible eyes within a face box, or None."""
        left, top = (max(0, round(v)) for v in box[:2])
        right, bottom = round(box[0] + box[2]), round(box[1] + _EYES_ABOVE * box[3])
        region = grey[top:bottom, left:right]
        if min(region.shape) < 8:
            return None
        scale = _EYE_PIXELS / box[2]
        fitted = cv2.resize(region, None, fx=scale, fy=scale, interpolation=_filter(scale))
        for cascade in self._eyes:
            found = _scan(cascade, np.asarray(fitted, np.uint8), _EYE_PIXELS // 6, largest=_EYE_PIXELS // 2)
            pair = choose_eyes([(x + w / 2, y + h / 2) for x, y, w, h, _ in found], side=_EYE_PIXELS)
            if pair is not None:
                (ax, ay), (bx, by) = pair
                return (left + ax / scale, top + ay / scale), (left + bx / scale, top + by / scale)
        return None


_CASCADE_PIXELS, _ENLARGED = 20, 4.0
"""Side of the smallest face the cascades find, in pixels; a smaller picture is enlarged by this factor at most."""
_DARK = 100.0
"""A frame is equalized before a face is looked for if 99 % of its pixels are darker than this, 0..255."""
_BLUR = 0.7
"""Standard deviation in pixels of the reduced picture."""
_KEEN_SCORE, _PROFILE_SCORE = 3.0, 1.0
"""A box that scores more is a face. In the pictures of tests/clipautt/video/test_faces.py, faces tilted by 15 degrees
score at least 5.9 with the keen cascade and a clock 1.9; with the other, a man in profile scores 2.3 and nothing else
above 0.3.
"""
_EYE_PIXELS = 160
"""Side in pixels to which a face is resized to look for eyes."""
_EYES_ABOVE = 0.65
"""Eyes lie above this share of the face box's height."""
_EYE_DISTANCE = 0.41
"""Usual distance of the eyes as a share of the face box's side."""
_EYE_HEIGHT = 0.38
"""Usual height of the eyes below the upper edge, as a share of the face box's side."""
_MAX_TILT = 0.5
"""Radians; the cascades find no face that is tilted further."""


def choose_eyes(points: Sequence[Point], *, side: float) -> Eyes | None:
    """The pair of points that looks most like two eyes of an upright face, left one first.

    Args:
        points: (x, y) in pixels from the upper left corner of the face box.
        side: of the face box in pixels.

    Returns:
        None when no pair lies on both sides of the middle, at a usual distance and height and nearly level.
    """
    best: tuple[float, Eyes] | None = None
    for a in points:
        for b in points:
            if not a[0] < side / 2 < b[0]:
                continue
            distance = math.dist(a, b) / side - _EYE_DISTANCE
            height = (a[1] + b[1]) / 2 / side - _EYE_HEIGHT
            middle = (a[0] + b[0]) / 2 / side - 0.5
            tilt = abs(math.atan2(b[1] - a[1], b[0] - a[0]))
            if abs(distance) > 0.15 or abs(height) > 0.12 or abs(middle) > 0.12 or tilt > _MAX_TILT:
                continue
            oddness = abs(distance) + abs(height) + abs(middle)
            if best is None or oddness < best[0]:
                best = oddness, (a, b)
    return None if best is None else best[1]


def _cascade(name: str) -> Any:
    folder = getattr(getattr(cv2, "data", None), "haarcascades", "")
    path = Path(folder) / f"haarcascade_{name}.xml"
    if not hasattr(cv2, "CascadeClassifier") or not path.is_file():
        raise ValueError(
            f"faces.detector='cascade': OpenCV {cv2.__version__} comes without haarcascade_{name}.xml; "
            "install opencv-python-headless 4.x, or give faces.detector=yunet and its faces.model"
        )
    return cv2.CascadeClassifier(str(path))


def _scan(cascade: Any, grey: Grey, smallest: int, *, largest: int = 0) -> Boxes:
    """A cascade's boxes, sorted: OpenCV's threads find them in any order. `largest` 0 is no limit."""
    boxes, _, scores = cascade.detectMultiScale3(
        grey,
        scaleFactor=1.1,
        minNeighbors=4,
        minSize=(smallest, smallest),
        maxSize=(largest, largest),
        outputRejectLevels=True,
    )
    scored = [
        (float(x), float(y), float(w), float(h), float(score))
        for (x, y, w, h), score in zip(boxes, np.ravel(scores), strict=True)
    ]
    return sorted(scored, key=lambda box: (-box[4], *box[:4]))


def _surer(boxes: Boxes, *, than: float) -> Boxes:
    return [box for box in boxes if box[4] > than]


def _without_overlaps(boxes: Boxes) -> Boxes:
    """The boxes that overlap none with a higher score, the highest score first."""
    kept: Boxes = []
    for box in sorted(boxes, key=lambda box: -box[4]):
        if all(_intersection_over_union(box, other) < _OVERLAP for other in kept):
            kept.append(box)
    return kept


def _intersection_over_union(a: Sequence[float], b: Sequence[float]) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


class YuNetDetector:
    """YuNet by OpenCV's `FaceDetectorYN`: boxes, and the eyes among its five landmarks.

    Source: Wu, Peng, Yu, *YuNet: A Tiny Millisecond-level Face Detector* (2023), https://doi.org/10.1007/s11633-023-1423-y;
    the columns of its output: https://docs.opencv.org/4.x/df/d20/classcv_1_1FaceDetectorYN.html.
    """

    def __init__(self, config: FaceConfig) -> None:
        path = _model_path(config.model)
        model_hash = _hash_file(path)
        if config.model_hash != model_hash:
            raise ValueError(
                f"faces.model={config.model!r} is not the file that the checkpoint was trained with: its SHA-256 "
                f"begins with {model_hash}, not {config.model_hash}, so its crops differ; give that file as faces.model"
            )
        self._config = config
        try:
            self._net = cv2.FaceDetectorYN.create(str(path), "", (32, 32), score_threshold=config.min_score)
            self._look(np.zeros((32, 32, 3), np.uint8))
        except cv2.error as error:
            reason = str(error).split("error: ")[-1].splitlines()[0]
            raise ValueError(
                f"faces.model={config.model!r} is not a YuNet ONNX file that OpenCV can read ({reason})"
            ) from error

    def __call__(self, frame: Frames) -> tuple[Face, ...]:
        """As in `FaceDetector`."""
        _check_frame(frame)
        small, scale = reduce_frame(frame, self._config.detect_pixels)
        smallest = SHRUNK * self._config.min_face * min(frame.shape[:2])
        faces = [
            _yunet_face(row * scale, score=float(row[14]))
            for row in self._look(_lighten(small) if _is_dark(small) else small)
        ]
        large = [face for face in faces if face.size >= smallest]
        return tuple(sorted(large, key=lambda face: -face.score))

    def _look(self, frame: Frames) -> npt.NDArray[np.float64]:
        self._net.setInputSize((frame.shape[1], frame.shape[0]))
        _, rows = self._net.detect(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        return np.zeros((0, 15)) if rows is None else np.asarray(rows, np.float64)


def _yunet_face(row: npt.NDArray[np.float64], *, score: float) -> Face:
    """A face from x, y, width, height, then x and y of right eye, left eye, nose and mouth corners."""
    left, top, width, height, right_x, right_y, left_x, left_y = (float(v) for v in row[:8])
    eyes = (right_x, right_y), (left_x, left_y)
    return Face(left, top, width, height, score, eyes, head_turn(row[4:14].reshape(5, 2)))


def _check_frame(frame: Frames) -> None:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise ValueError(f"frame is {frame.dtype} {list(frame.shape)}; uint8 [height, width, 3] is needed")


def reduce_frame(picture: npt.NDArray[np.uint8], pixels: int) -> tuple[npt.NDArray[np.uint8], float]:
    """The picture with a longer side of at most `pixels`, and the factor from its coordinates to the original's."""
    longer = max(picture.shape[:2])
    if longer <= pixels:
        return picture, 1.0
    factor = pixels / longer
    height, width = (max(1, round(side * factor)) for side in picture.shape[:2])
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8), 1 / factor


def _is_dark(picture: npt.NDArray[np.uint8]) -> bool:
    return bool(np.percentile(picture, 99) < _DARK)


def _lighten(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The picture, grey [H, W] or RGB [H, W, 3], its brightness equalized."""
    if picture.ndim == 2:
        return np.asarray(cv2.equalizeHist(picture), np.uint8)
    parts = cv2.cvtColor(picture, cv2.COLOR_RGB2YCrCb)
    parts[..., 0] = cv2.equalizeHist(np.ascontiguousarray(parts[..., 0]))
    return np.asarray(cv2.cvtColor(parts, cv2.COLOR_YCrCb2RGB), np.uint8)


def _filter(scale: float) -> int:
    return int(cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
