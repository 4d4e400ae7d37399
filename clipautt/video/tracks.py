"""Follows the faces of a clip and crops the subject's: which detections are one face, where the crop lies in a frame.

Detections are linked over time, what looks like a face only now and then is left out, the subject's face is chosen,
gaps are bridged, and position, size and tilt are smoothed by a filter that looks forward and back in time, so that the
crop neither shakes nor lags. People are not recognized: two who swap seats out of sight are followed as one face, and
one who comes back to another place is followed as two.

    people = follow_faces(times, [detect(frame) for frame in frames], shapes, config)
    track = people.subject
    crop = crop_face(frames[0], track.centre[0], track.side[0], track.angle[0], size=224, interpolation="bicubic")
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from clipautt.video.faces import Face, FaceConfig
from clipautt.video.preprocessing import Frames, Interpolation, resize

Array = npt.NDArray[np.float64]
Shape = tuple[int, int]
Box = tuple[float, float, float]
"""Centre x, y and side, as multiples of the frame's shorter side, so that a clip may change its resolution."""

_REACH, _REACH_PER_SECOND, _FARTHEST = 0.5, 2.0, 1.5
"""How far a face may move between two detections, in sides of its box: at once, plus per second, and at most."""
_RESIZED, _RESIZED_PER_SECOND, _MOST_RESIZED = 1.4, 0.4, 2.0
"""By what factor its side may change: at once, plus per second, and at most."""
_SAME_PLACE = 1.0
"""A face that returns after a longer gap is the same one if it is within this many sides of where it left."""
_WITH_EYES, _LONG = 0.1, 0.5
"""A face shows both eyes in this share of its detections, or lasts for this share of the clip's frames."""
_MEDIAN = 5
"""Detections in the median that removes outliers."""
_SLOW = 2.0
"""Size changes more slowly than position and tilt, so it is smoothed over a time this many times as long."""
_STILL = 1e-9
"""Square seconds; frames closer together than this tell nothing about speed."""
_ENOUGH, _ENOUGH_PER_SIZE = 1024, 4
"""The turned square keeps the frame's scale up to this side, in pixels or in sides of the result if that is more."""


@dataclass(frozen=True, repr=False, eq=False)
class FaceTrack:
    """Where to crop each frame of a clip, in pixels of that frame."""

    centre: Array
    """Middle of the crop as (x, y), float64 [T, 2]."""
    side: Array
    """Side of the square crop, margin included, float64 [T]."""
    angle: Array
    """Radians by which the face is turned clockwise as seen, float64 [T]; 0 without alignment."""
    found: npt.NDArray[np.bool_]
    """Whether the face was detected in the frame, [T]; elsewhere the crop follows from the frames around it."""
    shown: npt.NDArray[np.bool_]
    """Whether the crop is shown to the model, [T]: the face was found in the frame, or near enough in time."""
    eyes: Array
    """The subject's right and left eye as (x, y) as they were detected, float64 [T, 2, 2]; nan where they were not."""
    score: Array
    """The detector's score of the face, float64 [T]; nan where it was not found."""
    turn: Array
    """Degrees by which the head is turned to a side, see `Face.turn`, float64 [T]; nan where nothing tells."""

    @classmethod
    def nowhere(cls, num_frames: int) -> FaceTrack:
        """The track of no face."""
        nan, no = np.full(num_frames, np.nan), np.zeros(num_frames, bool)
        return cls(np.full((num_frames, 2), np.nan), nan, nan, no, no, np.full((num_frames, 2, 2), np.nan), nan, nan)

    def __repr__(self) -> str:
        seen = f"found in {int(self.found.sum())} of {len(self.found)}"
        return f"FaceTrack(centre {list(self.centre.shape)}, side {list(self.side.shape)}, {seen})"


@dataclass(frozen=True, repr=False, eq=False)
class People:
    """The faces that were followed through a clip."""

    tracks: tuple[FaceTrack, ...]
    """One per face, the largest for longest first."""
    chosen: int | None
    """Which of them is the subject's; None if none is."""
    counts: npt.NDArray[np.int64]
    """Number of faces that were detected in each frame, false alarms included, [T]."""
    why: str = ""
    """Why none is the subject's, as a sentence; empty if one is."""

    @property
    def subject(self) -> FaceTrack | None:
        """The subject's track."""
        return None if self.chosen is None else self.tracks[self.chosen]

    @property
    def others(self) -> int:
        """Number of faces beside the subject's."""
        return len(self.tracks) - (self.chosen is not None)

    def __repr__(self) -> str:
        return f"People({len(self.tracks)} faces, chosen {self.chosen})"


@dataclass
class _Chain:
    """Detections that are one face."""

    frames: list[int] = field(default_factory=list)
    """Numbers of the frames, ascending."""
    faces: list[int] = field(default_factory=list)
    """Index of the detection in each of them."""
    boxes: list[Box] = field(default_factory=list)
    """Box in each of them."""

    def add(self, frame: int, face: int, box: Box) -> None:
        """Continue with a detection of a later frame."""
        self.frames.append(frame)
        self.faces.append(face)
        self.boxes.append(box)

    @property
    def weight(self) -> float:
        """Area, summed over the detections."""
        return sum(side * side for _, _, side in self.boxes)


def follow_faces(
    times: npt.ArrayLike, detections: Sequence[tuple[Face, ...]], frame_shapes: Sequence[Shape], config: FaceConfig
) -> People:
    """Follow every face of a clip and choose the subject's, as `config.which` says: by default the one that is largest
    for longest.

        detections   A A A . . A A A     A near and large, b far away, x a false alarm
                     b b b b b b b b
                         x
        found        1 1 1 0 0 1 1 1

    A face has the size that counts and shows both eyes, in three frames or more (in fewer where the clip has fewer than
    nine frames), or it lasts for half of the clip, as a profile may.

    Args:
        times: of the frames in seconds, ascending, [T].
        detections: the faces of each frame, T of them.
        frame_shapes: height and width of each frame, T of them.
        config: whose face, the smallest that counts, margin, alignment, smoothing and the longest gap.

    Raises:
        ValueError: when the lengths differ or the times do not ascend.
    """
    moments = np.asarray(times, np.float64)
    _check(moments, detections, frame_shapes)
    units = np.array([min(shape) for shape in frame_shapes], np.float64)
    counts = np.array([len(faces) for faces in detections], np.int64)
    least = min(3, math.ceil(len(moments) / 4))
    chains = [c for c in _link(moments, detections, units, config.max_gap_seconds) if len(c.frames) >= least]
    found = [(chain, _faces_of(chain, detections)) for chain in _people(chains)]
    doubts = [_doubt(faces, units[chain.frames], len(moments), least, config) for chain, faces in found]
    kept = [one for one, doubt in zip(found, doubts, strict=True) if doubt is None]
    tracks = tuple(_steady(moments, *one, units, config) for one in kept)
    if tracks:
        chosen, why = _choose(tracks, np.array(frame_shapes, np.float64)[:, ::-1] / 2, config)
    else:
        doubt = f": {doubts[0]}" if doubts else ""
        chosen, why = None, f"no face was found in {len(moments)} frame{'s' * (len(moments) != 1)}{doubt}"
    return People(tracks, chosen, counts, why)


def _faces_of(chain: _Chain, detections: Sequence[tuple[Face, ...]]) -> list[Face]:
    return [detections[frame][face] for frame, face in zip(chain.frames, chain.faces, strict=True)]


def _doubt(faces: Sequence[Face], units: Array, num_frames: int, least: int, config: FaceConfig) -> str | None:
    """Why a chain of detections is no face that counts, to follow a colon; None if it is one."""
    sizes = np.array([face.size for face in faces]) / units
    if (sizes >= config.min_face).sum() < least:
        return too_small(float(sizes.max()), config)
    eyes = sum(face.eyes is not None for face in faces)
    if eyes < max(least, _WITH_EYES * len(faces)) and len(faces) < _LONG * num_frames:
        return f"what looks like one in {len(faces)} of them shows no eyes"
    return None


def too_small(size: float, config: FaceConfig) -> str:
    """A clause about a face that is too small.

    Args:
        size: of the face, as a share of the frame's shorter side.
        config: the smallest face that counts.
    """
    lower = math.floor(90 * size) / 100
    return (
        f"the face is too small, {100 * size:.0f} % of the frame's shorter side (faces.min_face={config.min_face:g}); "
        f"set faces.min_face={max(0.01, lower):g}, or cut the video to the face"
    )


def _choose(tracks: Sequence[FaceTrack], middles: Array, config: FaceConfig) -> tuple[int | None, str]:
    """Index of the subject's track, or why there is none; `middles` are the middles of the frames as (x, y), [T, 2]."""
    if isinstance(config.which, int):
        if config.which <= len(tracks):
            return config.which - 1, ""
        plural = "face was" if len(tracks) == 1 else "faces were"
        return None, f"face {config.which} was asked for, and {len(tracks)} {plural} found"
    if config.which == "largest":
        return 0, ""
    places = np.array([((track.centre - middles) / middles)[track.found].mean(axis=0) for track in tracks])
    measures = {"left": places[:, 0], "right": -places[:, 0], "center": np.hypot(places[:, 0], places[:, 1])}
    return int(measures[config.which].argmin()), ""


def _check(times: Array, detections: Sequence[tuple[Face, ...]], frame_shapes: Sequence[Shape]) -> None:
    if times.ndim != 1 or not len(times) == len(detections) == len(frame_shapes):
        raise ValueError(
            f"times has the shape {list(times.shape)}, and there are {len(detections)} detections and "
            f"{len(frame_shapes)} frame_shapes; one of each per frame is needed"
        )
    if not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise ValueError("times must be numbers that ascend")


def _link(times: Array, detections: Sequence[tuple[Face, ...]], units: Array, max_gap: float) -> list[_Chain]:
    """Chains of detections, each continued by the nearest fitting one within the longest gap."""
    chains: list[_Chain] = []
    alive: list[_Chain] = []
    for frame, faces in enumerate(detections):
        boxes = [_box(face, units[frame]) for face in faces]
        # Detections in successive frames have no gap between them, however far apart the frames are.
        alive = [c for c in alive if c.frames[-1] == frame - 1 or times[frame] - times[c.frames[-1]] <= max_gap]
        continued = _assign([(chain.boxes[-1], times[frame] - times[chain.frames[-1]]) for chain in alive], boxes)
        for number, box in enumerate(boxes):
            chain = alive[continued[number]] if number in continued else _Chain()
            chain.add(frame, number, box)
            if number not in continued:
                chains.append(chain)
                alive.append(chain)
    return chains


def _box(face: Face, unit: float) -> Box:
    return face.centre[0] / unit, face.centre[1] / unit, face.side / unit


def _assign(last: Sequence[tuple[Box, float]], boxes: Sequence[Box]) -> dict[int, int]:
    """Match boxes to chains, the most plausible pairs first, each chain and box at most once.

    Args:
        last: the last box of every chain and the seconds since.
        boxes: those of this frame.

    Returns:
        Number of a box → number of the chain that it continues.
    """
    pairs = []
    for (chain, (before, seconds)), (number, box) in itertools.product(enumerate(last), enumerate(boxes)):
        strangeness = _strangeness(before, box, seconds)
        if strangeness is not None:
            pairs.append((strangeness, chain, number))
    continued: dict[int, int] = {}
    for _, chain, number in sorted(pairs):
        if number not in continued and chain not in continued.values():
            continued[number] = chain
    return continued


def _strangeness(before: Box, after: Box, seconds: float) -> float | None:
    """How unlikely it is that a face moved like this in this time, 0 or more; None when too far or too much resized."""
    side = max(before[2], after[2])
    moved = math.dist(before[:2], after[:2]) / side
    resized = abs(math.log(after[2] / before[2]))
    reach = min(_REACH + _REACH_PER_SECOND * seconds, _FARTHEST)
    factor = min(_RESIZED + _RESIZED_PER_SECOND * seconds, _MOST_RESIZED)
    return moved + resized if moved <= reach and resized <= math.log(factor) else None


def _people(chains: Sequence[_Chain]) -> list[_Chain]:
    """A chain per face, the largest area over time first: those in which the same face returns to its place are
    joined."""
    left = sorted(chains, key=lambda chain: (-chain.weight, chain.frames[0]))
    people = []
    while left:
        person, others = left[0], []
        for chain in left[1:]:
            joined = _join(person, chain)
            if joined is None:
                others.append(chain)
            else:
                person = joined
        people.append(person)
        left = others
    return sorted(people, key=lambda chain: (-chain.weight, chain.frames[0]))


def _join(subject: _Chain, other: _Chain) -> _Chain | None:
    """Both chains as one, when the other lies in a gap of the subject's and begins and ends where the subject was."""
    at = bisect.bisect(subject.frames, other.frames[0])
    if at < len(subject.frames) and subject.frames[at] <= other.frames[-1]:
        return None
    meetings = []
    if at > 0:
        meetings.append((subject.boxes[at - 1], other.boxes[0]))
    if at < len(subject.frames):
        meetings.append((other.boxes[-1], subject.boxes[at]))
    for before, after in meetings:
        side = max(before[2], after[2])
        if (
            math.dist(before[:2], after[:2]) > _SAME_PLACE * side
            or not 1 / _RESIZED <= after[2] / before[2] <= _RESIZED
        ):
            return None
    return _Chain(
        subject.frames[:at] + other.frames + subject.frames[at:],
        subject.faces[:at] + other.faces + subject.faces[at:],
        subject.boxes[:at] + other.boxes + subject.boxes[at:],
    )


def _steady(times: Array, chain: _Chain, faces: Sequence[Face], units: Array, config: FaceConfig) -> FaceTrack:
    """The crop in every frame, from the detections in some frames."""
    found, (score, turn) = np.zeros(len(times), bool), np.full((2, len(times)), np.nan)
    found[chain.frames] = True
    score[chain.frames] = [face.score for face in faces]
    turn[chain.frames] = [np.nan if face.turn is None else face.turn for face in faces]
    eyes = np.full((len(times), 2, 2), np.nan)
    angles = np.full(len(faces), np.nan)
    for number, (frame, face) in enumerate(zip(chain.frames, faces, strict=True)):
        if face.eyes is not None and face.angle is not None:
            eyes[frame], angles[number] = face.eyes, face.angle
    seen, boxes = times[chain.frames], np.array(chain.boxes)
    centre = _follow(times, seen, boxes[:, :2], config.smooth_seconds) * units[:, None]
    side = _follow(times, seen, boxes[:, 2:], _SLOW * config.smooth_seconds)[:, 0] * units
    angle, known = np.zeros(len(times)), np.isfinite(angles)
    if config.align and known.any():
        turned = np.unwrap(angles[known])[:, None]
        angle = _follow(times, seen[known], turned, config.smooth_seconds)[:, 0]
    away = np.abs(times[:, None] - seen[[_before(seen, times), _after(seen, times)]].T).min(axis=1)
    near = away <= (config.max_gap_seconds if config.missing == "fill" else 0.0)
    return FaceTrack(centre, side * (1 + 2 * config.margin), angle, found, found | near, eyes, score, turn)


def _before(seen: Array, times: Array) -> npt.NDArray[np.int64]:
    return (np.searchsorted(seen, times, side="right") - 1).clip(0)


def _after(seen: Array, times: Array) -> npt.NDArray[np.int64]:
    return np.searchsorted(seen, times).clip(max=len(seen) - 1)


def _follow(times: Array, seen: Array, values: Array, seconds: float) -> Array:
    """Values at all times [T, k] from those seen at some [n, k]: outliers out, gaps bridged, smoothed."""
    padded = np.pad(values, ((_MEDIAN // 2, _MEDIAN // 2), (0, 0)), mode="edge")
    calm = np.median(np.lib.stride_tricks.sliding_window_view(padded, _MEDIAN, axis=0), axis=-1)
    bridged = np.stack([np.interp(times, seen, column) for column in calm.T], axis=1)
    return smooth(times, bridged, seconds).clip(calm.min(axis=0), calm.max(axis=0))


def smooth(times: Array, values: Array, seconds: float) -> Array:
    """Smooth values over time without delay: at each moment a line is fitted to the values around it.

    A steady movement is left unchanged, even at the first and last frame, where a mean would lag.

    Args:
        times: in seconds, ascending, [T]; any spacing.
        values: [T, k].
        seconds: standard deviation of the Gaussian weights; 0 returns the values.

    Returns:
        float64 [T, k].

    Source: local linear regression, Cleveland, *Robust Locally Weighted Regression and Smoothing Scatterplots* (1979),
    https://doi.org/10.1080/01621459.1979.10481038, with Gaussian weights.
    """
    if seconds == 0:
        return values
    first = np.searchsorted(times, times - 3 * seconds)
    last = np.searchsorted(times, times + 3 * seconds, side="right")
    smoothed = np.empty(values.shape)
    for i, (begin, end) in enumerate(zip(first, last, strict=True)):
        away = times[begin:end] - times[i]
        weights = np.exp(-0.5 * (away / seconds) ** 2)
        weights /= weights.sum()
        middle = weights @ away
        spread = weights @ (away - middle) ** 2
        slope = (weights * (away - middle)) @ values[begin:end] / spread if spread > _STILL else 0.0
        smoothed[i] = weights @ values[begin:end] - slope * middle
    return smoothed


def crop_face(
    frame: Frames, centre: npt.ArrayLike, side: float, angle: float, *, size: int, interpolation: Interpolation
) -> Frames:
    """Cut a turned square out of a frame and resize it; beyond the frame its border pixels are repeated.

    Args:
        frame: RGB, uint8 [H, W, 3].
        centre: middle of the square as (x, y) in pixels, where (0, 0) is the frame's upper left corner.
        side: of the square in pixels, positive.
        angle: radians by which the square is turned clockwise as seen; the crop stands upright.
        size: of the result in pixels.
        interpolation: filter of the resizing.

    Returns:
        uint8 [size, size, 3].

    Raises:
        ValueError: when a number is not finite or the side is not positive.
    """
    x, y = (float(v) for v in np.asarray(centre, np.float64))
    if not (math.isfinite(x + y + side + angle) and side > 0):
        raise ValueError(
            f"centre=({x}, {y}), side={side}, angle={angle}; finite numbers and a positive side are needed"
        )
    # Turned at the frame's scale, then resized: resizing averages over pixels, turning does not.
    # Memory and time follow the square's area, so for a very large one the frame is reduced first.
    pixels = max(1, min(round(side), max(_ENOUGH, _ENOUGH_PER_SIZE * size)))
    scale = side / pixels
    along, across = scale * math.cos(angle), scale * math.sin(angle)
    # A pixel's middle lies half a pixel from its corner, in the crop as in the frame.
    half = (pixels - 1) / 2
    matrix = np.array(
        [
            [along, -across, x - 0.5 - half * (along - across)],
            [across, along, y - 0.5 - half * (across + along)],
        ]
    )
    if round(side) > pixels:
        frame, matrix = _reduced(frame, matrix, pixels / side)
    turned = cv2.warpAffine(
        frame,
        matrix,
        (pixels, pixels),
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return resize(np.asarray(turned, np.uint8), (0, 0, pixels, pixels), size, interpolation)


def _reduced(frame: Frames, matrix: Array, factor: float) -> tuple[Frames, Array]:
    """A frame averaged down by a factor below 1, and the matrix [2, 3] changed to map into the smaller frame."""
    height, width = frame.shape[:2]
    small = cv2.resize(
        frame, (max(1, round(width * factor)), max(1, round(height * factor))), interpolation=cv2.INTER_AREA
    )
    # Sides are whole pixels, so each axis has a factor of its own; a pixel's middle lies half a pixel from its corner.
    factors = np.array([[small.shape[1] / width], [small.shape[0] / height]])
    fitted = matrix * factors
    fitted[:, 2:] += (factors - 1) / 2
    return np.asarray(small, np.uint8), fitted
