"""What is shown of an answer, in figures, overlays and notebooks, and the words for it.

In: an answer, see `Answer`. Out: sentences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import pandas as pd

from clipautt.action_units import NONE_ROSE


class Answer(Protocol):
    """What is shown of a `VideoPrediction`."""

    @property
    def video(self) -> str: ...
    @property
    def label(self) -> str | None: ...
    @property
    def reason(self) -> str: ...
    @property
    def probabilities(self) -> Mapping[str, float]: ...
    @property
    def window_start_seconds(self) -> float: ...
    @property
    def window_end_seconds(self) -> float: ...
    @property
    def duration_seconds(self) -> float: ...
    @property
    def personalized_for(self) -> str | None: ...
    @property
    def cautions(self) -> Mapping[Any, str]: ...
    @property
    def not_learned(self) -> tuple[str, ...]: ...
    @property
    def action_unit_codes(self) -> tuple[str, ...]: ...
    @property
    def top_action_units(self) -> pd.DataFrame: ...
    @property
    def face_share(self) -> float: ...
    @property
    def other_faces(self) -> int: ...
    @property
    def windows(self) -> pd.DataFrame: ...
    @property
    def frames(self) -> pd.DataFrame: ...


def describe(answer: Answer) -> list[str]:
    """What is said below the label: the other classes, the window, and how much of the face was seen."""
    others = [name for name in by_probability(answer) if name != answer.label]
    said = [f"{name} {percent(answer.probabilities[name])}" for name in others]
    if answer.label is not None:
        window = f"{answer.window_start_seconds:.2f} to {answer.window_end_seconds:.2f} s"
        said.append(f"most expressive window {window} of {answer.duration_seconds:.2f} s")
    said.append(faces_seen(answer))
    if answer.other_faces:
        said.append(f"{answer.other_faces} other {'face' if answer.other_faces == 1 else 'faces'} left out")
    if answer.personalized_for:
        said.append(f"personalized for {answer.personalized_for}")
    return said


def faces_seen(answer: Answer) -> str:
    """How much of the video shows the face."""
    share = answer.face_share
    return "no face detector" if math.isnan(share) else f"face found in {100 * share:.0f} % of the frames"


def by_probability(answer: Answer) -> list[str]:
    """The classes, the most probable first."""
    return sorted(answer.probabilities, key=lambda name: -answer.probabilities[name])


def why_no_units(answer: Answer) -> str:
    """Why no AU is shown that rose; empty where some are."""
    if answer.label is None:
        return f"no curves: {answer.reason}"
    if len(answer.top_action_units):
        return ""
    if set(answer.not_learned) >= set(answer.action_unit_codes):
        return f"no curves: the backbone has learned none of the model's {len(answer.action_unit_codes)} action units"
    windows = answer.windows
    if windows.loc[windows["chosen"], list(answer.action_unit_codes)].isna().all(axis=None):
        return "no curves: no action unit has a value in the window"
    return _why_none_rose(windows)


def _why_none_rose(windows: pd.DataFrame) -> str:
    """That no AU rose; in a clip of one window none can.

    Args:
        windows: as `VideoPrediction.windows`.
    """
    alone = (windows["status"] == "ok").sum() == 1
    return f"{NONE_ROSE}: the clip has one window only, so its level is the usual one" if alone else NONE_ROSE


def percent(share: float) -> str:
    """A share as text, such as `87.5 %`."""
    return f"{100 * share:.1f} %"


def face_states(frames: pd.DataFrame) -> list[str]:
    """What is known of the face in each frame, keys of `_LOOK`."""
    found, known = frames["face_found"], frames["face_x"].notna()
    if found.isna().all():
        return ["no face detector"] * len(frames)
    return ["found" if here else "inferred" if boxed else "not seen" for here, boxed in zip(found, known, strict=True)]
