"""An uploaded video with its answer drawn around it, for a page of another site to play: the face's box, label, chosen
window, curves, and a bar for each AU that rose, see `overlay.write_overlay`.

In: the file, and its `schemas.Answer` as plain values. Out: an MP4 file that browsers play: H.264, 8 bits, 4:2:0, the
index first, no sound. It runs where videos are decoded, without PyTorch; the file is opened in a child process, as any
upload.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from clipautt.clips import Clip
from clipautt.files import atomic
from clipautt.prediction.overlay_frames import write_frames
from clipautt.prediction.overlay_plan import plan_of
from clipautt.video.reader_process import ReadLimits, work_on_clip

HIGHEST, RATE = 360, 15.0
"""Pixels of the picture's height, and frames per second, at most; fewer than an overlay has, as somebody waits."""
_DRAWING = threading.Lock()
"""matplotlib's settings, of which a figure needs the usual ones, belong to the process."""
_BOX = ("x", "y", "side", "tilt")


def write_annotated(path: Path, answer: Mapping[str, Any], target: Path, *, limits: ReadLimits) -> None:
    """Write the video with its answer.

    Args:
        path: the uploaded file.
        answer: fields of `schemas.Answer`.
        target: MP4 file that is written; it appears when it is complete.
        limits: for the decoding process.

    Raises:
        DecodeError: if no decoder reads the file, or it takes too long.
        OSError: if the target cannot be written.
    """
    shown = Shown(answer)
    with _DRAWING:
        plan = plan_of(shown, shown.times, shown.boxes, highest=HIGHEST, rate=RATE)
    clip = Clip("video", "", str(path), "target")
    with atomic(target, private=True) as temporary:
        work_on_clip(write_frames, clip, {"target": str(temporary.absolute()), "plan": asdict(plan)}, limits)


@dataclass(frozen=True)
class Shown:
    """The plain values as what is shown of an answer, see `clipautt.prediction.shown.Answer`."""

    answer: Mapping[str, Any]
    """Fields of `schemas.Answer`."""

    @property
    def video(self) -> str:
        """Nothing: an upload has no name here."""
        return ""

    @property
    def label(self) -> str:
        """The most probable class."""
        return str(self.answer["label"])

    @property
    def reason(self) -> str:
        """Nothing: there is a label."""
        return ""

    @property
    def probabilities(self) -> Mapping[str, float]:
        """Class → probability."""
        return dict(self.answer["probabilities"])

    @property
    def window_start_seconds(self) -> float:
        """Start of the chosen window."""
        return float(self.answer["window_start_seconds"])

    @property
    def window_end_seconds(self) -> float:
        """Its end."""
        return float(self.answer["window_end_seconds"])

    @property
    def duration_seconds(self) -> float:
        """Length of the video."""
        return float(self.answer["duration_seconds"])

    @property
    def personalized_for(self) -> str | None:
        """Whose personalization was used."""
        subject: str | None = self.answer["personalized_for"]
        return subject

    @property
    def cautions(self) -> Mapping[str, str]:
        """Code of a warning → its sentence."""
        return dict(zip(self.answer["warning_codes"], self.answer["warnings"], strict=True))

    @property
    def not_learned(self) -> tuple[str, ...]:
        """Codes that the backbone never learned."""
        return tuple(self.answer["action_units"]["not_learned"])

    @property
    def action_unit_codes(self) -> tuple[str, ...]:
        """Codes of all curves."""
        return tuple(self.answer["action_units"]["codes"])

    @property
    def top_action_units(self) -> pd.DataFrame:
        """Those that rose: index `code`; columns `name` and `rise`."""
        units = self.answer["top_action_units"]
        rows = {"name": [unit["name"] for unit in units], "rise": [float(unit["rise"]) for unit in units]}
        return pd.DataFrame(rows, index=pd.Index([unit["code"] for unit in units], name="code", dtype=object))

    @property
    def face_share(self) -> float:
        """Share of the frames in which the face was found; nan without a detector."""
        boxes = self.answer["face_boxes"]
        return float(np.mean(boxes["found"])) if boxes else math.nan

    @property
    def other_faces(self) -> int:
        """None: a warning says how many there were."""
        return 0

    @cached_property
    def windows(self) -> pd.DataFrame:
        """A row per window that counts, and one without values wherever some between do not."""
        times = np.asarray(self.answer["action_units"]["time_seconds"], np.float64)
        chances = {f"probability_{name}": values for name, values in self.answer["class_probabilities"].items()}
        columns = {"time_seconds": times, "status": "ok"} | chances | dict(self.answer["action_units"]["codes"])
        middle = (self.window_start_seconds + self.window_end_seconds) / 2
        table = pd.DataFrame(columns, index=range(len(times)))
        table["chosen"] = np.arange(len(times)) == np.abs(times - middle).argmin()
        gaps = pd.DataFrame({"time_seconds": _gaps(times), "status": "no_face", "chosen": False})
        return pd.concat([table, gaps]).sort_values("time_seconds", ignore_index=True) if len(gaps) else table

    @cached_property
    def frames(self) -> pd.DataFrame:
        """A row per frame that was looked at: `time_seconds`, `face_found` and `face_x`; one row without a detector."""
        boxes = self.answer["face_boxes"]
        known = boxes or {"found": [None]}
        found = pd.Series(known["found"], dtype="boolean")
        return pd.DataFrame({"time_seconds": self.times, "face_found": found, "face_x": self.boxes[:, 0]})

    @cached_property
    def times(self) -> npt.NDArray[np.float64]:
        """Seconds of these frames, [T]."""
        boxes = self.answer["face_boxes"]
        return np.asarray(boxes["time_seconds"] if boxes else [0.0], np.float64)

    @cached_property
    def boxes(self) -> npt.NDArray[np.float64]:
        """Where the face is in them, [T, 4]; nan for nowhere."""
        boxes = self.answer["face_boxes"]
        columns: Sequence[Any] = [boxes[name] for name in _BOX] if boxes else [[None]] * len(_BOX)
        return np.array(columns, np.float64).T


def _gaps(times: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Moments between windows that lie farther apart than usual."""
    steps = np.diff(times)
    wide = np.flatnonzero(steps > 1.5 * np.median(steps)) if len(steps) else np.empty(0, np.int64)
    return np.asarray((times[wide] + times[wide + 1]) / 2, np.float64)
