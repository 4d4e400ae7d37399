"""What every format of human coding is read into: values over time per AU, and what could not be coded.

In: spans with values. Out: the values at any moments of a clip. A missing code stays missing: it is never taken for
"absent".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, NonNegativeInt

from clipautt.action_units import VOCABULARY
from clipautt.settings import settings

Floats = npt.NDArray[np.float64]
Unit = Literal["seconds", "frames"]
Kind = Literal["intervals", "occurrence", "intensity"]
"""Intervals in which an AU is present; 0 or 1 per frame; 0 to 5 per frame."""

_REGIONS = {unit.code: unit.region for unit in VOCABULARY}
NOT_VISIBLE: dict[int, tuple[str, ...]] = {
    70: ("brow",),
    71: ("eye", "gaze"),
    72: ("nose", "cheek", "mouth", "jaw"),
    73: (),
    74: (),
}
"""FACS visibility codes → regions of the face whose AUs cannot be coded meanwhile; none named: all of them."""


@settings
class FacsSettings:
    """How human coding is read and compared."""

    frames_per_second: Annotated[float, Field(gt=0)] | None = None
    """Rate at which frames are numbered in the coding; null: that of the video."""
    first_frame: NonNegativeInt = 1
    """Number of a video's first frame in the coding."""
    present_from: Annotated[float, Field(gt=0, le=5)] = 1.0
    """Intensity from which an AU counts as present, where intensities are coded; DISFA is often read with 2."""
    coder: str | None = None
    """Whose coding is read where a file holds that of several people."""
    protocol: Literal["per_subject", "per_video"] = "per_subject"
    """Whether the subject baseline is that of all coded clips of a subject, as in `clipautt adapt`, or of each clip
    alone, as in `clipautt predict`."""


@dataclass(frozen=True, eq=False)
class Track:
    """Values of one AU over time."""

    starts: Floats
    """Start of each span, [N], ascending: seconds of the video, or numbers of frames as the coding counts them."""
    ends: Floats
    """End of each span, exclusive, [N]."""
    values: Floats
    """Of each span, [N]: 0 or 1, or an intensity 0..5; NaN where it could not be coded or is not known."""
    outside: float = math.nan
    """Value elsewhere: 0 for intervals, which are noted only where an AU occurs; NaN where frames are coded one by
    one."""

    @classmethod
    def of(cls, spans: Iterable[tuple[float, float, float]], *, outside: float = math.nan) -> Track:
        """A track of (start, end, value) in any order."""
        rows = np.array(sorted(spans), float).reshape(-1, 3)
        return cls(rows[:, 0], rows[:, 1], rows[:, 2], outside)

    def at(self, positions: Floats) -> Floats:
        """Values at positions in time, in this track's unit: [T] → [T]. Where spans overlap, as those of the left and
        the right side, the largest value counts."""
        if (self.starts[1:] >= self.ends[:-1]).all():
            place = np.searchsorted(self.starts, positions, side="right") - 1
            inside = (place >= 0) & (positions < np.append(self.ends, 0.0)[place])
            return np.where(inside, np.append(self.values, 0.0)[place], self.outside)
        found = np.full(len(positions), self.outside)
        for span in np.argsort(np.nan_to_num(self.values, nan=-1.0), kind="stable"):
            found[(positions >= self.starts[span]) & (positions < self.ends[span])] = self.values[span]
        return found


@dataclass(frozen=True)
class NotVisible:
    """A span in which a part of the face was not visible to the coder."""

    start: float
    """In the unit of the tracks."""
    end: float
    """Exclusive."""
    number: int
    """The visibility code, see `NOT_VISIBLE`."""

    def hides(self, code: str) -> bool:
        """Whether this AU cannot be coded meanwhile."""
        regions = NOT_VISIBLE[self.number]
        return not regions or _REGIONS.get(code) in regions


@dataclass(frozen=True, eq=False, repr=False)
class Piece:
    """What one file says of one clip or video."""

    path: Path
    """The file."""
    name: str
    """Name of the clip or video that it belongs to; may hold folders, separated by slashes."""
    kind: Kind
    """What is coded."""
    unit: Unit
    """How times are given."""
    tracks: Mapping[str, Track]
    """AU code → its values. Intervals: 1 inside of them."""
    intensities: Mapping[str, Track] = field(default_factory=dict)
    """Intervals: AU code → intensities, for AUs with at least one."""
    not_visible: tuple[NotVisible, ...] = ()
    """When what was not visible."""
    also: tuple[str, ...] = ()
    """Other names of the video, such as that of the media file in an ELAN document."""
    notes: tuple[str, ...] = ()
    """What was passed over, a sentence each."""
    comprehensive: bool = False
    """Intervals: whether AUs that they do not name were looked for, too, and absent."""
    one_au: bool = False
    """Whether the file is by its name for one AU, with others beside it."""

    def __repr__(self) -> str:
        return f"Piece({self.path.name!r} of {self.name!r}, {self.kind}, {len(self.tracks)} AUs)"


@dataclass(frozen=True, eq=False, repr=False)
class ClipCoding:
    """All that people coded of one clip."""

    pieces: tuple[Piece, ...]
    """From one or several files."""
    start_seconds: float = 0.0
    """Where the clip begins in what was coded, seconds."""
    frames_per_second: float | None = None
    """Rate at which its frames are numbered; None if no piece counts frames."""
    first_frame: int = 1
    """Number of the first frame."""

    @property
    def codes(self) -> tuple[str, ...]:
        """AUs that were looked for, by number."""
        codes = {code for piece in self.pieces for code in piece.tracks}
        return tuple(sorted(codes, key=lambda code: int(code.removeprefix("AU"))))

    def at(self, code: str, times: Floats, *, present_from: float) -> tuple[Floats, Floats]:
        """Whether an AU is present, and how intense it is.

        Args:
            code: such as `AU12`.
            times: seconds of the clip, [T].
            present_from: intensity from which it is present.

        Returns:
            Presence, 0 or 1, and intensity, 0..5, [T] each; NaN where it is not known.
        """
        present, intensity = (np.full(len(times), np.nan) for _ in range(2))
        for piece in self.pieces:
            if code not in piece.tracks:
                continue
            positions = self._positions(piece, times)
            values = piece.tracks[code].at(positions)
            hidden = self._hidden(piece, code, positions)
            strength = values if piece.kind == "intensity" else None
            if code in piece.intensities:
                strength = piece.intensities[code].at(positions)
                values = np.where(strength < present_from, 0.0, values)
            if strength is not None:
                intensity = np.where(hidden, np.nan, strength)
            if piece.kind != "intensity":
                present = np.where(hidden, np.nan, values)
        if not any(piece.kind != "intensity" and code in piece.tracks for piece in self.pieces):
            present = np.where(np.isnan(intensity), np.nan, intensity >= present_from)
        return present, intensity

    def _positions(self, piece: Piece, times: Floats) -> Floats:
        moments = times + self.start_seconds
        if piece.unit == "seconds":
            return moments
        assert self.frames_per_second is not None
        return np.round(moments * self.frames_per_second) + self.first_frame

    @staticmethod
    def _hidden(piece: Piece, code: str, positions: Floats) -> npt.NDArray[np.bool_]:
        hidden = np.zeros(len(positions), bool)
        for span in piece.not_visible:
            if span.hides(code):
                hidden |= (positions >= span.start) & (positions < span.end)
        return hidden

    def __repr__(self) -> str:
        return f"ClipCoding({', '.join(map(repr, self.pieces))})"


class SpanBook:
    """Collects coded intervals of one clip, and makes a `Piece` of them.

    Args:
        unit: of the times.
    """

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self._present: dict[str, list[tuple[float, float, float]]] = {}
        self._intensity: dict[str, list[tuple[float, float, float]]] = {}
        self._not_visible: list[NotVisible] = []

    def look_for(self, code: str) -> None:
        """Note that an AU was looked for, whether it occurs or not."""
        self._present.setdefault(code, [])

    def add(self, code: str, start: float, end: float, intensity: float = math.nan) -> None:
        """Note an interval; intensity 0 says that the AU is absent in it."""
        number = int(code.removeprefix("AU"))
        if number in NOT_VISIBLE:
            self._not_visible.append(NotVisible(start, end, number))
            return
        self.look_for(code)
        if intensity == 0:
            return
        self._present[code].append((start, end, 1.0))
        self._intensity.setdefault(code, []).append((start, end, intensity))

    def piece(
        self, path: Path, name: str, *, comprehensive: bool, also: tuple[str, ...] = (), notes: tuple[str, ...] = ()
    ) -> Piece:
        """The intervals as a piece of coding; arguments as the fields of `Piece`."""
        graded = {
            code: Track.of(spans, outside=0.0)
            for code, spans in self._intensity.items()
            if any(not math.isnan(value) for *_, value in spans)
        }
        tracks = {code: Track.of(spans, outside=0.0) for code, spans in self._present.items()}
        return Piece(
            path, name, "intervals", self.unit, tracks, graded, tuple(self._not_visible), also, notes, comprehensive
        )
