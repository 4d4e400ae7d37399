"""Which tool wrote a table, by the names of its columns, and what they mean.

    OpenFace 2   frame, face_id, timestamp, confidence, success, …, AU01_r (0 to 5), …, AU01_c (0 or 1), …
    py-feat      FaceRectX, …, FaceScore, …, AU01 (probability, 0 to 1), …, frame, approx_time, Identity
    LibreFace    frame_idx, frame_time_in_ms, …, au_1 (0 or 1), …, au_1_intensity (0 to 5), …
    iMotions     lines that begin with #, then Timestamp (milliseconds), EventSource, …, Brow Furrow (0 to 100), …

The names are those of the tools' public sources and of published exports: OpenFace's wiki ("Output format"), py-feat
0.5 to 0.7 (`Fex`), LibreFace (`save_facial_attributes_video`), and raw exports of iMotions 10 with Affectiva AFFDEX.
AFFDEX's expressions are matched to action units by their names, as Affectiva says that most of them follow FACS; this
was not compared with its published table. `Smirk` is omitted: it is AU12 or AU14 of one side.

OpenFace 3 names its eight outputs AU01_r to AU08_r, which are no numbers of FACS, so its tables are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

OPENFACE, PY_FEAT, LIBREFACE, IMOTIONS = "OpenFace 2", "py-feat", "LibreFace", "iMotions"
TOOLS = (OPENFACE, PY_FEAT, LIBREFACE, IMOTIONS)
MIN_CONFIDENCE = 0.75
"""Rows in which OpenFace is less confident are dropped."""

_OPENFACE = re.compile(r"AU(\d+)_([rc])")
_PY_FEAT = re.compile(r"AU(\d\d)")
_LIBREFACE = re.compile(r"au_(\d+)(_intensity)?")
_AFFDEX = {
    "Inner Brow Raise": 1, "Brow Raise": 2, "Brow Furrow": 4, "Eye Widen": 5, "Cheek Raise": 6, "Lid Tighten": 7,
    "Nose Wrinkle": 9, "Upper Lip Raise": 10, "Smile": 12, "Dimpler": 14, "Lip Corner Depressor": 15, "Chin Raise": 17,
    "Lip Pucker": 18, "Lip Stretch": 20, "Lip Press": 24, "Mouth Open": 25, "Jaw Drop": 26, "Lip Suck": 28,
    "Eye Closure": 43,
}  # fmt: skip
_OF_OPENFACE = {1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 28, 45}
_SHOWN_COLUMNS = 8


@dataclass(frozen=True)
class Format:
    """What the columns of one table mean."""

    tool: str
    """One of `TOOLS`."""
    intensities: Mapping[str, str]
    """Column → AU code such as `AU4`."""
    presences: Mapping[str, str] = field(default_factory=dict)
    """Column of zeros and ones → AU code; for a tool that writes none, presence follows from the intensity."""
    largest: float = 5.0
    """The largest intensity; the smallest is 0."""
    present_from: float | None = None
    """Intensity from which an AU counts as present; None where `presences` says it."""
    time: str = ""
    """Column of times; empty where `frame` is all there is."""
    units_per_second: float = 1.0
    """How many units of `time` are a second."""
    frame: str = ""
    """Column of frame numbers; empty where there is none."""
    first_frame: int = 0
    """Number of a video's first frame."""
    face: str = ""
    """Column that tells the faces of a frame apart; empty where there is none."""
    sides: tuple[str, str] | None = None
    """Columns of a face's left edge, and of its right edge or width; None where positions are not written."""
    is_width: bool = False
    """Whether the second of `sides` is the width."""
    least: Mapping[str, float] = field(default_factory=dict)
    """Column → the smallest value of a row that counts."""
    blanks: bool = True
    """Whether cells are blank where no face was found."""
    clock: str = ""
    """Column of times as `MM:SS`, in whole seconds, that must agree with the others."""
    source: str = ""
    """Column whose cells name the sensor of a row, where rows of others are in between."""

    @property
    def numbers(self) -> list[str]:
        """The columns that hold numbers and are needed."""
        facts = (self.time, self.frame, *self.least)
        return list(dict.fromkeys(name for name in (*facts, *self.intensities, *self.presences) if name))


def find_format(path: Path, columns: Sequence[str]) -> Format:
    """The format of a table.

    Args:
        path: for messages.
        columns: the names in its header.

    Raises:
        ValueError: if it is of no known tool, of OpenFace 3, or lacks columns; naming what it has.
    """
    there = set(columns)
    shown = ", ".join(columns[:_SHOWN_COLUMNS]) + (", …" if len(columns) > _SHOWN_COLUMNS else "")
    if any(map(_OPENFACE.fullmatch, columns)):
        return _openface(path, columns, shown)
    if {"FaceScore", "FaceRectX"} & there and any(map(_PY_FEAT.fullmatch, columns)):
        return _py_feat(path, there, shown)
    if any(map(_LIBREFACE.fullmatch, columns)):
        return _libreface(path, columns, shown)
    if len(there & _AFFDEX.keys()) >= 3:
        return _imotions(path, columns, shown)
    if {"timestamp", "confidence"} <= there:
        raise ValueError(f"{path}: no action units such as AU04_r (columns: {shown}); run OpenFace with -aus")
    raise ValueError(f"{path} is no table of {', '.join(TOOLS[:-1])} or {TOOLS[-1]} (columns: {shown})")


def _openface(path: Path, columns: Sequence[str], shown: str) -> Format:
    matches = [match for match in map(_OPENFACE.fullmatch, columns) if match]
    odd = sorted({int(match[1]) for match in matches} - _OF_OPENFACE)
    if odd:
        raise ValueError(
            f"{path}: OpenFace 3 wrote this table: its AU{odd[0]:02d}_{matches[0][2]} and the columns beside it are "
            "numbered from 1 to 8, not by FACS, so it is unclear which action unit is which; use OpenFace 2"
        )
    if "timestamp" not in columns:
        raise ValueError(
            f"{path}: no column timestamp (columns: {shown}); OpenFace's FeatureExtraction writes it for videos, "
            "FaceLandmarkImg does not"
        )
    return Format(
        OPENFACE,
        {match[0]: f"AU{int(match[1])}" for match in matches if match[2] == "r"},
        {match[0]: f"AU{int(match[1])}" for match in matches if match[2] == "c"},
        time="timestamp",
        frame="frame" if "frame" in columns else "",
        first_frame=1,
        face="face_id" if "face_id" in columns else "",
        sides=("x_0", "x_16") if {"x_0", "x_16"} <= set(columns) else None,
        least={name: least for name, least in (("success", 1), ("confidence", MIN_CONFIDENCE)) if name in columns},
        blanks=False,
    )


def _py_feat(path: Path, columns: set[str], shown: str) -> Format:
    if "frame" not in columns:
        raise ValueError(f"{path}: no column frame (columns: {shown}); py-feat's detect writes it for videos")
    units = {name: f"AU{int(name[2:])}" for name in sorted(columns) if _PY_FEAT.fullmatch(name)}
    return Format(
        PY_FEAT,
        units,
        largest=1.0,
        present_from=0.5,
        frame="frame",
        face="Identity" if "Identity" in columns else "",
        sides=("FaceRectX", "FaceRectWidth") if {"FaceRectX", "FaceRectWidth"} <= columns else None,
        is_width=True,
        clock="approx_time" if "approx_time" in columns else "",
    )


def _libreface(path: Path, columns: Sequence[str], shown: str) -> Format:
    if "frame_time_in_ms" not in columns:
        raise ValueError(
            f"{path}: no column frame_time_in_ms (columns: {shown}); LibreFace writes it for videos, not for pictures"
        )
    matches = [match for match in map(_LIBREFACE.fullmatch, columns) if match]
    return Format(
        LIBREFACE,
        {match[0]: f"AU{match[1]}" for match in matches if match[2]},
        {match[0]: f"AU{match[1]}" for match in matches if not match[2]},
        time="frame_time_in_ms",
        units_per_second=1000.0,
        frame="frame_idx" if "frame_idx" in columns else "",
    )


def _imotions(path: Path, columns: Sequence[str], shown: str) -> Format:
    if "Timestamp" not in columns:
        raise ValueError(f"{path}: no column Timestamp (columns: {shown}); export the raw data from iMotions")
    return Format(
        IMOTIONS,
        {name: f"AU{number}" for name, number in _AFFDEX.items() if name in columns},
        largest=100.0,
        present_from=50.0,
        time="Timestamp",
        units_per_second=1000.0,
        source="EventSource" if "EventSource" in columns else "",
    )
