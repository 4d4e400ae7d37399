"""Every column of the tables of predictions: its name, what it means, and its unit.

In: nothing. Out: `Column` records in the order of the tables. Names are stable: in a table of another version, the same
name means the same. `probability_<class>` occurs once per class; `<AU>`, `<AU>_mean`, `<AU>_rise` and `<AU>_evidence`
once per action unit.

A value that is not known is empty in CSV and null in Parquet.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from clipautt.action_units import title_of
from clipautt.video.head_turn import MOST_TURNED

_FLAG, _COSINE = "true or false", "cosine, -1 to 1"
_MEANS = "mean over the window's frames; of the frame itself in a table of frames"
_BENT = "it says what speaks for a class, not whether the action unit is there"


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    """As in the header."""
    about: str
    """What it says, as a sentence without its full stop."""
    unit: str = ""
    """Unit or range; empty for text, `count` for whole numbers, `true or false`."""

    @property
    def kind(self) -> Literal["text", "number", "count", "flag"]:
        """What its values are."""
        if self.unit in ("", "count"):
            return "count" if self.unit else "text"
        return "flag" if self.unit == _FLAG else "number"


CLIP = (
    Column("clip", "Clip as it is named in the input: its path without suffix, below the folder that was given"),
    Column("subject", "Person in the clip; empty where nobody says who it is"),
)
"""The first columns of every table."""
VALIDITY = (
    Column("other_faces", "Other faces that were followed through the clip and left out", "count"),
    Column("personalized_for", "Subject whose resting face or prompts were used; empty for none"),
    Column(
        "not_learned", "Action units that the backbone never learned, whose numbers mean nothing: codes, by semicolons"
    ),
    Column(
        "warnings", "What speaks against the numbers of this clip: codes, separated by semicolons; empty for nothing"
    ),
)
"""The last columns of every table."""
_FACE = (
    Column("face_x", "Left edge of the face's square box", "pixels of the frame"),
    Column("face_y", "Upper edge of the face's square box", "pixels of the frame"),
    Column("face_side", "Side of the face's square box", "pixels of the frame"),
    Column("face_tilt", "Angle by which the face is turned clockwise as seen", "degrees"),
    Column("face_score", "Certainty of the face detector; its scale depends on the detector", "score"),
    Column("face_turn", "Angle by which the head is turned to either side; empty where nothing tells", "degrees"),
    Column("brightness", "Mean luma of what the model sees, from black to white", "0 to 1"),
)
CLIPS_BEFORE = (
    *CLIP,
    Column("source", "Path of the video, or of the folder of frames"),
    Column("status", "ok, no_prediction, or why there are no features: no_face, missing, unreadable, not_finite, lost"),
    Column("reason", "Why there is no prediction, as a sentence; empty if there is one"),
    Column("prediction", "The most probable class; empty without a prediction"),
)
CLIPS_BETWEEN = (
    Column("window_start_seconds", "Start of the most expressive window, from the start of the clip", "seconds"),
    Column("window_end_seconds", "End of the most expressive window", "seconds"),
    Column("entropy", "Entropy of the class probabilities of that window; low where the face is expressive", "nats"),
    Column("duration_seconds", "Length of the clip", "seconds"),
    Column("frames", "Frames that were looked at", "count"),
    Column("windows", "Windows that the clip was cut into", "count"),
    Column("windows_counted", "Windows in which enough frames show the face; only these give numbers", "count"),
    Column("face_share", "Share of the frames in which the face was found; empty without a face detector", "0 to 1"),
    Column(
        "turned_share",
        "Share of the frames with the face in which the head is turned to a side by more than "
        f"{MOST_TURNED:.0f} degrees; empty where nothing tells",
        "0 to 1",
    ),
    Column("brightness", "Mean luma of what the model sees, from black to white", "0 to 1"),
)
WINDOWS = (
    *CLIP,
    Column("window", "Number of the window in its clip, from 0", "count"),
    Column("time_seconds", "Middle of the window, from the start of the clip", "seconds"),
    Column("start_seconds", "Start of the window", "seconds"),
    Column("end_seconds", "End of the window", "seconds"),
    Column(
        "status",
        "ok; no_face where too few frames show the face, so that the window gives no numbers; that of the clip "
        "where it has no prediction",
    ),
    Column(
        "face_share", "Share of the window's frames in which the face was found; empty without a detector", "0 to 1"
    ),
    *(Column(one.name, f"{one.about}, mean over the window's frames", one.unit) for one in _FACE),
    Column("chosen", "Whether it is the most expressive window, on which the prediction of the clip rests", _FLAG),
    Column("entropy", "Entropy of the class probabilities; low where the face is expressive", "nats"),
)
FRAMES = (
    *CLIP,
    Column("frame", "Number of the frame among those that were looked at, from 0", "count"),
    Column("time_seconds", "Time of the frame, from the start of the clip", "seconds"),
    Column(
        "status",
        "ok; no_face where the window around the frame does not show the face often enough; that of the clip "
        "where it has no prediction",
    ),
    Column("face_found", "Whether the face was found in this frame; empty without a detector", _FLAG),
    *_FACE,
    Column("window", "Number of the window around the frame, from which the numbers that follow are taken", "count"),
    Column("entropy", "Entropy of the class probabilities; low where the face is expressive", "nats"),
)


def probability(name: str) -> Column:
    """The column with the probability of a class."""
    return Column(f"probability_{name}", f"Probability of the class {name}", "0 to 1")


def units_of_moments(code: str) -> tuple[Column, Column]:
    """The columns of an action unit in the tables of windows and frames."""
    unit = title_of(code)
    return (
        Column(code, f"Similarity of the face to {unit} for the frozen backbone, {_MEANS}", _COSINE),
        Column(
            f"{code}_evidence", f"Similarity to {unit} after training, which the classifier reads; {_BENT}", "-5 to 5"
        ),
    )


def units_of_clip(code: str) -> tuple[Column, Column, Column]:
    """The columns of an action unit in the table of clips."""
    unit = title_of(code)
    return (
        Column(
            f"{code}_mean", f"Similarity of the face to {unit} for the frozen backbone, mean over the windows", _COSINE
        ),
        Column(
            f"{code}_rise",
            f"Similarity to {unit} in the most expressive window minus its median over the clip",
            "-2 to 2",
        ),
        Column(
            f"{code}_evidence",
            f"Similarity to {unit} after training, in the most expressive window; {_BENT}",
            "-5 to 5",
        ),
    )


def columns_of(table: str, *, classes: Iterable[str], action_units: Iterable[str]) -> list[Column]:
    """All columns of a table, in order.

    Args:
        table: `clips`, `windows` or `frames`.
        classes: names of the model's classes.
        action_units: codes of its AUs.

    Raises:
        KeyError: for another table.
    """
    chances = [probability(name) for name in classes]
    if table == "clips":
        units = [column for code in action_units for column in units_of_clip(code)]
        return [*CLIPS_BEFORE, *chances, *CLIPS_BETWEEN, *units, *VALIDITY]
    before = {"windows": WINDOWS, "frames": FRAMES}[table]
    units = [column for code in action_units for column in units_of_moments(code)]
    return [*before, *chances, *units, *VALIDITY]
