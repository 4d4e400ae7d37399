"""Which decisions of a run are compared with the exact method's, and what its files say."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from clipautt.adaptation.agreement import Agreement, exact_counterparts
from clipautt.adaptation.method import AdaptConfig
from clipautt.adaptation.predictions import Prediction
from clipautt.evaluation.results import COLUMNS, EVERY
from ray_jobs.adapt.actor import Outcome
from ray_jobs.adapt.agreement import agreement_file, agreement_of, read_agreement, write_agreement
from ray_jobs.adapt.plan import Assignment, Purpose
from tests.support.configs import adapt_config

CHEAP = adapt_config(objective="infomax_kl", tune="feature")
EXACT = exact_counterparts([CHEAP])[CHEAP.name]


def outcome(probabilities: dict[str, float], *, purpose: Purpose = "comparison") -> Outcome:
    """Of the exact method: clip → probability of pain."""
    predictions = tuple(
        Prediction(name, "s1", torch.tensor([1 - share, share]), 0.0, 1.0) for name, share in probabilities.items()
    )
    return Outcome(Assignment(EXACT, tuple(probabilities), purpose=purpose), predictions, 0.1)


def rows(probabilities: dict[str, float], *, cohort: str = EVERY, method: AdaptConfig = CHEAP) -> pd.DataFrame:
    """Of the approximation."""
    table = [
        {
            "clip_id": name,
            "method": method.name,
            "cohort": cohort,
            "prediction": "pain" if share > 0.5 else "neutral",
            "probability": share,
        }
        for name, share in probabilities.items()
    ]
    return pd.DataFrame(table, columns=list(COLUMNS))


def agreement(there: pd.DataFrame, *outcomes: Outcome) -> dict[str, Agreement]:
    return agreement_of(there, outcomes, {CHEAP.name: EXACT}, classes=("neutral", "pain"))


def test_decisions_are_counted_and_differences_averaged() -> None:
    there = rows({"a": 0.75, "b": 0.25, "c": 0.625, "d": 0.5625})
    (found,) = agreement(there, outcome({"a": 0.5625, "b": 0.125, "c": 0.375, "d": 0.5625})).values()
    assert found == Agreement(videos=4, same=3, difference=(0.1875 + 0.125 + 0.25 + 0.0) / 4)
    assert str(found) == "75.0 % of 4 decisions, probabilities 0.141 apart on average"


def test_only_rows_of_every_clip_and_outcomes_that_were_asked_for_count() -> None:
    there = pd.concat(
        [
            rows({"a": 0.75}),
            rows({"a": 0.25, "b": 0.25}, cohort="balanced"),
            rows({"a": 0.25}, method=adapt_config()),
        ]
    )
    asked, own = outcome({"a": 0.75, "b": 0.9}), outcome({"a": 0.0}, purpose="rows")
    assert agreement(there, asked, own) == {CHEAP.name: Agreement(videos=1, same=1, difference=0.0)}
    assert agreement(there, own) == {}
    assert agreement(there) == {}
    assert agreement(rows({}), asked) == {}


def test_a_clip_without_a_prediction_is_not_compared() -> None:
    lost = rows({"b": 0.0}).assign(prediction="", probability=float("nan"), status="no features: dark")
    there = pd.concat([rows({"a": 0.75}), lost])
    assert agreement(there, outcome({"a": 0.75})) == {CHEAP.name: Agreement(videos=1, same=1, difference=0.0)}


def test_figures_of_subjects_add_up(tmp_path: Path) -> None:
    write_agreement(tmp_path, "s1", {"cheap": Agreement(videos=3, same=3, difference=0.1)})
    write_agreement(tmp_path, "s/2", {"cheap": Agreement(videos=1, same=0, difference=0.5)})
    write_agreement(tmp_path, "s3", {})
    files = [agreement_file(tmp_path, subject) for subject in ("s1", "s/2", "s3")]
    assert [file.is_file() for file in files] == [True, True, False]
    assert [file.name for file in files] == ["s1.json", "s%2F2.json", "s3.json"]
    (both,) = read_agreement(files[:2]).values()
    assert (both.videos, both.same) == (4, 3) and both.difference == pytest.approx(0.2)
    assert read_agreement([]) == {}
