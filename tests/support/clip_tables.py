"""Tables of clips as `predict` writes them, with chosen numbers."""

from __future__ import annotations

from typing import Any

import pandas as pd

from clipautt.prediction.columns import columns_of

CLASSES, UNITS = ("neutral", "pain"), ("AU4", "AU6")
_COLUMNS = [one.name for one in columns_of("clips", classes=CLASSES, action_units=UNITS)]
_FIXED = {"status": "ok", "duration_seconds": 4.0, "frames": 50, "windows": 9, "windows_counted": 9, "other_faces": 0}
_FIXED |= {"face_share": 0.9, "brightness": 0.5, "window_start_seconds": 1.0, "window_end_seconds": 2.0, "entropy": 0.4}
_FIXED |= {"AU4_mean": 0.1, "AU4_rise": 1.0, "AU6_mean": 0.2, "AU6_rise": 0.5}
_FIXED |= {"AU4_evidence": 2.0, "AU6_evidence": -1.0}


def clip_row(subject: str, condition: str, pain: float, number: int = 0, **given: Any) -> dict[str, Any]:
    """One clip with this probability of pain; `given` replaces or adds columns."""
    name = f"{subject}/{condition}{number}"
    chances = {"probability_neutral": 1 - pain, "probability_pain": pain}
    known = {"clip": name, "subject": subject, "source": f"{name}.mp4", "prediction": CLASSES[pain > 0.5]}
    row = dict.fromkeys(_COLUMNS, "") | _FIXED | chances | known
    first = {"clip": row.pop("clip"), "subject": row.pop("subject"), "condition": condition}
    return first | row | given


def tiny_table() -> pd.DataFrame:
    """Three people in two conditions; `a` has more clips than the others.

    Means of the probability of pain at rest and under pressure: a 0.2 and 0.6, b 0.4 and 0.5, c 0.3 and 0.9; all
    decimals are exact to the eye.
    """
    chances = {
        ("a", "rest"): (0.1, 0.3),
        ("a", "pressure"): (0.5, 0.6, 0.7),
        ("b", "rest"): (0.4,),
        ("b", "pressure"): (0.5,),
        ("c", "rest"): (0.2, 0.4),
        ("c", "pressure"): (0.9,),
    }
    rows = [clip_row(*key, pain, number) for key, values in chances.items() for number, pain in enumerate(values)]
    return pd.DataFrame(rows)
