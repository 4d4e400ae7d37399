"""What the report job prints."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from ray_jobs.report import job
from ray_jobs.report.job import cautioned, report, uar_by_cohort
from tests.support.configs import adapt_config


def test_a_row_per_method_and_a_column_per_cohort() -> None:
    figures = pd.DataFrame(
        {
            "split": ["target", "target", "target", "source_val"],
            "method": ["old", "new", "new", "new"],
            "cohort": ["balanced", "balanced", "20%", "balanced"],
            "uar": [0.7, 0.8604, 0.75, 0.9],
        }
    )
    rows, headers = uar_by_cohort(figures)
    assert headers == ["method", "UAR, balanced", "UAR, 20% positives"]
    assert rows == [("old", "70.0", "-"), ("new", "86.0", "75.0")]


def test_a_run_whose_method_predicted_nothing_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pd.DataFrame({"method": ["zero-shot"], "clip_id": ["b"]})
    monkeypatch.setattr(job, "_settings", lambda run: {"adapt": None})
    monkeypatch.setattr(job, "_rows", lambda run: (rows, {"a": "no prediction: too short"}))
    monkeypatch.setattr(job, "instantiate", lambda settings: adapt_config())
    with pytest.raises(ValueError, match=r"predicted no clip with a label, .* to compare; a: no prediction: too short"):
        report([Path("run")], Path("out"))


def test_cautions_are_counted_by_code() -> None:
    """A clip counts once, however many methods predicted it; a run of an earlier version says nothing."""
    rows = pd.DataFrame(
        {
            "subject_id": ["s", "s", "s", "t"],
            "clip_id": ["a", "a", "b", "c"],
            "cautions": ["too_long;few_faces", "too_long;few_faces", "", "too_long"],
        }
    )
    said = cautioned(rows)
    assert said[0].startswith("too_long in 2 of 3 clips: The clip is much longer than those of training")
    assert said[1].startswith("few_faces in 1 of 3 clips: ") and len(said) == 2
    assert cautioned(rows.drop(columns="cautions")) == []
