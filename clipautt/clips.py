"""What a clip is: one piece of video of one subject.

This module imports nothing heavy, since every decoding process imports it; `manifest` reads and writes tables of clips.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

Split = Literal["source_train", "source_val", "target"]


@dataclass(frozen=True)
class Clip:
    """One piece of video of one subject."""

    clip_id: str
    """Unique in its manifest."""
    subject_id: str
    """Whose face it shows."""
    source: str
    """Path of the video file or of the folder of frames, absolute once read."""
    split: Split
    """`source_train` to learn from, `source_val` to select on, `target` to personalize to."""
    label: str | None = None
    """Class name, or None where it is not known."""
    start_seconds: float | None = None
    """Start of the clip in the file; None for the start of the file."""
    end_seconds: float | None = None
    """End of the clip in the file, exclusive; None for the end of the file."""
    dataset: str = ""
    """Name of the data set."""
    start_frame: int | None = None
    """First frame of the clip in the file, counted from 0, instead of `start_seconds`."""
    end_frame: int | None = None
    """First frame after the clip, instead of `end_seconds`."""
    frames_per_second: float | None = None
    """For a folder of frames: the numbers in file names that make up a second; 1000 if they are milliseconds."""
    face: str | None = None
    """Whose face it is where the picture shows several, as `faces.which`; None: as set there. Rows that differ in it
    and in `subject_id` are several people of one video."""


FACES = ("largest", "left", "right", "center")
"""Names of a face among several; a number does too: 2 is the second largest."""


def is_face(name: str) -> bool:
    """Whether a name says whose face is meant: one of `FACES`, or a number from 1."""
    return name in FACES or (name.isascii() and name.isdigit() and int(name) > 0)


def id_number(text: str) -> int:
    """A stable 63-bit hash of an identifier, to seed generators with."""
    raw = text.encode(errors="surrogateescape")  # ids may come from file names that are not UTF-8
    return int.from_bytes(hashlib.sha256(raw).digest()[:8], "little") >> 1
