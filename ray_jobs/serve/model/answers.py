"""A prediction as plain values, as the fields of `schemas.Answer` say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from clipautt.action_units import VOCABULARY, title_of
from clipautt.prediction.answers import VideoPrediction
from clipautt.video.reader import BOX, Boxes

_DIGITS = 5
_KNOWN = {unit.code: unit for unit in VOCABULARY}


def describe(prediction: VideoPrediction) -> dict[str, Any]:
    """What a prediction says, without the path of its video."""
    curves = prediction.action_units
    return describe_before(prediction) | {
        "action_units": {
            "time_seconds": _rounded(curves.index.to_numpy()),
            "codes": dict(zip(map(str, curves), _rounded(curves.to_numpy().T), strict=True)),
            "names": {str(code): title_of(str(code)) for code in curves},
            "not_learned": list(prediction.not_learned),
        },
        "class_probabilities": {
            str(name): _rounded(values.to_numpy()) for name, values in prediction.class_probabilities.items()
        },
        "entropy": _rounded(np.asarray(prediction.entropy)),
        "face_boxes": _face_boxes(prediction),
        "personalized_for": prediction.personalized_for,
        "warnings": list(prediction.warnings),
        "warning_codes": [str(code) for code in prediction.cautions],
    }


def describe_before(prediction: VideoPrediction) -> dict[str, Any]:
    """What it says in short, as `schemas.Before` of a prediction without personalization."""
    return {
        "label": prediction.label,
        "probabilities": dict(prediction.probabilities),
        "window_start_seconds": float(prediction.window_start_seconds),
        "window_end_seconds": float(prediction.window_end_seconds),
        "top_action_units": [
            {
                "code": code,
                "name": name,
                "phrase": _KNOWN[code].phrase if code in _KNOWN else code,
                "rise": round(float(rise), _DIGITS),
            }
            for code, name, rise in prediction.top_action_units.itertuples()
        ],
    }


def _face_boxes(prediction: VideoPrediction) -> dict[str, Any] | None:
    """Where the face is in each frame, as `schemas.FaceBoxes`; None without a face detector."""
    clip = prediction.clip
    if clip.boxes is None or not clip.min_share or clip.face_found is None:
        return None
    return {
        "time_seconds": _rounded(clip.times),
        "found": [bool(one) for one in clip.face_found],
        **{name: _column(clip.boxes, index) for index, name in enumerate(BOX)},
    }


def _column(boxes: Boxes, index: int) -> list[float | None]:
    return [None if math.isnan(value) else round(float(value), 2) for value in boxes[:, index]]


def _rounded(values: npt.NDArray[np.floating]) -> list[Any]:
    """The values as lists; to fewer digits, so that answers are shorter."""
    rounded: list[Any] = values.astype(np.float64).round(_DIGITS).tolist()
    return rounded
