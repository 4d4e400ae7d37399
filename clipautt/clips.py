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
    """`source_train` and `source_val` to learn from and select on, `target` to be personalised."""
    label: str | None = None
    """Class name, or None where it is not known."""
    start_seconds: float | None = None
    """Where the clip begins in the file; None is its beginning."""
    end_seconds: float | None = None
    """Where the clip ends, exclusive; None is the end of the file."""
    dataset: str = ""
    """Name of the data set."""
    start_frame: int | None = None
    """First frame of the clip in the file, counted from 0, instead of `start_seconds`."""
    end_frame: int | None = None
    """Frame before which the clip ends, instead of `end_seconds`."""
    frames_per_second: float | None = None
    """For a folder of frames: the rate at which the numbers in the file names count; 1000 for milliseconds."""


def id_number(text: str) -> int:
    """A stable 63-bit number of an identifier, to seed generators with."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
