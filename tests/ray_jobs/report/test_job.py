"""What the report job prints."""

from __future__ import annotations

import pandas as pd

from ray_jobs.report.job import uar_by_cohort


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
